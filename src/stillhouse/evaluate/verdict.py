"""Has the student kept enough? The verdict on a margin that was declared before anything was scored.

Before the run: which margin its test prompts can decide. After it: whether the margin was held, was not, or
how many more prompts are needed to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillhouse import stats
from stillhouse.evaluate.figures import Sheet, both_scored
from stillhouse.records import Prompt

# What a plan assumes, for nothing was scored yet.
ACCURACY = 0.9  # share of prompts on which the teacher is right
AGREEMENT = 0.9  # share on which student and teacher are both right or both wrong

LIMIT = 0.025  # one-sided level on each side


@dataclass(frozen=True, slots=True)
class Foresight:
    """What test prompts can decide with a chance of 80 %, where the student is as good as the teacher.

    `n` prompts can be scored, in `groups`; `unscored` have no scorer or no reference. `alone` is the smallest
    margin that they decide if prompts of one group are no more alike than others, `alike` if they stand and
    fall together; None for fewer than two. `needed` prompts would decide the declared `margin` in the
    first case.
    """

    n: int
    groups: int
    unscored: int
    alone: float | None
    alike: float | None
    margin: float | None
    needed: int | None


def foresee(prompts: Iterable[Prompt], margin: float | None) -> Foresight:
    """What these test prompts can decide, taken that the teacher is right on 90 % of them and that the
    student is right and wrong with it on 90 %."""
    n, unscored, groups = 0, 0, set[str]()
    for prompt in prompts:
        if prompt.scorer is None or prompt.reference is None:
            unscored += 1
            continue
        n += 1
        groups.add(f"g{prompt.group}" if prompt.group else f"i{prompt.id}")

    def smallest(rows: int) -> float | None:
        table = stats.expected_table(float(rows), ACCURACY, AGREEMENT)
        return stats.decidable_margin(table) if rows > 1 else None

    needed = None if margin is None else stats.prompts_needed(ACCURACY, AGREEMENT, margin)
    return Foresight(n, len(groups), unscored, smallest(n), smallest(len(groups)), margin, needed)


def verdict(sheet: Sheet, margin: float | None, earlier: Sequence[float] = ()) -> dict[str, Any]:
    """The verdict on `margin`, as `evaluation.json` holds it.

    ruling    `non-inferior`, `inferior` or `not decided`; None where there is none to give
    reason    why there is none
    margin    the share of the teacher's score that may be lost; None where none was declared
    more      further prompts, grouped like these, that would decide with a chance of 80 % if the share kept
              is what it seems; 0 where it is decided, None where no number would or there is no ruling
    level     one-sided, on each side
    earlier   other margins that stood in the recipe when this run was scored before
    """
    student, teacher, codes = both_scored(sheet, np.ones(len(sheet.families), dtype=bool))
    decision = None if margin is None else stats.decide(student, teacher, codes, margin)
    if margin is None:
        reason = "no `evaluate.margin` is declared in the recipe"
    elif len(codes) == 0:
        reason = "no prompt was scored for both teacher and student"
    elif teacher.sum() == 0:
        reason = "the teacher scored nothing"
    elif decision is None:
        reason = "all scored prompts are of one group"
    else:
        reason = ""
    return {
        "ruling": None if decision is None else decision.ruling,
        "reason": reason,
        "margin": margin,
        "more": None if decision is None else decision.more,
        "level": LIMIT,
        "earlier": [other for other in earlier if other != margin],
    }


def margins_before(earlier: Any) -> list[float]:
    """The margins under which a run was scored before, by what `evaluation.json` then held."""
    found = earlier.get("verdict") if isinstance(earlier, dict) else None
    if not isinstance(found, dict):
        return []
    margins = [*found.get("earlier", ()), found.get("margin")]
    return list(dict.fromkeys(each for each in margins if each is not None))


def notes_on_verdict(found: dict[str, Any]) -> list[str]:
    notes = []
    if found["margin"] is not None and found["reason"]:
        notes.append(f"no verdict on the margin of {found['margin']:g}: {found['reason']}")
    if found["earlier"]:
        before = ", ".join(f"{margin:g}" for margin in found["earlier"])
        notes.append(
            f"this run was scored before under another margin ({before}): one that is chosen after scores "
            "were seen proves nothing"
        )
    return notes
