"""What the distillation is worth: what an answer costs of either, and after how many it has paid for itself.

Pure. Prices are facts about the run that are passed in; what is not known stays unknown and says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillhouse import stats
from stillhouse.evaluate.costs import flops_of_answers
from stillhouse.evaluate.predictions import Prediction
from stillhouse.evaluate.students import Measured
from stillhouse.money import Price

CAPABILITY, COST = 0.8, 0.2  # "distillation buys 80 % of the capability at 20 % of the cost"

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ledgered:
    """What only the run knows. `price` is the teacher's, None where it is not known or where the teacher is
    `served_here`; `machine` is US dollars for an hour of this machine; `billed` is what the teacher's answers
    cost this run (US dollars); collecting and training took so many seconds."""

    price: Price | None
    served_here: bool
    machine: float | None
    billed: float | None
    collect_seconds: float | None
    train_seconds: float | None


def flops_share(
    rows: Sequence[Prediction], sizes: Mapping[str, Measured], seed: int, resamples: int
) -> Figures:
    """FLOPs of the student's answers to those of the teacher's, over the prompts whose tokens are known for
    both, with a bootstrap interval over groups. Undefined where a model's size is not known."""
    known = {
        system: flops_of_answers(rows, system, sizes[system], []) if system in sizes else {}
        for system in ("teacher", "student")
    }
    shared = [name for name in known["student"] if name in known["teacher"]]
    return _share(
        rows,
        {name: known["student"][name][0] for name in shared},
        {name: known["teacher"][name][0] for name in shared},
        seed,
        resamples,
    )


def economics(
    rows: Sequence[Prediction], evaluation: Mapping[str, Any], run: Ledgered, seed: int, resamples: int
) -> Figures:
    """In US dollars, None where not known:

        teacher, student   dollars for 1,000 answers of either to these test prompts
        spent              for the teacher's answers, for training, and both
        break_even         answers after which the spending is saved, None when never or not known; `why`
        pairs              share of the score kept against share of the cost, once in FLOPs and once in
                           dollars, each with its interval and what becomes of the `claim` of 80 for 20:
                           holds, does not hold, not decided, unknown

    The student's dollars are the machine's price for the time that its tokens take at the measured speed, and
    so are the teacher's where it is served here.
    """
    speed = evaluation["tokens_per_second"]
    student = _by_time(rows, "student", run.machine, speed["student"])
    if run.served_here:
        teacher = _by_time(rows, "teacher", run.machine, speed["teacher"])
        asked = _hours(run.collect_seconds, run.machine)
    else:
        teacher = _by_price(rows, run.price)
        asked = run.billed
    shared = [name for name in student if name in teacher]
    training = _hours(run.train_seconds, run.machine)
    spent = None if asked is None or training is None else asked + training
    theirs, ours = (_mean([of[name] for name in shared]) for of in (teacher, student))
    dollars = _share(rows, {n: student[n] for n in shared}, {n: teacher[n] for n in shared}, seed, resamples)
    kept = evaluation["retention"]
    each = theirs if theirs is not None else _mean(list(teacher.values()))
    own = ours if ours is not None else _mean(list(student.values()))
    return {
        "machine": run.machine,
        "teacher": None if each is None else 1000 * each,
        "student": None if own is None else 1000 * own,
        "spent": {"teacher": asked, "training": training, "total": spent},
        "break_even": break_even(spent, theirs, ours, run),
        "pairs": [
            _pair("FLOPs per answer", kept, evaluation["flops_share"]),
            _pair("US dollars per answer", kept, dollars),
        ],
    }


def break_even(spent: float | None, teacher: float | None, student: float | None, run: Ledgered) -> Figures:
    """Answers n with n * teacher = spent + n * student, in US dollars for each answer."""
    missing = [
        words
        for known, words in (
            (run.machine, "the price of an hour of this machine (`evaluate.machine_price`)"),
            (run.served_here or run.price, "the teacher's price"),
            (run.served_here or run.billed is not None, "what the teacher's answers cost"),
        )
        if not known
    ]
    if spent is None or teacher is None or student is None:
        why = (
            f"not known: {', '.join(missing)}" if missing else "not known: speeds or token counts are missing"
        )
        return {"answers": None, "why": why}
    if teacher <= student:
        return {"answers": None, "why": "never: an answer of the student costs as much as one of the teacher"}
    return {"answers": spent / (teacher - student), "why": ""}


def claim(kept: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    """Whether at least 80 % of the capability is kept at no more than 20 % of the cost, by both intervals."""
    if kept["value"] is None or cost["value"] is None:
        return "unknown"
    ends = (kept["low"], kept["high"], cost["low"], cost["high"])
    if None in ends:
        return "not decided"
    if kept["low"] >= CAPABILITY and cost["high"] <= COST:
        return "holds"
    return "does not hold" if kept["high"] < CAPABILITY or cost["low"] > COST else "not decided"


def _pair(basis: str, kept: Mapping[str, Any], cost: Mapping[str, Any]) -> Figures:
    ends = ("value", "low", "high", "n")
    return {
        "basis": basis,
        "kept": {end: kept[end] for end in ends},
        "cost": {end: cost[end] for end in ends},
        "claim": claim(kept, cost),
    }


def _by_time(
    rows: Sequence[Prediction], system: str, machine: float | None, speed: float | None
) -> dict[str, float]:
    """US dollars of each answer by prompt id, from its tokens, the measured speed and an hour's price."""
    if machine is None or not speed:
        return {}
    return {
        row.prompt_id: row.completion_tokens / speed / 3600 * machine
        for row in rows
        if row.system == system and row.answer is not None and row.completion_tokens is not None
    }


def _by_price(rows: Sequence[Prediction], price: Price | None) -> dict[str, float]:
    if price is None:
        return {}
    return {
        row.prompt_id: price.of(row.prompt_tokens, row.completion_tokens)
        for row in rows
        if row.system == "teacher" and row.prompt_tokens is not None and row.completion_tokens is not None
    }


def _hours(seconds: float | None, machine: float | None) -> float | None:
    return None if seconds is None or machine is None else seconds / 3600 * machine


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(
    rows: Sequence[Prediction],
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    seed: int,
    resamples: int,
) -> Figures:
    """The ratio of two sums over the same prompts."""
    groups = {row.prompt_id: row.group for row in rows}
    codes = stats.group_codes([groups[name] for name in ours], list(ours))
    span = stats.bootstrap_ratio(
        list(ours.values()),
        [theirs[name] for name in ours],
        codes,
        np.random.default_rng(seed),
        resamples,
    )
    return {"value": span.value, "low": span.low, "high": span.high, "n": len(ours)}
