"""A fixed battery of general prompts, answered by the student before and after training.

The same for every run, so that what a narrow training wore away is seen though no test prompt asks for it.
Each prompt stands alone; there are few, so only a large change is certain.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from stillhouse import stats
from stillhouse.evaluate.fidelity import mean_change
from stillhouse.evaluate.figures import RIGHT, Figures
from stillhouse.evaluate.predictions import Prediction
from stillhouse.records import Message, Prompt

DATA = Path(__file__).with_name("battery.toml")
MAX_TOKENS = 64


@cache
def battery_prompts() -> tuple[Prompt, ...]:
    """In the order of the file; the id of each is its family and place."""
    families = tomllib.loads(DATA.read_text(encoding="utf-8"))
    return tuple(
        Prompt(
            f"{family}-{place}", (Message("user", text),), family, reference=reference, scorer=of["scorer"]
        )
        for family, of in families.items()
        for place, (text, reference) in enumerate(of["prompts"], 1)
    )


def battery_figures(rows: Sequence[Prediction]) -> Figures:
    """Share of right answers `before` and `after`, the `change` with its interval, how many prompts were
    `lost` and `gained`, McNemar's exact p, and before and after by family. What was not asked is None."""
    scores: dict[str, dict[str, float]] = {"student_before": {}, "student": {}}
    for row in rows:
        if row.score is not None:
            scores[row.system][row.prompt_id] = row.score
    before, after = scores["student_before"], scores["student"]
    both = [name for name in after if name in before]
    change = mean_change(
        np.array([after[name] - before[name] for name in both], dtype=np.float64),
        np.arange(len(both), dtype=np.intp),
    )
    lost = sum(before[name] >= RIGHT > after[name] for name in both)
    gained = sum(after[name] >= RIGHT > before[name] for name in both)
    families: dict[str, list[str]] = {}
    for row in rows:
        if row.system == "student":
            families.setdefault(row.family, []).append(row.prompt_id)
    return {
        "n": len(after),
        "before": _mean(before),
        "after": _mean(after),
        "change": {"value": change.value, "low": change.low, "high": change.high},
        "lost": lost,
        "gained": gained,
        "p": stats.mcnemar(lost, gained) if both else None,
        "families": {
            family: {
                "n": len(names),
                "before": _mean({name: before[name] for name in names if name in before}),
                "after": _mean({name: after[name] for name in names if name in after}),
            }
            for family, names in families.items()
        },
    }


def _mean(scores: dict[str, float]) -> float | None:
    return sum(scores.values()) / len(scores) if scores else None
