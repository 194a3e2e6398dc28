"""focus: where further prompts would help most, decided from the scores of an earlier student. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PRIOR = 10  # groups of prompts that a family must show before its own loss counts as much as everybody's


@dataclass(frozen=True, slots=True)
class Scored:
    """A family's prompts on which teacher and student were both scored: their number, the number of their
    groups, and the mean scores."""

    family: str
    prompts: int
    groups: int
    teacher: float
    student: float

    @property
    def lost(self) -> float:
        """Score that the student lost on a prompt, on average; negative where it is ahead."""
        return self.teacher - self.student


def expected_losses(families: Sequence[Scored]) -> dict[str, float]:
    """The score lost on a prompt of each family, drawn towards the mean loss over all prompts.

    With G groups it is (G * own + PRIOR * mean) / (G + PRIOR): the posterior mean where groups differ within
    a family PRIOR times as much (in variance) as families do. A family of three prompts says little, and two
    unlucky answers must not draw the round. Groups are counted, for prompts of one group are alike. It is at
    most the teacher's own score: what the teacher cannot do is not lost.
    """
    total = sum(of.prompts for of in families)
    if total == 0:
        return {}
    mean = sum(of.prompts * of.lost for of in families) / total
    drawn = {of.family: (of.groups * of.lost + PRIOR * mean) / (of.groups + PRIOR) for of in families}
    return {of.family: min(of.teacher, drawn[of.family]) for of in families}


def shares(families: Sequence[Scored], count: int) -> dict[str, int]:
    """How many of `count` further prompts each family gets; families without any are left out.

    In proportion to the score that is expected to be lost in the family as a whole (its prompts times
    `expected_losses`), in whole numbers by the largest remainders, equal ones by name. Empty where nothing
    is lost.
    """
    losses = expected_losses(families)
    weights = {of.family: max(0.0, of.prompts * losses[of.family]) for of in families}
    total = sum(weights.values())
    if total <= 0:
        return {}
    exact = {family: count * weight / total for family, weight in weights.items()}
    given = {family: int(part) for family, part in exact.items()}
    by_remainder = sorted(exact, key=lambda family: (given[family] - exact[family], family))
    for family in by_remainder[: count - sum(given.values())]:
        given[family] += 1
    return {family: number for family, number in sorted(given.items()) if number}
