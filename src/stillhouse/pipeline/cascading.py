"""A cascade's calibration: the run's student answers the test prompts again, and tells how sure it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stillhouse.cascade.calibration import (
    Calibration,
    Rows,
    area,
    calibrate,
    curve,
    differ,
    held_back,
    mean_logprob_order,
    risk_of,
    written,
)
from stillhouse.cascade.risk import LEVEL, MOST
from stillhouse.cascade.scores import TOP, Sketch, Token, signals_of, sketch_of, unfamiliar
from stillhouse.errors import UsageError
from stillhouse.models import weights_digest
from stillhouse.records import Message, Progress, Prompt, Watch, unwatched
from stillhouse.scoring import Scorer, score
from stillhouse.scoring import scorers as installed_scorers
from stillhouse.workspace import RunFolder, write_json

BATCH = 256  # prompts answered between two reports of progress


@dataclass(frozen=True, slots=True)
class Told:
    """A student's answer as its server would tell it."""

    text: str
    finish_reason: str
    tokens: tuple[Token, ...]
    prompt_tokens: int
    completion_tokens: int


def told_answers(
    folder: str, prompts: Sequence[Prompt], max_tokens: int, done: Callable[[int], None] = lambda more: None
) -> list[Told | None]:
    """The greedy answers of the model in `folder`, in the order of the prompts; None where it cannot read
    one. `done` is told how many more there are after each batch."""
    from stillhouse.models.local import Request, generate, load_model, prompt_ids, threads_for

    model = load_model(folder)
    requests: dict[int, Request] = {}
    for index, prompt in enumerate(prompts):
        try:
            ids = prompt_ids(model, prompt.messages)
        except UsageError:
            continue
        room = max_tokens if model.context is None else min(max_tokens, model.context - len(ids))
        if ids and room > 0:
            requests[index] = Request(prompt_ids=ids, max_tokens=room, logprobs=TOP)
    told: list[Told | None] = [None] * len(prompts)
    done(len(prompts) - len(requests))
    ranked = sorted(requests, key=lambda index: len(requests[index].prompt_ids))
    with threads_for(model):
        for start in range(0, len(ranked), BATCH):
            batch = ranked[start : start + BATCH]
            for index, answer in zip(batch, generate(model, [requests[i] for i in batch]), strict=True):
                tokens = tuple(
                    Token(each.logprob, tuple(value for _, value in each.top))
                    for each in answer.logprobs or ()
                )
                told[index] = Told(
                    answer.text,
                    answer.finish_reason,
                    tokens,
                    answer.prompt_tokens,
                    answer.completion_tokens,
                )
            done(len(batch))
    return told


def asked_text(prompt: Prompt) -> str:
    """What of a prompt is compared with the training prompts: all that is said in it, roles left out."""
    return "\n".join(message.content for message in prompt.messages)


def rows_of(
    prompts: Sequence[Prompt],
    told: Sequence[Told | None],
    teacher: Mapping[str, tuple[str, float | None]],
    student: Mapping[str, float | None],
    sketch: Sketch,
    signed: bool = False,
) -> Rows:
    """The rows of prompts that both answered. `teacher` has text and score by prompt id, `student` the score.

    Where nothing is scored the loss is that the answers differ; where some rows are, the others are left out.
    """
    scored = any(value is not None for value in student.values())
    taken, losses, scores = [], [], []
    for prompt, answer in zip(prompts, told, strict=True):
        if answer is None or prompt.id not in teacher:
            continue
        text, theirs = teacher[prompt.id]
        own = student.get(prompt.id)
        if scored and (theirs is None or own is None):
            continue
        other = differ(answer.text, text)
        if not scored or theirs is None or own is None:
            theirs, own = 1.0, 1.0 - other
        taken.append((prompt, answer, other))
        losses.append(theirs - own if signed else max(0.0, theirs - own))
        scores.append((theirs, own))
    signals = [
        signals_of(answer.tokens, answer.text, answer.finish_reason, unfamiliar(sketch, asked_text(prompt)))
        for prompt, answer, _ in taken
    ]
    pairs = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return Rows(
        tuple(prompt.id for prompt, _, _ in taken),
        tuple(prompt.family for prompt, _, _ in taken),
        np.array(signals, dtype=np.float64),
        np.array(losses, dtype=np.float64),
        pairs[:, 0],
        pairs[:, 1],
        np.array([other for _, _, other in taken], dtype=np.bool_),
        signed and scored,
    )


def calibrate_run(
    run: RunFolder,
    most: float = MOST,
    level: float = LEVEL,
    signed: bool = False,
    watch: Watch = unwatched,
    scorers: Mapping[str, Scorer] | None = None,
) -> tuple[Calibration, dict[str, Any]]:
    """Let a finished run's student answer its test prompts, compare with the teacher's recorded answers, and
    write `cascade.json` and `cascade-curve.json`. Nobody else is asked.

    Returns the calibration and the figures of the curve:

        n, fitted            rows that set the threshold, and rows that the score was fitted on
        left_out             test prompts without an answer or a score of either
        teacher, student     mean score over the n rows
        promise              see `risk.Guarantee`; most, level and what is lost (`regressions`, `score`,
                             `differences`)
        families             the promises of families, by name
        score, logprob       by the fitted score and by the mean log-probability: `area`, what is lost
                             less than by random deferral on average over all shares, and `points`

    Raises UsageError for a run that was not evaluated, or that has too few rows.
    """
    known = installed_scorers() if scorers is None else scorers
    learned, tested = prompts_of(run)
    teacher = teacher_of(run)
    sketch = sketch_of(asked_text(prompt) for prompt in learned)
    asked = [prompt for prompt in tested if prompt.id in teacher]
    seen = 0

    def done(more: int) -> None:
        nonlocal seen
        seen += more
        watch(Progress("cascade", seen, len(asked), "answers"))

    told = told_answers(str(run.student), asked, max_tokens_of(run), done)
    student = {
        prompt.id: None if one is None else score(prompt.scorer, one.text, prompt.reference, known).value
        for prompt, one in zip(asked, told, strict=True)
    }
    rows = rows_of(asked, told, teacher, student, sketch, signed)
    calibration = calibrate(rows, sketch, weights_digest(run.student), most, level)
    figures = _figures(rows, calibration, any(value is not None for value in student.values()))
    figures["left_out"] = len(tested) - len(rows.ids)
    write_json(run.cascade, written(calibration))
    write_json(run.cascade_curve, figures)
    return calibration, figures


def _figures(rows: Rows, calibration: Calibration, scored: bool) -> dict[str, Any]:
    kept = held_back(rows)
    by_score, by_logprob = risk_of(calibration, kept.signals), mean_logprob_order(kept)
    return {
        "n": len(kept.ids),
        "fitted": len(rows.ids) - len(kept.ids),
        "teacher": float(kept.teacher.mean()),
        "student": float(kept.student.mean()),
        "most": calibration.most,
        "level": calibration.level,
        "lost": ("score" if rows.signed else "regressions") if scored else "differences",
        "promise": asdict(calibration.promise),
        "families": {name: asdict(each) for name, each in calibration.families.items()},
        "score": {"area": area(kept.losses, by_score), "points": curve(kept, by_score)},
        "logprob": {"area": area(kept.losses, by_logprob), "points": curve(kept, by_logprob)},
    }


def prompts_of(run: RunFolder) -> tuple[list[Prompt], list[Prompt]]:
    """Those that were learned from, and those that were tested on."""
    from pyarrow import parquet

    if not run.prompts.exists() or not run.predictions.exists():
        raise UsageError(
            f"the run {run.root.name} was not evaluated",
            "a cascade is calibrated on the test prompts that its teacher answered",
            "finish it with `stillhouse run RECIPE`",
        )
    rows: dict[str, list[Prompt]] = {"train": [], "test": []}
    for row in parquet.read_table(run.prompts).to_pylist():
        split, messages = row.pop("split"), tuple(Message(**each) for each in row.pop("messages"))
        rows[split].append(Prompt(messages=messages, **{k: v for k, v in row.items() if k != "tools"}))
    return rows["train"], rows["test"]


def teacher_of(run: RunFolder) -> dict[str, tuple[str, float | None]]:
    from stillhouse.evaluate import read_predictions

    return {
        row.prompt_id: (row.answer, row.score)
        for row in read_predictions(run.predictions)
        if row.system == "teacher" and row.answer is not None
    }


def max_tokens_of(run: RunFolder) -> int:
    from stillhouse.recipe import load_recipe

    recipe = load_recipe(run.recipe)
    return recipe.evaluate.max_tokens or recipe.collect.max_tokens
