"""Further students beside the one that is released: other seeds, hard labels, fewer samples, other sizes.

Their answers stand in `predictions.parquet` under names of their own. Pure: rows in, plain values out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stillhouse import stats
from stillhouse.evaluate.costs import flops_of_answers
from stillhouse.evaluate.fidelity import mean_change
from stillhouse.evaluate.predictions import Prediction
from stillhouse.evaluate.students import Measured

Kind = Literal["seed", "hard_labels", "samples", "size"]
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Further:
    """A student trained for comparison: its system in the rows is `name`, and it learned from `samples`.
    `label` says how it began, where that is another way."""

    name: str
    kind: Kind
    seed: int
    samples: int
    folder: Path
    label: str = ""


def further_figures(
    rows: Sequence[Prediction],
    students: Sequence[Further],
    seed: int,
    samples: int,
    sizes: Mapping[str, Measured],
    resamples: int,
) -> Figures:
    """What the further students show; `seed` and `samples` are those of the student itself.

        seeds         rows (seed, score, low, high, n) with the student's first; mean, low, high over seeds
                      alone (t interval), sd, lowest, highest; None with one seed
        hard_labels   score, low, high, n, samples, and `ahead`: the student's score minus that of hard
                      labels, paired; None without
        curve         score by samples, ascending, the whole last; None without
        sizes         label, parameters, flops (of a mean answer), score, and retention, by parameters, with
                      the student's own, whose label is empty; None without

    An interval without `mean` is over prompts, clustered by group.
    """
    seeds = [student for student in students if student.kind == "seed"]
    subsets = sorted((s for s in students if s.kind == "samples"), key=lambda one: one.samples)
    hard = next((student for student in students if student.kind == "hard_labels"), None)
    others = [student for student in students if student.kind == "size"]
    own = _standing(rows, "student")
    each = [{"seed": seed, **own}, *({"seed": s.seed, **_standing(rows, s.name)} for s in seeds)]
    return {
        "seeds": _spread(each) if seeds else None,
        "hard_labels": None
        if hard is None
        else {**_standing(rows, hard.name), "samples": hard.samples, "ahead": _ahead(rows, hard.name)},
        "curve": [
            *({"samples": s.samples, **_standing(rows, s.name)} for s in subsets),
            {"samples": samples, **own},
        ]
        if subsets
        else None,
        "sizes": _frontier(rows, {"student": "", **{s.name: s.label for s in others}}, sizes, seed, resamples)
        if others
        else None,
    }


def _frontier(
    rows: Sequence[Prediction],
    labels: Mapping[str, str],
    sizes: Mapping[str, Measured],
    seed: int,
    resamples: int,
) -> list[Figures]:
    found = []
    for name, label in labels.items():
        costs = [flops for flops, _ in flops_of_answers(rows, name, sizes[name], []).values()]
        found.append(
            {
                "label": label,
                "parameters": sizes[name].parameters,
                "flops": sum(costs) / len(costs) if costs else None,
                **_standing(rows, name),
                "retention": _kept(rows, name, seed, resamples),
            }
        )
    return sorted(found, key=lambda one: one["parameters"])


def _kept(rows: Sequence[Prediction], system: str, seed: int, resamples: int) -> Figures:
    """The share of the teacher's score, over the prompts that both were scored on."""
    theirs = {row.prompt_id: row.score for row in rows if row.system == "teacher" and row.score is not None}
    ours = [row for row in rows if row.system == system and row.score is not None and row.prompt_id in theirs]
    span = stats.bootstrap_ratio(
        [row.score or 0.0 for row in ours],
        [theirs[row.prompt_id] for row in ours],
        stats.group_codes([row.group for row in ours], [row.prompt_id for row in ours]),
        np.random.default_rng(seed),
        resamples,
    )
    return {"value": span.value, "low": span.low, "high": span.high, "n": len(ours)}


def _spread(of_seeds: list[Figures]) -> Figures:
    scores = [row["score"] for row in of_seeds if row["score"] is not None]
    mean = low = high = sd = None
    if scores:
        mean = statistics.mean(scores)
    if mean is not None and len(scores) > 1:
        sd = statistics.stdev(scores)
        half = stats.t_quantile(0.95, len(scores) - 1) * sd / len(scores) ** 0.5
        low, high = mean - half, mean + half
    return {
        "rows": of_seeds,
        "mean": mean,
        "low": low,
        "high": high,
        "sd": sd,
        "lowest": min(scores, default=None),
        "highest": max(scores, default=None),
    }


def _standing(rows: Sequence[Prediction], system: str) -> Figures:
    scored = [row for row in rows if row.system == system and row.score is not None]
    codes = stats.group_codes([row.group for row in scored], [row.prompt_id for row in scored])
    span = stats.clustered_share([row.score or 0.0 for row in scored], codes)
    return {"score": span.value, "low": span.low, "high": span.high, "n": len(scored)}


def _ahead(rows: Sequence[Prediction], other: str) -> Figures:
    theirs = {row.prompt_id: row.score for row in rows if row.system == other and row.score is not None}
    ours = [
        row for row in rows if row.system == "student" and row.score is not None and row.prompt_id in theirs
    ]
    codes = stats.group_codes([row.group for row in ours], [row.prompt_id for row in ours])
    gaps = np.array([(row.score or 0.0) - theirs[row.prompt_id] for row in ours], dtype=np.float64)
    span = mean_change(gaps, codes)
    return {"value": span.value, "low": span.low, "high": span.high, "n": len(ours)}
