"""Non-inferiority: has the student kept enough of the teacher's score, and how many prompts would tell?

The hypothesis is that the ratio of the scores is at most 1 - margin; "no significant difference" would be no
evidence of its contrary. Each side is tested at the one-sided level 0.025, that is by the ends of the 95 %
interval of `paired_ratio`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from stillhouse.stats.intervals import Codes, Floats, z_value
from stillhouse.stats.paired import Table, paired_ratio, ratio_score, ratio_table

LEVEL = 0.95  # two-sided; 0.025 on each side
POWER = 0.8
_MOST = 1e9  # prompts; a need for more is a need that no test set meets

Ruling = Literal["non-inferior", "inferior", "not decided"]


@dataclass(frozen=True, slots=True)
class Decision:
    """`more` prompts, grouped like these, would decide with a chance of 80 % if the ratio is what it seems;
    0 where it is decided, None where the ratio stands at the margin itself and no number would."""

    ruling: Ruling
    more: int | None


def decide(student: Floats, teacher: Floats, groups: Codes, margin: float) -> Decision | None:
    """Whether the student keeps at least 1 - margin of the teacher's score; None where there is no interval
    to tell by (the teacher scores nothing, fewer than two groups)."""
    span = paired_ratio(student, teacher, groups, LEVEL)
    if span.low is None or span.high is None or span.value is None:
        return None
    if span.low >= 1 - margin:
        return Decision("non-inferior", 0)
    if span.high < 1 - margin:
        return Decision("inferior", 0)
    table = ratio_table(student, teacher, groups, LEVEL)
    assert table is not None
    factor = _growth(table, 1 - margin)
    # The power is reckoned without the skewness that the interval allows for, so it may call for fewer.
    more = None if factor is None else max(1, math.ceil((factor - 1) * len(student)))
    return Decision("not decided", more)


def expected_table(n: float, accuracy: float, agreement: float, ratio: float = 1.0) -> Table:
    """What `n` independent prompts show on average, where the teacher is right on a share `accuracy` of them,
    both are right or both wrong on `agreement`, and the student keeps `ratio` of the teacher's score.

    Raises ValueError where these contradict one another.
    """
    lost = accuracy * (1 - ratio)
    student_only = (1 - agreement - lost) / 2
    teacher_only = student_only + lost
    if not (student_only >= 0 and 0 <= teacher_only <= accuracy and accuracy + student_only <= 1):
        raise ValueError(f"no table has accuracy {accuracy}, agreement {agreement} and ratio {ratio}")
    return Table(n, n * (accuracy - teacher_only), n * student_only, n * teacher_only)


def power(table: Table, bound: float) -> float:
    """The chance that data like `table`'s show its ratio to be on its own side of `bound`.

    The statistic is about normal with the mean and variance that z = first - bound * second has by the
    table, against the variance under the bound (Nam and Blackwelder 2002, Statistics in Medicine 21:689).
    """
    a, b, c = table.both, table.second_only, table.first_only
    distance = a + c - bound * (a + b)
    score, _ = ratio_score(table, bound)
    if distance == 0 or score == 0:
        return 0.0
    under_bound = distance / score
    spread = a * (1 - bound) ** 2 + c + bound**2 * b - distance**2 / table.n
    if spread <= 0:
        return float(abs(score) > z_value(LEVEL))
    return NormalDist().cdf((abs(distance) - z_value(LEVEL) * under_bound) / math.sqrt(spread))


def decidable_margin(table: Table) -> float:
    """The smallest margin that data like `table`'s would show to be kept with a chance of 80 %; near 1 for a
    handful of rows."""
    low, high = 0.0, 1.0
    ratio = (table.both + table.first_only) / (table.both + table.second_only)
    for _ in range(50):
        middle = (low + high) / 2
        bound = 1 - middle
        if bound < ratio and power(table, bound) >= POWER:
            high = middle
        else:
            low = middle
    return high


def prompts_needed(accuracy: float, agreement: float, margin: float, ratio: float = 1.0) -> int | None:
    """Independent prompts with which a margin is decided with a chance of 80 %; None where none suffice."""
    table = expected_table(1.0, accuracy, agreement, ratio)
    needed = _growth(table, 1 - margin)
    return None if needed is None else math.ceil(needed)


def _growth(table: Table, bound: float) -> float | None:
    """By what factor there must be more rows like these, for a power of 80 %."""
    low, high = 0.0, 1.0
    while power(table.times(high), bound) < POWER:
        low, high = high, high * 2
        if table.n * high > _MOST:
            return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power(table.times(middle), bound) >= POWER else (middle, high)
    return high
