"""The cheap baseline: what TF-IDF and no neural network at all get from the same samples.

For each family of its own. Where its samples repeat a few answers (at most 50 distinct ones, each given
twice on average) they are classes for a linear classifier (support vectors); else the answer of the
nearest sample by TF-IDF cosine is copied. A distilled student that is not ahead of
this was not worth training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.evaluate.predictions import Given
from stillhouse.records import Prompt

MOST_CLASSES = 50
_BLOCK = 256  # test prompts compared with all samples at once


def baseline_answers(samples: Path, prompts: Sequence[Prompt], seed: int) -> list[Given] | str:
    """The baseline's answers in the order of the prompts, or a sentence that says why there are none.

    A prompt of a family without samples, or one whose samples hold no words, gets no answer.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return "scikit-learn is not installed (it comes with stillhouse[train])"
    if not samples.is_file():
        return "there are no samples to fit it on"
    known: dict[str, tuple[list[str], list[str]]] = {}
    for family, question, answer in _read_samples(samples):
        questions, answers = known.setdefault(family, ([], []))
        questions.append(question)
        answers.append(answer)
    given: list[Given] = [Given(None, "no sample is of this family")] * len(prompts)
    for family, (questions, completions) in sorted(known.items()):
        wanted = [index for index, prompt in enumerate(prompts) if prompt.family == family]
        texts = [_question([(m.role, m.content) for m in prompts[index].messages]) for index in wanted]
        for index, one in zip(wanted, _answers(questions, completions, texts, seed), strict=True):
            given[index] = one
    return given


def is_choice(answers: Sequence[str]) -> bool:
    """Few answers that repeat are classes: at most 50 distinct, at most half as many as rows."""
    distinct = len(set(answers))
    return distinct <= MOST_CLASSES and 2 * distinct <= len(answers)


def _answers(questions: list[str], answers: list[str], texts: list[str], seed: int) -> list[Given]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    if not texts:
        return []
    if len(set(answers)) == 1:
        return [Given(answers[0])] * len(texts)
    # Single characters count too: in a sum or a code they carry the question.
    vectoriser = TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True)
    try:
        known = vectoriser.fit_transform(questions)
    except ValueError:
        return [Given(None, "the samples of this family hold no words")] * len(texts)
    asked = vectoriser.transform(texts)
    if is_choice(answers):
        model = LinearSVC(random_state=seed)
        return [Given(str(label)) for label in model.fit(known, answers).predict(asked)]
    given = []
    for start in range(0, len(texts), _BLOCK):
        # Rows have length one, so the product is the cosine; of equals the first sample wins.
        nearest = (asked[start : start + _BLOCK] @ known.T).toarray().argmax(axis=1)
        given += [Given(answers[index]) for index in nearest]
    return given


def _read_samples(path: Path) -> list[tuple[str, str, str]]:
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(
        path, columns=["messages", "completion", "family"]
    ).to_pylist()
    return [
        (row["family"], _question([(m["role"], m["content"]) for m in row["messages"]]), row["completion"])
        for row in rows
    ]


def _question(messages: Sequence[tuple[str, str]]) -> str:
    """What was asked, without the system prompt, which is the same in every row."""
    return "\n".join(content for role, content in messages if role != "system")
