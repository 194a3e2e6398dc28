"""From what ordinary accounts reach to the score at which an account is flagged, or stopped.

The unit is an account over a whole horizon, such as a month, and what is ranked is the highest score that it
reached there: requests of one account depend on each other, so no bound holds request by request. Where the
accounts to come are exchangeable with those calibrated on (drawn alike: the same customers' mix, the same
models, the same horizon), one more account passes the threshold with at most the stated probability, whatever
the scores mean (split conformal prediction: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random
World, 2005). Where they are not, nothing is promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.stats import binomial_at_most


@dataclass(frozen=True, slots=True)
class Threshold:
    """An account is alarmed above `score`, which is infinite where there are too few accounts to say any.

    `accounts` were calibrated on, `above` of them lie above it, and one more does with at most `alarm`: on
    average over calibrations, and with `confidence`, where there is one, for this calibration by itself.
    """

    score: float
    alarm: float
    accounts: int
    above: int
    confidence: float | None


def threshold(maxima: Sequence[float], alarm: float, confidence: float | None = None) -> Threshold:
    """The lowest score that keeps the promise of `alarm`, given what each account reached at most.

    Without `confidence`: the score of rank ceil((n + 1) (1 - alarm)) of n. With it: the share of all accounts
    above the score of rank n - m has a Beta(m + 1, n - m) distribution at worst (Wilks 1941), and exceeds
    `alarm` as rarely as m or fewer of n tries are hits, each with probability `alarm`.
    Raises ValueError for a NaN, or for an `alarm` or `confidence` that is no probability between 0 and 1.
    """
    if not 0.0 < alarm < 1.0 or not (confidence is None or 0.0 < confidence < 1.0):
        raise ValueError("alarm and confidence are probabilities between 0 and 1")
    if any(math.isnan(each) for each in maxima):
        raise ValueError("a calibration account's score is not a number")
    n = len(maxima)
    if confidence is None:
        # The small term: (n + 1) * (1 - alarm) of whole numbers falls on either side of one.
        above = n - math.ceil((n + 1) * (1.0 - alarm) - 1e-9)
    else:
        above = -1
        while above + 1 < n and binomial_at_most(above + 1, n, alarm) <= 1.0 - confidence:
            above += 1
    if above < 0:
        return Threshold(math.inf, alarm, n, 0, confidence)
    score = sorted(maxima)[n - 1 - above]
    return Threshold(score, alarm, n, sum(each > score for each in maxima), confidence)


def accounts_needed(alarm: float, confidence: float | None = None) -> int:
    """The fewest calibration accounts with which there is a finite threshold."""
    if confidence is None:
        return math.ceil(1.0 / alarm - 1e-9) - 1
    return math.ceil(math.log(1.0 - confidence) / math.log1p(-alarm))
