"""The cheap baseline: what TF-IDF and no neural network at all get from the same samples.

To which family a test prompt belongs is guessed from its words by a linear classifier (support vectors), for
a student is not told either, and where families tell the answer it would be given away. Then each family for
itself: where its samples repeat a few answers (at most 50 distinct ones, each given twice on average) they
are classes for such a classifier; else the answer of the nearest sample by TF-IDF cosine is copied. A
distilled student that is not ahead of this was not worth training.
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

    A prompt that is taken for one of a family whose samples hold no words gets no answer.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return "scikit-learn is not installed (it comes with stillhouse[train])"
    if not samples.is_file():
        return "there are no samples to fit it on"
    read = _read_samples(samples)
    known: dict[str, tuple[list[str], list[str]]] = {}
    for family, question, answer in read:
        questions, answers = known.setdefault(family, ([], []))
        questions.append(question)
        answers.append(answer)
    asked = [_question([(m.role, m.content) for m in prompt.messages]) for prompt in prompts]
    guessed = _classified(
        [question for _, question, _ in read], [family for family, _, _ in read], asked, seed
    )
    if guessed is None:
        return "its samples hold no words"
    given: list[Given | None] = [None] * len(prompts)
    for family, (questions, completions) in sorted(known.items()):
        wanted = [index for index, guess in enumerate(guessed) if guess == family]
        texts = [asked[index] for index in wanted]
        for index, one in zip(wanted, _answers(questions, completions, texts, seed), strict=True):
            given[index] = one
    return [one for one in given if one is not None]


def is_choice(answers: Sequence[str]) -> bool:
    """Few answers that repeat are classes: at most 50 distinct, at most half as many as rows."""
    distinct = len(set(answers))
    return distinct <= MOST_CLASSES and 2 * distinct <= len(answers)


def _answers(questions: list[str], answers: list[str], texts: list[str], seed: int) -> list[Given]:
    if not texts:
        return []
    if len(set(answers)) == 1 or is_choice(answers):
        labels = _classified(questions, answers, texts, seed)
        return _wordless(texts) if labels is None else [Given(label) for label in labels]
    vectoriser = _vectoriser()
    try:
        known = vectoriser.fit_transform(questions)
    except ValueError:
        return _wordless(texts)
    asked, given = vectoriser.transform(texts), []
    for start in range(0, len(texts), _BLOCK):
        # Rows have length one, so the product is the cosine; of equals the first sample wins.
        nearest = (asked[start : start + _BLOCK] @ known.T).toarray().argmax(axis=1)
        given += [Given(answers[index]) for index in nearest]
    return given


def _classified(questions: list[str], labels: list[str], texts: list[str], seed: int) -> list[str] | None:
    """The label of each text, by what such questions had; None where questions of several hold no words."""
    from sklearn.svm import LinearSVC

    if len(set(labels)) == 1 or not texts:
        return labels[:1] * len(texts)
    vectoriser = _vectoriser()
    try:
        known = vectoriser.fit_transform(questions)
    except ValueError:
        return None
    model = LinearSVC(random_state=seed).fit(known, labels)
    return [str(label) for label in model.predict(vectoriser.transform(texts))]


def _vectoriser() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Single characters count too: in a sum or a code they carry the question.
    return TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True)


def _wordless(texts: list[str]) -> list[Given]:
    return [Given(None, "the samples of this family hold no words")] * len(texts)


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
