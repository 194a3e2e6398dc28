"""Two systems on the same prompts: the ratio and the difference of their scores, with score intervals.

Percentiles of a bootstrap and standard errors know only the disagreements that were seen. Where two systems
nearly always agree these are few, and intervals are too narrow, most of all where prompts come in groups. A
score interval takes the variance under each value that is tried instead, as Wilson's does for one proportion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.stats.intervals import UNDEFINED, Codes, Floats, Interval, dense, t_quantile, z_value

_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Table:
    """A two-by-two table in effective rows: independent right-or-wrong rows that would tell as much.

    `n` rows, of which `both` systems are right on some, one alone on others. None of them is whole.
    """

    n: float
    both: float
    first_only: float
    second_only: float

    def times(self, factor: float) -> Table:
        return Table(self.n * factor, self.both * factor, self.first_only * factor, self.second_only * factor)


def paired_ratio(
    first: Sequence[float] | Floats, second: Sequence[float] | Floats, groups: Codes, level: float = 0.95
) -> Interval:
    """Ratio of the mean scores of two systems with its score interval (Tang, Tang and Chan 2003, Statistics
    in Medicine 22:1217) at the effective number of rows; see `ratio_table`.

    Rare disagreements make the statistic skewed and one end too near: the quantile is corrected for that
    (Cornish and Fisher 1937), but only where it takes the end further away, for with few groups the
    skewness is hardly known.

    UNDEFINED where the second scores nothing; with fewer than two groups the ends are None.
    """
    rows, codes = dense(first, groups)
    others, _ = dense(second, groups)
    if others.sum() <= 0:
        return UNDEFINED
    value = float(rows.sum() / others.sum())
    table = ratio_table(rows, others, codes, level)
    if table is None:
        return Interval(value, None, None)
    z = z_value(level)
    skewed = (z * z - 1) / 6

    def from_above(share: float) -> float:
        score, skewness = ratio_score(table, share / (1 - share))
        return score - skewed * max(0.0, skewness)

    def from_below(share: float) -> float:
        score, skewness = ratio_score(table, share / (1 - share))
        return score - skewed * min(0.0, skewness)

    place = value / (1 + value)
    low, high = _fall(from_above, z, 0.0, place), _fall(from_below, -z, place, 1.0)
    return Interval(value, min(value, low / (1 - low)), max(value, high / (1 - high)))


def paired_difference(
    first: Sequence[float] | Floats, second: Sequence[float] | Floats, groups: Codes, level: float = 0.95
) -> Interval:
    """Difference of the mean scores of two systems with its score interval (Tango 1998, Statistics in
    Medicine 17:891) at the effective number of rows. UNDEFINED without rows; with fewer than two groups the
    ends are None."""
    rows, codes = dense(first, groups)
    others, _ = dense(second, groups)
    if len(rows) == 0:
        return UNDEFINED
    value = float(rows.mean() - others.mean())
    gap = rows - others
    shares = _shares(rows, others)
    spread = shares[1] + shares[2] - value**2
    effective = _effective(gap - value, codes, spread, level)
    if effective is None:
        return Interval(value, None, None)
    table = Table(effective, *(effective * share for share in shares))
    z = z_value(level)

    def at(difference: float) -> float:
        return difference_score(table, difference)

    return Interval(value, min(value, _fall(at, z, -1.0, value)), max(value, _fall(at, -z, value, 1.0)))


def fieller_ratio(
    numerator: Sequence[float] | Floats,
    denominator: Sequence[float] | Floats,
    groups: Codes,
    level: float = 0.95,
) -> Interval:
    """Ratio of two sums of values in [-1, 1] over the same rows, with Fieller's interval (Fieller 1954, J. of
    the Royal Statistical Society B 16:175) at the effective number of rows.

    Half a row (1, 0) and half a row (0, 1) are added, as Agresti and Min 2005 (Statistics in Medicine 24:729)
    add to paired counts, so that rows which all lie on one line do not look certain. UNDEFINED where the
    denominators sum to nothing or less; an interval that is unbounded, and fewer than two groups, give None
    for both ends.
    """
    top, codes = dense(numerator, groups)
    bottom, _ = dense(denominator, groups)
    if bottom.sum() <= 0:
        return UNDEFINED
    value = float(top.sum() / bottom.sum())
    residuals = top - value * bottom
    rows = _effective(residuals, codes, float(residuals.var()), level)
    if rows is None:
        return Interval(value, None, None)
    n, added = rows + 1, 0.5
    first, second = (rows * float(each.mean()) + added for each in (top, bottom))
    (a, b, c) = (rows * float((x * y).mean()) for x, y in ((bottom, bottom), (top, bottom), (top, top)))
    scaled = z_value(level) ** 2 / n
    # Of ratio^2 * a - 2 * ratio * b + c <= 0, with the moments about the mean of the n rows.
    a = second**2 / n**2 - scaled * ((a + added) / n - second**2 / n**2)
    b = first * second / n**2 - scaled * (b / n - first * second / n**2)
    c = first**2 / n**2 - scaled * ((c + added) / n - first**2 / n**2)
    if a <= 0:
        return Interval(value, None, None)
    half = math.sqrt(max(0.0, b * b - a * c)) / a
    return Interval(value, min(value, b / a - half), max(value, b / a + half))


def ratio_table(first: Floats, second: Floats, groups: Codes, level: float = 0.95) -> Table | None:
    """The effective table for the ratio of two systems' scores in [0, 1]; None with fewer than two groups.

    Credit that both have counts as `both`, what one has beyond the other as its own: for right and wrong
    answers these are the usual counts. Their number is that at which independent rows would fix the ratio
    as well as these rows do by the clustered variance of first - ratio * second, discounted by
    (t_{n-1} / t_{G-1})^2 as in `clustered_share`. Where no row departs from the ratio it is the number of
    groups.
    """
    total = second.sum()
    if total <= 0:
        raise ValueError("the second system scores nothing, so there is no ratio")
    ratio = float(first.sum() / total)
    shares = _shares(first, second)
    effective = _effective(first - ratio * second, groups, ratio * (shares[1] + shares[2]), level)
    return None if effective is None else Table(effective, *(effective * share for share in shares))


def ratio_score(table: Table, ratio: float) -> tuple[float, float]:
    """The score statistic, standard normal if the ratio of the scores is `ratio`, and its skewness then,
    within [-1, 1]. The statistic falls as the ratio grows.

    (first - ratio * second) over the square root of M * ratio * (b + c), with M the rows on which anyone is
    right and b and c the most likely shares of M on which one alone is, given the ratio: a quadratic
    equation, since rows on which nobody is right say nothing about a ratio.
    """
    if ratio <= 0:
        return math.inf, 0.0
    if ratio > 1:
        turned = Table(table.n, table.both, table.second_only, table.first_only)
        score, skewness = ratio_score(turned, 1 / ratio)
        return -score, -skewness
    a, b, c = table.both, table.second_only, table.first_only
    rows = a + b + c
    lead = ratio * (1 + ratio) * rows
    linear = b * ratio**2 - a * (1 - ratio**2) + c * (2 * ratio**2 - 1)
    first_only = (linear + math.sqrt(linear**2 + 4 * lead * c * ratio * (1 - ratio))) / (2 * lead)
    second_only = 1 - ratio + ratio * first_only
    both = 1 - first_only - second_only
    variance = rows * ratio * (first_only + second_only)
    third = rows * (both * (1 - ratio) ** 3 + first_only - second_only * ratio**3)
    skewness = max(-1.0, min(1.0, third / variance**1.5)) if variance > 1e-12 else 0.0
    return _standardised(a + c - ratio * (a + b), variance), skewness


def difference_score(table: Table, difference: float) -> float:
    """The score statistic, standard normal if the scores differ by `difference`; the restricted estimate is
    that of Tango 1998."""
    n, b, c = table.n, table.first_only, table.second_only
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    alone = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * alone + difference * (1 - difference))
    return _standardised(b - c - n * difference, variance)


def _shares(first: Floats, second: Floats) -> tuple[float, float, float]:
    """Mean credit of both, of the first beyond the second, and of the second beyond the first."""
    both, gap = np.minimum(first, second), first - second
    return float(both.mean()), float(np.maximum(gap, 0).mean()), float(np.maximum(-gap, 0).mean())


def _effective(residuals: Floats, groups: Codes, spread: float, level: float) -> float | None:
    """How many independent rows, each of variance `spread`, fix a mean as well as these residuals do.

    Likeness within groups only ever lowers the number: groups that happen to balance promise nothing.
    """
    n, count = len(residuals), int(groups.max()) + 1
    if count < 2:
        return None
    alone = float(residuals @ residuals) / (n * (n - 1))
    if alone <= 1e-18 or spread <= 1e-12:
        return float(count)
    sums = np.bincount(groups, weights=residuals)
    clustered = count / (count - 1) * float(sums @ sums) / n**2
    rough = (t_quantile(level, n - 1) / t_quantile(level, count - 1)) ** 2
    return n / (n - 1) * spread / max(clustered / rough, alone)


def _standardised(distance: float, variance: float) -> float:
    if variance > 0:
        return distance / math.sqrt(variance)
    return 0.0 if abs(distance) < 1e-12 else math.copysign(math.inf, distance)


def _fall(function: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function passes `level`, between `low` and `high`."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if function(middle) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2
