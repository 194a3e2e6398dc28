"""Do stated probabilities come true? Pure functions over the probabilities that a model gave."""

from __future__ import annotations

import numpy as np

from stillhouse.stats.intervals import Floats
from stillhouse.stats.significance import Marks

BINS = 15


def expected_calibration_error(confidence: Floats, right: Marks, bins: int = BINS) -> float | None:
    """Mean distance between confidence and share of right answers over bins of equal mass; None without rows.

    `confidence` holds the probability that was given to each answer, `right` whether it was right. Bins of
    equal mass rather than of equal width (Nixon et al. 2019, arXiv:1904.01685), so that none is nearly
    empty. Equal confidences stay in one bin: the figure does not hang on the order of the rows. It is biased
    upwards with few rows.
    """
    _check(confidence, right)
    n = len(confidence)
    if n == 0:
        return None
    values, place, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    # A value belongs to the bin in which the middle of its rows lies.
    middle = np.cumsum(counts) - counts / 2
    of_value = np.minimum((middle * min(bins, n) / n).astype(np.intp), bins - 1)
    sure = np.bincount(of_value, weights=values * counts, minlength=bins)
    hit = np.bincount(of_value[place], weights=right.astype(np.float64), minlength=bins)
    return float(np.abs(sure - hit).sum()) / n


def brier_score(confidence: Floats, right: Marks) -> float | None:
    """Mean squared distance between confidence and outcome (Brier 1950): 0 is perfect, and always one half
    gives 0.25. None without rows."""
    _check(confidence, right)
    return float(np.mean((confidence - right) ** 2)) if len(confidence) else None


def negative_log_likelihood(confidence: Floats, right: Marks) -> float | None:
    """Mean of -log of the probability given to what came true, in nats; infinite where that was 0. None
    without rows."""
    _check(confidence, right)
    if len(confidence) == 0:
        return None
    with np.errstate(divide="ignore"):
        return float(-np.log(np.where(right, confidence, 1 - confidence)).mean() + 0.0)


def _check(confidence: Floats, right: Marks) -> None:
    if confidence.shape != right.shape:
        raise ValueError(f"{len(confidence)} confidences for {len(right)} outcomes")
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError("a confidence is a probability from 0 to 1")
