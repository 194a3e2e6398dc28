"""One row for each answer of each system: written before anything is added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from stillhouse.records import FinishReason, Prompt
from stillhouse.scoring import Scorer, score
from stillhouse.workspace import write_atomic

System = Literal["teacher", "student_before", "student", "baseline"]
SYSTEMS: tuple[System, ...] = ("teacher", "student_before", "student", "baseline")
STUDENTS: tuple[System, ...] = ("student_before", "student")


@dataclass(frozen=True, slots=True)
class TeacherAnswers:
    """What the teacher answered to the test prompts, by prompt id.

    `tokens` holds (prompt, completion) tokens as the server counted them, None where it did not say.
    `failed` gives the reason for each prompt without an answer. `folder` is the teacher's local model
    folder; None when it is not here, and its size and compute are then unknown. `finish` says how each answer
    ended; one that is not named there ended in a way not known.
    """

    texts: Mapping[str, str]
    tokens: Mapping[str, tuple[int | None, int | None]]
    failed: Mapping[str, str]
    folder: str | None = None
    finish: Mapping[str, FinishReason] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Given:
    """One system's answer to one prompt. `text` None: no answer, and `reason` says why. `logprob` is the sum
    over its tokens under the system itself (nats), the end left out; None where it is not known, and for an
    answer without any."""

    text: str | None
    reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: FinishReason = "unknown"
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row of `predictions.parquet`. `answer` None: the system failed on this prompt, and `reason` says why.

    `score` None: the answer could not be scored, or there is none and that says nothing about the system (a
    teacher's server that failed). A student that could not answer what can be scored has the score 0.
    """

    prompt_id: str
    family: str
    group: str
    system: str
    answer: str | None
    score: float | None
    reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str
    logprob: float | None = None


def given_by_teacher(prompts: Sequence[Prompt], teacher: TeacherAnswers) -> list[Given]:
    """The teacher's answers in the order of the prompts; one that is nowhere mentioned has failed too."""
    given = []
    for prompt in prompts:
        if prompt.id in teacher.texts:
            read, written = teacher.tokens.get(prompt.id, (None, None))
            ended = teacher.finish.get(prompt.id, "unknown")
            given.append(Given(teacher.texts[prompt.id], "", read, written, ended))
        else:
            given.append(Given(None, teacher.failed.get(prompt.id) or "no answer was recorded"))
    return given


def judged(
    system: str, prompts: Sequence[Prompt], answers: Sequence[Given], scorers: Mapping[str, Scorer]
) -> list[Prediction]:
    """Score one system's answers, in the order of the prompts.

    A prompt that a student cannot read counts as answered wrongly, wherever an answer could have been scored:
    left out, it would raise the student's score, and its share of the teacher's.
    """
    rows, learns = [], system not in ("teacher", "baseline")
    for prompt, given in zip(prompts, answers, strict=True):
        value, reason = None, given.reason
        if given.text is not None:
            found = score(prompt.scorer, given.text, prompt.reference, scorers)
            value, reason = found.value, found.reason
        elif learns and score(prompt.scorer, "", prompt.reference, scorers).value is not None:
            value = 0.0
        rows.append(
            Prediction(
                prompt.id,
                prompt.family,
                prompt.group,
                system,
                given.text,
                value,
                reason,
                given.prompt_tokens,
                given.completion_tokens,
                given.finish_reason,
                given.logprob,
            )
        )
    return rows


def write_predictions(path: Path, rows: Sequence[Prediction]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text, whole = pa.string(), pa.int64()
    schema = pa.schema(
        [
            pa.field("prompt_id", text, nullable=False),
            pa.field("family", text, nullable=False),
            pa.field("group", text, nullable=False),
            pa.field("system", text, nullable=False),
            ("answer", text),
            ("score", pa.float64()),
            pa.field("reason", text, nullable=False),
            ("prompt_tokens", whole),
            ("completion_tokens", whole),
            pa.field("finish_reason", text, nullable=False),
            ("logprob", pa.float64()),
        ]
    )
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def read_predictions(path: Path) -> list[Prediction]:
    from pyarrow import parquet

    return [Prediction(**row) for row in parquet.read_table(path).to_pylist()]
