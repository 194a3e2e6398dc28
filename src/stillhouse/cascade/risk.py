"""Which threshold keeps a promise: "with 95 % confidence the cascade loses at most 1 point of the teacher's".

What is lost by an answer that is kept is what the teacher's score is above the student's, and 0 where it is
not above; by one that is deferred it is 0. The mean of that bounds what the cascade's score lacks of the
teacher's. It does not set answers that only the student has right against answers that only the teacher has:
those who lose an answer do not get one back, and a student's luck where its teacher errs is the first thing
that changes with the traffic. Whoever wants the scores alone compared takes the difference itself, which is
`signed`: the promise is then weaker, and needs more rows for its luck. Where answers cannot be scored, one
that differs from the teacher's is lost.

Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei 2021, arXiv:2110.01052): each threshold is a
hypothesis "the mean loss is more than `most`", tested from the safest on (fixed sequence), and the last that
is rejected in a row is taken. The chance that the promise made is broken is at most `level`, whatever the
score, the model and the distribution are; what is assumed is that the rows are independent draws from it, and
that neither thresholds nor score were made from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.stats import Floats, binomial_at_most, binomial_upper

LEVEL = 0.05
MOST = 0.01
NUISANCE = 1e-3  # chance spent on bounding how often the student gains, of a signed loss
_GRID = 24
_FURTHEST = 10_000_000  # rows; a need for more is a need that nobody meets


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Answers whose risk is at most `threshold` are kept; None: none may be, every request is deferred.

    `deferred`, `loss` (mean) and `p` are of the calibration rows at that threshold, of which there are `n`.
    `more` rows like these would allow an answer to be kept, where none may be; None where none would.
    """

    threshold: float | None
    deferred: float
    loss: float
    p: float
    n: int
    more: int | None = None


def at_most(total: int, n: int, up: Floats | float, down: Floats | float = 0.0) -> Floats:
    """P(sum <= total) of n independent values that are 1 with chance `up`, -1 with chance `down`, else 0.

    By the discrete Fourier transform of the law (the characteristic function to the n-th power), taken so
    wide that what wraps around lies 12 standard deviations away. Exact to about 1e-12, not to a share of
    itself.
    """
    up, down = np.atleast_1d(np.asarray(up, float)), np.atleast_1d(np.asarray(down, float))
    middle = n * float(np.max(np.abs(up - down)))
    reach = middle + abs(total) + 12 * math.sqrt(n * float(np.max(up + down))) + 64
    size = 1 << math.ceil(math.log2(2 * reach))
    turn = np.exp(2j * np.pi * np.arange(size) / size)
    one = 1 - up[:, None] - down[:, None] + up[:, None] * turn + down[:, None] / turn
    law = np.fft.fft(one**n, axis=1).real / size  # at 0, 1, ..., then -..., -1
    low = min(total, n) + 1
    below = law[:, size // 2 :].sum(axis=1)  # every value under 0
    found = below + law[:, :low].sum(axis=1) if low > 0 else law[:, size // 2 : size + low].sum(axis=1)
    chances: Floats = np.clip(found, 0.0, 1.0)
    return chances


def hoeffding_bentkus_p(mean: float, n: int, most: float) -> float:
    """The same for losses in [0, 1] (Bates, Angelopoulos, Lei, Malik and Jordan 2021, JACM 68:43)."""
    if mean >= most:
        return 1.0
    kl = most and mean * math.log(mean / most) if mean > 0 else 0.0
    kl += (1 - mean) * math.log((1 - mean) / (1 - most))
    bentkus = math.e * binomial_at_most(math.ceil(n * mean - 1e-9), n, most)
    return min(1.0, math.exp(-n * kl), bentkus)


def signed_p(lost: int, gained: int, n: int, most: float) -> float:
    """The p-value of "losses exceed gains by at least `most`" in n rows, each of which is one, the other or
    neither.

    The chance of so small a difference where losses have the chance `most` + q and gains q, the largest over
    all q that the gains seen allow (Berger and Boos 1994, JASA 89:1012: `NUISANCE` is added for that), on a
    grid of 24.
    """
    limit = min(binomial_upper(gained, n, 1 - NUISANCE), (1 - most) / 2)
    chances = np.linspace(0.0, limit, _GRID)
    return min(1.0, float(at_most(lost - gained, n, most + chances, chances).max()) + NUISANCE)


def betting_p(losses: Floats, most: float) -> float:
    """The same for losses anywhere in [-1, 1], in the order in which they come: 1 over the most that a
    gambler has had who bets against it (Waudby-Smith and Ramdas 2024, JRSS B 86:1)."""
    away = most - np.asarray(losses, float)  # in [most - 1, most + 1]; its mean is at most 0
    count = np.arange(1, len(away) + 1)
    spread = np.concatenate([[0.25], (0.25 + np.cumsum((away - np.cumsum(away) / count) ** 2)) / (count + 1)])
    stakes = np.minimum(math.sqrt(2 * math.log(1 / LEVEL) / max(1, len(away))) / np.sqrt(spread[:-1]), 0.5)
    wealth = np.cumsum(np.log1p(stakes * away))
    return min(1.0, math.exp(-float(wealth.max(initial=0.0))))


def p_value(losses: Floats, most: float, signed: bool) -> float:
    """The p-value of "the mean loss is at least `most`", by the kind of losses: in [0, 1], or in [-1, 1]
    where `signed`; whole ones have an exact test. 1.0 without rows."""
    n, whole = len(losses), bool(np.all(losses == np.rint(losses)))
    if n == 0:
        return 1.0
    if signed:
        lost, gained = int((losses > 0).sum()), int((losses < 0).sum())
        return signed_p(lost, gained, n, most) if whole else betting_p(losses, most)
    if whole:
        return binomial_at_most(int(losses.sum()), n, most)
    return hoeffding_bentkus_p(float(losses.mean()), n, most)


def thresholds_of(risks: Floats, steps: int = 100) -> Floats:
    """Thresholds that keep 1/steps, 2/steps, ... of answers like these; rising, the last keeps all.

    Of rows that are not those of the calibration.
    """
    found = np.quantile(risks, np.arange(1, steps) / steps, method="lower") if len(risks) else np.zeros(0)
    return np.append(np.unique(found), 1.0)


def control(
    risks: Floats,
    losses: Floats,
    thresholds: Floats,
    signed: bool,
    most: float = MOST,
    level: float = LEVEL,
) -> Guarantee:
    """The loosest of rising `thresholds` up to which every one keeps the promise, at confidence 1 - level.

    risks, losses [N]: of each calibration row the risk of the student's answer and what keeping it loses.
    """
    taken = Guarantee(None, 1.0, 0.0, 1.0, len(losses))
    for threshold in thresholds:
        kept = risks <= threshold
        suffered = np.where(kept, losses, 0.0)
        p = p_value(suffered, most, signed)
        if p > level:
            break
        mean = float(suffered.mean())
        taken = Guarantee(float(threshold), float(1 - kept.mean()), mean, p, len(losses))
    if taken.threshold is not None:
        return taken
    more = _more(risks, losses, thresholds, signed, most, level)
    return Guarantee(None, 1.0, 0.0, 1.0, len(losses), more)


def _more(
    risks: Floats, losses: Floats, thresholds: Floats, signed: bool, most: float, level: float
) -> int | None:
    """What is needed at the threshold that needs least, which is told by the spread of its losses over the
    square of the room that they leave."""
    suffered = [np.where(risks <= threshold, losses, 0.0) for threshold in thresholds]
    room = [
        (float(one.var()) / (most - float(one.mean())) ** 2, one) for one in suffered if one.mean() < most
    ]
    return needed(min(room, key=lambda each: each[0])[1], signed, most, level) if room else None


def families(
    risks: Floats,
    losses: Floats,
    names: Sequence[str],
    thresholds: Floats,
    signed: bool,
    most: float = MOST,
    level: float = LEVEL,
) -> Mapping[str, Guarantee]:
    """A promise for each family, which all hold together at 1 - level (Bonferroni)."""
    found, labels = sorted(set(names)), np.array(names)
    return {
        name: control(
            risks[labels == name], losses[labels == name], thresholds, signed, most, level / len(found)
        )
        for name in found
    }


def needed(losses: Floats, signed: bool, most: float, level: float) -> int | None:
    """How many more rows, with losses in the same shares, would keep the promise; 0 where these do, None
    where none would. Without any rows: as many as show that nothing is lost."""
    n = len(losses)
    if n == 0:
        return least_rows(most, level)
    if float(losses.mean()) >= most:
        return None
    lost, gained = float(np.maximum(losses, 0).sum()), float(np.maximum(-losses, 0).sum())

    def enough(rows: int) -> bool:
        a, b = math.ceil(lost * rows / n), math.floor(gained * rows / n)
        return (signed_p(a, b, rows, most) if signed else binomial_at_most(a, rows, most)) <= level

    if enough(n):
        return 0
    low, high = n, 2 * n
    while not enough(high):
        low, high = high, 2 * high
        if high > _FURTHEST:
            return None
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - n


def least_rows(most: float = MOST, level: float = LEVEL) -> int:
    """Rows with which the promise can be kept where none of them loses anything: (1 - most)^n <= level."""
    return math.ceil(math.log(level) / math.log1p(-most))
