"""Both answers to many prompts of one distribution, with what the student told.

A part of the pool is written as soon as it is answered, so that a benchmark that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stillhouse.cascade.calibration import Calibration, Rows, is_fitted_on, risk_of
from stillhouse.cascade.scores import Sketch
from stillhouse.models.flops import flops_per_answer
from stillhouse.pipeline.cascading import Told, rows_of, told_answers
from stillhouse.records import Prompt
from stillhouse.scoring import score, scorers
from stillhouse.stats import Floats, Marks

SEED = 17
REPEATS = 200
BROKEN = 15  # of 200 calibrations, where 10 are allowed on average
CALIBRATED = 3000  # prompts of a calibration
NO_SKETCH = Sketch(bytes(128))  # the pool's signals hold what a sketch said


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows whose loss is what keeping them loses of the teacher's score, gains not set against it; `net` is
    with gains, and FLOPs are of either answer [N]."""

    rows: Rows
    net: Floats
    student_flops: Floats
    teacher_flops: Floats

    def netted(self) -> Rows:
        return replace(self.rows, losses=self.net, signed=True)

    def part(self, chosen: np.ndarray) -> Pool:
        return Pool(
            self.rows.part(chosen), self.net[chosen], self.student_flops[chosen], self.teacher_flops[chosen]
        )


def drawn(pool: Pool, rng: np.random.Generator, count: int) -> Pool:
    """So many independent draws from the pool."""
    return pool.part(rng.integers(0, len(pool.rows.ids), count))


def judged_by(pool: Pool) -> Pool:
    """The rows of the pool that no score is fitted on: all that the promise is made of, so that the true loss
    under a threshold is known and not estimated."""
    return pool.part(np.array([not is_fitted_on(id) for id in pool.rows.ids], dtype=np.bool_))


def kept_by(calibration: Calibration, signals: Floats) -> Marks:
    threshold = calibration.promise.threshold
    risk = risk_of(calibration, signals)
    return np.zeros(len(risk), np.bool_) if threshold is None else risk <= threshold


@dataclass(frozen=True, slots=True)
class Heard:
    """A teacher's answer; FLOPs are 0 where they mean nothing."""

    text: str
    flops: float


def answered_by(folder: str, max_tokens: int) -> Callable[[Sequence[Prompt]], list[Heard | None]]:
    """A local model as the teacher."""

    def answer(prompts: Sequence[Prompt]) -> list[Heard | None]:
        told = told_answers(folder, prompts, max_tokens)
        flops = flops_of(folder, told)
        return [None if one is None else Heard(one.text, f) for one, f in zip(told, flops, strict=True)]

    return answer


def flops_of(folder: str, told: Sequence[Told | None]) -> list[float]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    return [
        0.0 if one is None else flops_per_answer(config, one.prompt_tokens, one.completion_tokens)
        for one in told
    ]


def answered(
    file: Path,
    prompts: Sequence[Prompt],
    teacher: Callable[[Sequence[Prompt]], list[Heard | None]],
    student: str,
    sketch: Sketch,
    max_tokens: int,
) -> Pool:
    """Both answers to `prompts`, judged by the prompts' own scorers; read from `file` where it is there."""
    if not file.exists():
        _write(file, prompts, teacher(prompts), student, sketch, max_tokens)
    with np.load(file) as told:
        rows = Rows(
            tuple(told["ids"].tolist()),
            tuple(told["families"].tolist()),
            told["signals"],
            np.maximum(told["net"], 0.0),
            told["teacher"],
            told["student"],
            told["differs"],
            False,
        )
        return Pool(rows, told["net"], told["student_flops"], told["teacher_flops"])


def joined(pools: Sequence[Pool]) -> Pool:
    rows = [pool.rows for pool in pools]
    whole = Rows(
        tuple(id for each in rows for id in each.ids),
        tuple(name for each in rows for name in each.families),
        np.concatenate([each.signals for each in rows]),
        np.concatenate([each.losses for each in rows]),
        np.concatenate([each.teacher for each in rows]),
        np.concatenate([each.student for each in rows]),
        np.concatenate([each.differs for each in rows]),
        False,
    )
    return Pool(
        whole,
        np.concatenate([pool.net for pool in pools]),
        np.concatenate([pool.student_flops for pool in pools]),
        np.concatenate([pool.teacher_flops for pool in pools]),
    )


def _write(
    file: Path,
    prompts: Sequence[Prompt],
    heard: Sequence[Heard | None],
    student: str,
    sketch: Sketch,
    max_tokens: int,
) -> None:
    told, known = told_answers(student, prompts, max_tokens), scorers()
    theirs, own, flops = {}, {}, {}
    worked = flops_of(student, told)
    for prompt, other, answer, spent in zip(prompts, heard, told, worked, strict=True):
        if other is not None and answer is not None:
            theirs[prompt.id] = (
                other.text,
                score(prompt.scorer, other.text, prompt.reference, known).value,
            )
            own[prompt.id] = score(prompt.scorer, answer.text, prompt.reference, known).value
            flops[prompt.id] = (spent, other.flops)
    rows = rows_of(prompts, told, theirs, own, sketch, signed=True)
    both = np.array([flops[id] for id in rows.ids])
    part = file.with_suffix(".part.npz")
    np.savez(
        part,
        ids=np.array(rows.ids),
        families=np.array(rows.families),
        signals=rows.signals,
        net=rows.losses,
        teacher=rows.teacher,
        student=rows.student,
        differs=rows.differs,
        student_flops=both[:, 0],
        teacher_flops=both[:, 1],
    )
    part.rename(file)
