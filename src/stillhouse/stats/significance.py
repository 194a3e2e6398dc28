"""Tests of whether two systems, or two samples, differ: exact, for rows of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from stillhouse.stats.intervals import Codes, Floats, dense

Marks = NDArray[np.bool_]

# Steps that the sums of a sign-flip test are counted in, where they have no small common part.
_STEPS = 20_000
_PARTS = 2520  # halves to tenths of it are whole


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact McNemar p-value: of the rows that one of two systems got right, is half each one's?

    Exact binomial with probability 1/2, in whole numbers (McNemar 1947; no mid-p). 1.0 without such rows.
    Treats rows as independent: with rows alike within groups it is too small.
    """
    if first_only < 0 or second_only < 0:
        raise ValueError("counts are not negative")
    n = first_only + second_only
    term, total = 1, 1
    for k in range(min(first_only, second_only)):
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / (1 << n))


def sign_flip(differences: Sequence[float] | Floats, groups: Codes) -> float:
    """Two-sided p-value of paired differences: in each group their sum could as well have had the other sign.

    Exact when nothing but the order of the two systems within a group is left to chance (Fisher 1935, The
    Design of Experiments, section 21), however alike the rows of a group are; without groups and with right
    or wrong answers it is McNemar's exact test. Sums that are no small fractions are rounded to a 20,000th of
    their total, which keeps the test exact. 1.0 where no group has a difference.
    """
    rows, codes = dense(differences, groups)
    sums = np.bincount(codes, weights=rows) if len(rows) else np.zeros(0)
    total = float(np.abs(sums).sum())
    if total == 0.0:
        return 1.0
    whole = np.rint(sums * _PARTS)
    whole /= np.gcd.reduce(whole.astype(np.int64)) or 1
    if np.abs(whole).sum() > _STEPS or not np.allclose(sums * _PARTS, np.rint(sums * _PARTS), atol=1e-6):
        whole = np.rint(sums * (_STEPS / total))
    observed = abs(int(whole.sum()))
    chances = np.ones(1)
    for size in np.sort(np.abs(whole[whole != 0])).astype(np.int64):
        wider = np.zeros(len(chances) + 2 * size)
        wider[: len(chances)] += 0.5 * chances
        wider[2 * size :] += 0.5 * chances
        chances = wider
    middle = len(chances) // 2
    return min(1.0, 2 * float(chances[middle + observed :].sum())) if observed else 1.0


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted so that all below a level hold together at that level (Holm 1979, Scandinavian
    Journal of Statistics 6:65). A None was not tested: it stays None and is not counted."""
    tested = sorted((value, index) for index, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * value))
        adjusted[index] = highest
    return adjusted


def energy_test(strata: Sequence[tuple[NDArray[np.int64], Marks]]) -> float:
    """Exact p-value of a two-sample permutation test within strata: were the marked items drawn like the
    rest?

    A stratum is an n x n matrix of whole, symmetric distances and n marks, of which m are set; n is small,
    for all n-choose-m ways of marking are gone through. The statistic is the sum over strata of the energy
    distance between marked and unmarked, 2 E d(x, y) - E d(x, x') - E d(y, y') (Szekely and Rizzo 2004), of
    which each is rounded to a twentieth of the distances' unit, and to 0 from below, so that its null
    distribution can be convolved exactly. Every way of marking a stratum is equally likely when its items are
    exchangeable; strata are independent. A stratum without marks, or with nothing else, says nothing; without
    any that speaks the p-value is 1.
    """
    chances, observed = np.ones(1), 0
    for distances, marks in strata:
        n, m = len(marks), int(marks.sum())
        if 0 < m < n and distances.any():
            values = _energies(distances, _markings(n, m))
            observed += int(_energies(distances, marks[None, :].astype(np.int64))[0])
            found, counts = np.unique(values, return_counts=True)
            wider = np.zeros(len(chances) + int(found[-1]))
            for value, count in zip(found, counts, strict=True):
                wider[value : value + len(chances)] += chances * (count / len(values))
            chances = wider
    return min(1.0, float(chances[observed:].sum()))


def _energies(distances: NDArray[np.int64], markings: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row of zeros and ones the energy distance times 20, rounded. Sums are of whole numbers, so the
    same marking gives the same value whatever other rows there are."""
    n, m = markings.shape[1], int(markings[0].sum())
    inside = ((markings @ distances) * markings).sum(axis=1)
    between = markings @ distances.sum(axis=1) - inside
    outside = distances.sum() - inside - 2 * between
    energy = 2 * between / (m * (n - m)) - inside / m**2 - outside / (n - m) ** 2
    rounded: NDArray[np.int64] = np.rint(20 * np.maximum(energy, 0.0)).astype(np.int64)
    return rounded


@cache
def _markings(n: int, m: int) -> NDArray[np.int64]:
    """Every way to mark m of n items: n-choose-m rows of zeros and ones."""
    rows = np.zeros((math.comb(n, m), n), dtype=np.int64)
    for row, marked in zip(rows, combinations(range(n), m), strict=True):
        row[list(marked)] = 1
    return rows
