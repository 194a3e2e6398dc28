"""Further students beside the one that is released: other seeds, hard labels, fewer samples, other sizes.

Their answers stand in `predictions.parquet` under names of their own. Pure: rows in, plain values out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stillhouse import stats
from stillhouse.evaluate.costs import flops_of_answers
from stillhouse.evaluate.figures import Figures, Sheet, difference, lay_out, retention, standing
from stillhouse.evaluate.predictions import Prediction
from stillhouse.evaluate.students import Measured

Kind = Literal["seed", "hard_labels", "samples", "size"]


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
) -> Figures:
    """What the further students show; `seed` and `samples` are those of the student itself.

        seeds         rows (seed and standing) with the student's first; mean, low, high over seeds alone
                      (t interval within 0 and 1, without ends where all are equal, which does not show how
                      sure that is), sd, lowest, highest; None with one seed
        hard_labels   standing, samples, and `ahead`: the student's score minus that of hard labels, paired,
                      with its p (see `figures.difference`); None without
        curve         score by samples, ascending, the whole last; None without
        sizes         label, parameters, flops (of a mean answer), score, and retention, by parameters, with
                      the student's own, whose label is empty; None without

    A standing is score, low, high, n, unscored, failed (see `figures.standing`). An interval without `mean`
    is over prompts, clustered by group.
    """
    sheet = lay_out(rows, ("teacher", "student", *(student.name for student in students)))
    everywhere = np.ones(len(sheet.families), dtype=bool)
    scores = {name: standing(sheet, name, everywhere) for name in sheet.scores}
    seeds = [student for student in students if student.kind == "seed"]
    subsets = sorted((s for s in students if s.kind == "samples"), key=lambda one: one.samples)
    hard = next((student for student in students if student.kind == "hard_labels"), None)
    others = [student for student in students if student.kind == "size"]
    own = scores["student"]
    each = [{"seed": seed, **own}, *({"seed": s.seed, **scores[s.name]} for s in seeds)]
    return {
        "seeds": _spread(each) if seeds else None,
        "hard_labels": None
        if hard is None
        else {
            **scores[hard.name],
            "samples": hard.samples,
            "ahead": difference(sheet, everywhere, hard.name),
        },
        "curve": [
            *({"samples": s.samples, **scores[s.name]} for s in subsets),
            {"samples": samples, **own},
        ]
        if subsets
        else None,
        "sizes": _frontier(rows, sheet, {"student": "", **{s.name: s.label for s in others}}, sizes)
        if others
        else None,
    }


def _frontier(
    rows: Sequence[Prediction], sheet: Sheet, labels: Mapping[str, str], sizes: Mapping[str, Measured]
) -> list[Figures]:
    found, everywhere = [], np.ones(len(sheet.families), dtype=bool)
    for name, label in labels.items():
        costs = [flops for flops, _ in flops_of_answers(rows, name, sizes[name], []).values()]
        found.append(
            {
                "label": label,
                "parameters": sizes[name].parameters,
                "flops": sum(costs) / len(costs) if costs else None,
                **standing(sheet, name, everywhere),
                "retention": retention(sheet, everywhere, name),
            }
        )
    return sorted(found, key=lambda one: one["parameters"])


def _spread(of_seeds: list[Figures]) -> Figures:
    scores = [row["score"] for row in of_seeds if row["score"] is not None]
    mean = low = high = sd = None
    if scores:
        mean = statistics.mean(scores)
    if mean is not None and len(scores) > 1:
        sd = statistics.stdev(scores)
        half = stats.t_quantile(0.95, len(scores) - 1) * sd / len(scores) ** 0.5
        low, high = (max(0.0, mean - half), min(1.0, mean + half)) if sd else (None, None)
    return {
        "rows": of_seeds,
        "mean": mean,
        "low": low,
        "high": high,
        "sd": sd,
        "lowest": min(scores, default=None),
        "highest": max(scores, default=None),
    }
