"""Upper tails of the laws that counts and sums of keyed scores follow on text that the key never touched.

Given as natural logarithms, as the tail of a long marked text is below the smallest float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillhouse.stats.intervals import Floats

_NEGLIGIBLE = 1e-17  # of a sum of positive terms: less than its rounding
_AT_ONCE = 64  # terms
_DEVIATIONS = 12  # to each side of a tilted law: what lies further out is below 1e-30


def log_binomial_tail(successes: ArrayLike, trials: ArrayLike, share: float) -> Floats:
    """ln P(X >= successes) for X ~ Binomial(trials, share), by summing its terms; arrays are broadcast.

    The sum runs away from the mean, where each term is smaller than the one before; below the mean it is the
    complement that is summed.
    """
    k, n = (np.asarray(a, dtype=np.float64) for a in np.broadcast_arrays(successes, trials))
    odds = share / (1 - share)

    def log_term(at: Floats, of: Floats) -> Floats:
        ways = _log_gamma(of + 1) - _log_gamma(at + 1) - _log_gamma(of - at + 1)
        found: Floats = ways + at * math.log(share) + (of - at) * math.log1p(-share)
        return found

    def upper(k: Floats, n: Floats) -> Floats:
        above, left = k[:, None], (n - k)[:, None]
        return log_term(k, n) + _log_sum(lambda j: np.maximum(left - j + 1, 0) / (above + j) * odds, len(k))

    def lower(k: Floats, n: Floats) -> Floats:  # P(X < k)
        below, left = (k - 1)[:, None], (n - k + 1)[:, None]
        series = _log_sum(lambda j: np.maximum(below - j + 1, 0) / (left + j) / odds, len(k))
        return log_term(k - 1, n) + series

    return _tail(k, n, (k > n * share) & (k <= n), k <= 0, k > n, upper, lower)


def log_gamma_tail(value: ArrayLike, shape: ArrayLike) -> Floats:
    """ln P(X >= value) for the sum X of `shape` independent standard exponentials; arrays are broadcast.

    By its identity with the chance that a Poisson count of mean `value` is below `shape`.
    """
    x, n = (np.asarray(a, dtype=np.float64) for a in np.broadcast_arrays(value, shape))

    def log_term(at: Floats, mean: Floats) -> Floats:
        found: Floats = at * np.log(mean) - mean - _log_gamma(at + 1)
        return found

    def upper(x: Floats, n: Floats) -> Floats:
        series = _log_sum(lambda j: np.maximum(n[:, None] - j, 0) / x[:, None], len(x))
        return log_term(n - 1, x) + series

    def lower(x: Floats, n: Floats) -> Floats:
        return log_term(n, x) + _log_sum(lambda j: x[:, None] / (n[:, None] + j), len(x))

    return _tail(x, n, x > n, (x <= 0) | (n <= 0), np.zeros(x.shape, dtype=bool), upper, lower)


def log_weighted_tail(total: int, weights: Sequence[int], trials: int) -> float:
    """ln P(X >= total) for the sum X over whole, positive `weights` of weight times Binomial(trials, 1/2).

    The law is tilted until `total` is its mean (Esscher 1932) and found from its characteristic function by
    one Fourier transform, so that what is summed is near the middle of a law and keeps its digits however
    far out in the tail of the first one it lies.
    """
    sizes, counts = np.unique(np.asarray(weights, dtype=np.int64), return_counts=True)
    most = int(trials * (sizes * counts).sum())
    if total <= 0:
        return 0.0
    if total > most:
        return -math.inf
    if total == most:
        return -trials * len(weights) * math.log(2)
    tilt = _tilt(lambda by: float((counts * sizes / (1 + np.exp(-by * sizes))).sum()), total / trials)
    heads = 1 / (1 + np.exp(-tilt * sizes))
    mean = trials * float((counts * sizes * heads).sum())
    spread = math.sqrt(trials * float((counts * sizes**2 * heads * (1 - heads)).sum()))
    width = 1 << math.ceil(math.log2(min(most + 1, 2 * _DEVIATIONS * spread + 64)))
    turns = np.outer(np.arange(width // 2 + 1), sizes) % width * (2 * np.pi / width)
    trial = np.prod((1 - heads + heads * np.exp(1j * turns)) ** counts, axis=1)
    # A law's transform is that of a real function: half of it is enough.
    chances = np.fft.hfft(np.abs(trial) ** trials * np.exp(1j * trials * np.angle(trial)), width) / width
    low = max(0, round(mean) - width // 2)
    sums = np.arange(total, min(low + width, most + 1))
    part = float((chances[sums % width] * np.exp(-tilt * (sums - total))).sum())
    # ln of the mean of exp(tilt * weight * coin), for each coin.
    moment = trials * float((counts * (np.logaddexp(0, tilt * sizes) - math.log(2))).sum())
    return min(0.0, moment - tilt * total + math.log(part))


def log_repeated_tail(total: int, law: Floats, times: int) -> float:
    """ln P(X >= total) for the sum X of `times` independent draws from `law`, which holds the chances of
    0, 1, 2, ...; tilted and found as in `log_weighted_tail`."""
    values = np.flatnonzero(law)
    least, most = times * int(values[0]), times * int(values[-1])
    if total <= least:
        return 0.0
    if total > most:
        return -math.inf
    steps = (values - values[0]).astype(np.float64)
    log_law = np.log(law[values] / law[values].sum())

    def tilted(by: float) -> tuple[Floats, float]:
        heavy = log_law + by * steps
        moment = float(heavy.max() + np.log(np.exp(heavy - heavy.max()).sum()))
        return np.exp(heavy - moment), moment

    tilt = _tilt(lambda by: float(tilted(by)[0] @ steps), (total - least) / times)
    chances, moment = tilted(tilt)
    width = 1 << (most - least + 1).bit_length()
    spread = np.zeros(int(values[-1] - values[0]) + 1)
    spread[values - values[0]] = chances
    sums = np.fft.irfft(np.fft.rfft(spread, width) ** times, width)[total - least : most - least + 1]
    part = float((sums * np.exp(-tilt * np.arange(len(sums)))).sum())
    return min(0.0, times * moment - tilt * (total - least) + math.log(max(part, 1e-300)))


def _tilt(mean_under: Callable[[float], float], mean: float) -> float:
    """The tilt under which a law has this mean; 0 where it has more without any."""
    low, high = 0.0, 64.0
    for _ in range(80):
        middle = (low + high) / 2
        if mean_under(middle) < mean:
            low = middle
        else:
            high = middle
    return low


def _tail(
    value: Floats,
    count: Floats,
    outer: NDArray[np.bool_],
    certain: NDArray[np.bool_],
    impossible: NDArray[np.bool_],
    upper: Callable[[Floats, Floats], Floats],
    lower: Callable[[Floats, Floats], Floats],
) -> Floats:
    """ln of the tail: by `upper` where the value lies above the mean (`outer`), else by the complement."""
    found = np.zeros(value.shape)
    found[impossible] = -np.inf
    outer = outer & ~certain
    if outer.any():
        found[outer] = upper(value[outer], count[outer])
    inner = ~(outer | certain | impossible)
    if inner.any():
        rest = np.exp(lower(value[inner], count[inner]))
        found[inner] = np.log1p(-np.minimum(rest, 1.0))
    return np.minimum(found, 0.0)


def _log_sum(ratio: Callable[[Floats], Floats], rows: int) -> Floats:
    """ln(1 + r1 + r1 r2 + ...), (rows,), of ratios that fall below 1 and stay there. Of their numbers, (J,),
    `ratio` makes (rows, J)."""
    total, term, step = np.ones(rows), np.ones(rows), 0
    while np.any(term > _NEGLIGIBLE * total):
        terms = term[:, None] * np.cumprod(ratio(np.arange(step + 1.0, step + _AT_ONCE + 1)), axis=1)
        total += terms.sum(axis=1)
        term = terms[:, -1]
        step += _AT_ONCE
    return np.log(total)


_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])
