"""The exact law of the number of hits among independent tries, and the limit that it sets to their chance."""

from __future__ import annotations

import math

import numpy as np


def binomial_at_most(hits: int, tries: int, chance: float) -> float:
    """P(X <= hits) for X ~ Binomial(tries, chance)."""
    if hits >= tries or chance <= 0.0:
        return 1.0
    if chance >= 1.0:
        return 0.0
    before = np.arange(hits)
    steps = np.log((tries - before) / (before + 1)) + math.log(chance) - math.log1p(-chance)
    logs = tries * math.log1p(-chance) + np.concatenate([[0.0], np.cumsum(steps)])
    return min(1.0, float(np.exp(logs).sum()))


def binomial_upper(hits: int, tries: int, level: float = 0.95) -> float:
    """The highest chance that `hits` among `tries` leave possible: one-sided and exact (Clopper and Pearson
    1934). 1 where there are no tries."""
    if hits >= tries:
        return 1.0
    low, high = hits / tries, 1.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        possible = binomial_at_most(hits, tries, middle) > 1.0 - level
        low, high = (middle, high) if possible else (low, middle)
    return high
