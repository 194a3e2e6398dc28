"""Does a model know what it knows? The probability that it gave its own answers against their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from stillhouse.evaluate.figures import RIGHT
from stillhouse.evaluate.predictions import STUDENTS, Prediction
from stillhouse.stats import Floats, Marks

BINS = 15


def calibration(rows: Sequence[Prediction]) -> dict[str, Any]:
    """For each student: ece, brier, nll (nats), mean `confidence`, share `right` and n.

    An answer's confidence is the product of the probabilities of its tokens under the student itself, its end
    left out; a score of 0.5 and more is right. Failed and unscored answers have no place here.
    """
    found: dict[str, Any] = {}
    for system in STUDENTS:
        of = [row for row in rows if row.system == system and row.answer is not None]
        known = [(row.logprob, row.score) for row in of if row.logprob is not None and row.score is not None]
        confidence = np.array([math.exp(min(0.0, logprob)) for logprob, _ in known], dtype=np.float64)
        right = np.array([score >= RIGHT for _, score in known], dtype=bool)
        found[system] = {
            "ece": expected_calibration_error(confidence, right),
            "brier": float(np.mean((confidence - right) ** 2)) if known else None,
            "nll": negative_log_likelihood(confidence, right),
            "confidence": float(confidence.mean()) if known else None,
            "right": float(right.mean()) if known else None,
            "n": len(known),
        }
    return found


def expected_calibration_error(confidence: Floats, right: Marks, bins: int = BINS) -> float | None:
    """Mean distance of confidence [N] and share of right answers [N] over bins of equal mass (Nixon et al.
    2019, arXiv:1904.01685). None without rows; biased upwards with few of them."""
    if len(confidence) == 0:
        return None
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(abs((confidence[part] - right[part]).sum()) for part in parts)) / len(order)


def negative_log_likelihood(confidence: Floats, right: Marks) -> float | None:
    """Mean of -log of the probability given to what came true. None without rows; probabilities are kept
    1e-12 away from 0 and 1, so that one answer cannot make the mean infinite."""
    if len(confidence) == 0:
        return None
    p = np.clip(confidence, 1e-12, 1 - 1e-12)
    return float(-np.log(np.where(right, p, 1 - p)).mean())
