"""Does a model know what it knows? The probability that it gave its own answers against their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from stillhouse import stats
from stillhouse.evaluate.figures import RIGHT
from stillhouse.evaluate.predictions import STUDENTS, Prediction

LEAST = 1e-12  # how near to 0 and 1 a confidence may be, so that one answer makes no mean infinite


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
            "ece": stats.expected_calibration_error(confidence, right),
            "brier": stats.brier_score(confidence, right),
            "nll": stats.negative_log_likelihood(np.clip(confidence, LEAST, 1 - LEAST), right),
            "confidence": float(confidence.mean()) if known else None,
            "right": float(right.mean()) if known else None,
            "n": len(known),
        }
    return found
