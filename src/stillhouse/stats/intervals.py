"""Intervals for scores of one system, and the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

# Group sums drawn at once by the bootstrap: bounds its memory to about 16 MB an array, however many groups.
_BLOCK = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its two-sided interval. A None end is unbounded or unknown; a None value undefined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Interval(None, None, None)


def group_codes(groups: Sequence[str], ids: Sequence[str]) -> Codes:
    """One integer 0..G-1 for each row; a row whose group is empty is a group of its own, by its id."""
    labels = [f"g{group}" if group else f"i{row}" for group, row in zip(groups, ids, strict=True)]
    order = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    return np.array([order[label] for label in labels], dtype=np.intp)


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of independent rows (Wilson 1927, JASA 22:209).

    `successes` may be a sum of scores in [0, 1]: their variance is at most that of a proportion, so the
    interval is then too wide rather than too narrow. `n` may be an effective number. UNDEFINED for n = 0.
    """
    if n <= 0:
        return UNDEFINED
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    z = z_value(level)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must not push an end past the estimate, where the two are equal (0 of n, n of n).
    return Interval(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def clustered_error(values: Sequence[float] | Floats, groups: Codes) -> float | None:
    """Standard error of the mean when groups, not rows, are drawn. None with fewer than two groups.

    sqrt(G / (G - 1) * sum_g (sum_i (x_gi - mean))^2) / n, which with groups of one row is the usual
    s / sqrt(n) (Miller 2024, arXiv:2411.00640, with the finite-sample factor of Liang and Zeger 1986).
    """
    rows, codes = dense(values, groups)
    count = int(codes.max()) + 1 if len(codes) else 0
    if count < 2:
        return None
    sums = np.bincount(codes, weights=rows - rows.mean(), minlength=count)
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(rows)


def clustered_share(scores: Sequence[float] | Floats, groups: Codes, level: float = 0.95) -> Interval:
    """Mean of scores in [0, 1] with Wilson's interval at the effective number of independent rows.

    That number is n over the design effect (Kish 1965), the clustered variance of the mean to that of n
    independent rows, times (t_{n-1} / t_{G-1})^2 because G groups show that variance only roughly (Korn and
    Graubard 1998), and at most n: without groups this is Wilson's interval itself. Where all scores are
    equal nothing can be learned about likeness within a group, and it is the number of groups. With one
    group of several rows the ends are None; with no row all is None.
    """
    rows, codes = dense(scores, groups)
    if len(rows) == 0:
        return UNDEFINED
    # Clipped because a mean of ones and zeros may leave [0, 1] by rounding.
    mean = float(np.clip(rows.mean(), 0.0, 1.0))
    error = clustered_error(rows, codes)
    if error is None and len(rows) > 1:
        return Interval(mean, None, None)
    if error is None or np.all(rows == rows[0]):
        effective = float(codes.max()) + 1
    else:
        n = len(rows)
        rough = (t_quantile(level, n - 1) / t_quantile(level, int(codes.max()))) ** 2
        effective = min(n, rough * n / (n - 1) * mean * (1 - mean) / error**2) if error > 0 else n * rough
    span = wilson(mean * effective, effective, level)
    return Interval(mean, span.low, span.high)


def bootstrap_ratio(
    numerator: Sequence[float] | Floats,
    denominator: Sequence[float] | Floats,
    groups: Codes,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Ratio of two sums over the same rows, with an expanded percentile interval from resampled groups.

    With a denominator of ones it is the paired bootstrap of a mean difference.

    Plain percentiles of few groups lie too near to each other: the tail drawn is Phi(-sqrt(G / (G - 1)) *
    t_{G-1}) in place of Phi(-z) (Hesterberg 2015, The American Statistician 69:371, section 4.3).
    Retention is the ratio of student to teacher scores, the share of the gap closed that of
    (student - before) to (teacher - before): rows stay paired in every draw. UNDEFINED where the
    denominators sum to nothing or less. A draw in which they do could be anything, so it counts as minus
    infinity for the low end and plus infinity for the high end; an infinite end is None. Fewer than two
    groups give no interval.
    """
    top, codes = dense(numerator, groups)
    bottom, _ = dense(denominator, groups)
    if bottom.sum() <= 0:
        return UNDEFINED
    value = float(top.sum() / bottom.sum())
    count = int(codes.max()) + 1
    if count < 2:
        return Interval(value, None, None)
    top_by_group = np.bincount(codes, weights=top, minlength=count)
    bottom_by_group = np.bincount(codes, weights=bottom, minlength=count)
    tops, bottoms = np.empty(resamples), np.empty(resamples)
    step = max(1, _BLOCK // count)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, count, size=(min(step, resamples - start), count))
        tops[start : start + step] = top_by_group[drawn].sum(axis=1)
        bottoms[start : start + step] = bottom_by_group[drawn].sum(axis=1)
    defined = bottoms > 0
    ratios = np.divide(tops, bottoms, out=np.zeros(resamples), where=defined)
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * t_quantile(level, count - 1))
    low = _order_statistic(np.where(defined, ratios, -np.inf), tail)
    high = _order_statistic(np.where(defined, ratios, np.inf), 1 - tail)
    return Interval(value, low, high)


def independent_difference(first: Interval, second: Interval) -> Interval:
    """First less second, for figures of separate rows whose intervals have one level.

    The ends are taken from theirs, so that it is as lopsided as they are (MOVER: Zou and Donner 2008,
    doi:10.1002/sim.3095). Unknown where an end is.
    """
    a, a_low, a_high = first.value, first.low, first.high
    b, b_low, b_high = second.value, second.low, second.high
    if a is None or a_low is None or a_high is None or b is None or b_low is None or b_high is None:
        return UNDEFINED
    return Interval(
        a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)
    )


def t_quantile(level: float, freedom: int) -> float:
    """The t for which a Student variable with so many degrees of freedom lies in [-t, t] with chance `level`.

    Exact for 1 and 2 degrees, else the expansion of Abramowitz and Stegun 26.7.5: within 0.5 % at 95 %.
    """
    z = z_value(level)
    if freedom == 1:
        return math.tan(math.pi * level / 2)
    if freedom == 2:
        return level * math.sqrt(2 / (1 - level * level))
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(freedom) ** power for power, term in enumerate(terms))


def z_value(level: float) -> float:
    """The z for which a normal variable lies in [-z, z] with chance `level`."""
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, not {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def dense(values: Sequence[float] | Floats, groups: Codes) -> tuple[Floats, Codes]:
    """Rows as floats with groups renumbered without gaps, so that a subset of rows can be passed as it is."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.shape != groups.shape:
        raise ValueError(f"{len(rows)} values for {len(groups)} group codes")
    _, codes = np.unique(groups, return_inverse=True)
    return rows, codes.astype(np.intp)


def _order_statistic(draws: Floats, q: float) -> float | None:
    """The nearest-rank quantile; interpolation between a number and infinity would have no meaning."""
    found = float(np.sort(draws)[min(len(draws) - 1, max(0, math.ceil(q * len(draws)) - 1))])
    return found if math.isfinite(found) else None
