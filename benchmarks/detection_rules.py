"""The rules beside which the detector is tried, each as a score that rises as an account asks.

None is the published system. MMD, PRADA and SEAT compare embeddings; here a message is the hashed words and
pairs of words of its beginning, as no embedding model is at hand, and each is a variant by that name:
MMD, the distance between the mean embedding of a window of 100 requests and that of ordinary requests, in a
    Gaussian kernel by random features (Gretton et al. 2012; Rahimi and Recht 2007);
PRADA, how far from normal the distances are from each request to the nearest one before it (Juuti et al.
    2019): 1 - W of Shapiro and Wilk;
SEAT, how many requests have a near copy among those before them (Zhang et al. 2021).
The volume rule counts requests, the template rule those that begin with the words that begin most of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.stats import shapiro

Floats = NDArray[np.float32]
Trail = list[tuple[int, float]]  # after so many requests the score was for the first time so high

WIDTH = 256
READ = 600  # characters of a message
WINDOW = 100
STEP = 50  # requests between two looks
MOST = 1_000  # requests of an account that are looked at
NEAR = 0.9  # cosine of near copies
RULES = ("MMD", "PRADA", "SEAT", "volume", "template")
# Scores at which each would alarm uncalibrated: for PRADA W < 0.95, within the range of its paper;
# the mean number of requests of accounts in the campaigns reported in February 2026; SEAT's and the template
# rule's are our own.
BY_HAND = {"PRADA": 0.05, "SEAT": 50.0, "volume": 667.0, "template": 90.0}


def embedded(texts: Sequence[str]) -> Floats:
    """(n, WIDTH), rows of length 1."""
    made = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in zip(made, texts, strict=True):
        words = text[:READ].lower().split()
        marks = [crc32(word.encode(errors="replace")) for word in words]
        marks += [one ^ (two >> 1) for one, two in pairwise(marks)]
        for mark in marks:
            row[mark % WIDTH] += 1.0 if mark & 0x10000 else -1.0
    norms = np.linalg.norm(made, axis=1, keepdims=True)
    return made / np.maximum(norms, 1e-9)


class Reference:
    """Ordinary requests in the kernel's random features; the bandwidth is the median distance."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        draw = np.random.default_rng(seed)
        points = embedded(texts)
        pairs = draw.integers(0, len(points), (2, 2_000))
        distance = float(np.median(np.linalg.norm(points[pairs[0]] - points[pairs[1]], axis=1)))
        self.turns = (draw.standard_normal((WIDTH, 512)) / distance).astype(np.float32)
        self.phases = draw.uniform(0.0, 2 * np.pi, 512).astype(np.float32)
        self.mean = self.features(points).mean(0)

    def features(self, points: Floats) -> Floats:
        """(n, WIDTH) -> (n, 512), of which the inner products are near the kernel's values."""
        return np.cos(points @ self.turns + self.phases) * np.float32(np.sqrt(2.0 / 512))


def trails(texts: Sequence[str], reference: Reference) -> dict[str, Trail]:
    """What each rule says of the first `MOST` requests of an account, but of the volume, which counts all."""
    first = texts[:MOST]
    points = embedded(first)
    nearest = _nearest(points)
    openings = [" ".join(text.split()[:6]) for text in first]
    found: dict[str, Trail] = {
        "MMD": rising(_mmd(points, reference)),
        "PRADA": rising(_prada(nearest)),
        "SEAT": rising((n, float((nearest[:n] < 1.0 - NEAR).sum())) for n in _looks(len(first))),
        "volume": [(n, float(n)) for n in (*_looks(len(texts)), len(texts)) if n],
        "template": rising(_templates(openings)),
    }
    return found


def rising(scores: Iterable[tuple[int, float]]) -> Trail:
    """Only those that are higher than all before them."""
    kept: Trail = []
    for n, score in scores:
        if not kept or score > kept[-1][1]:
            kept.append((n, score))
    return kept


def first_above(trail: Trail, line: float) -> int | None:
    return next((n for n, reached in trail if reached > line), None)


def highest(trail: Trail) -> float:
    return trail[-1][1] if trail else 0.0


def _looks(count: int) -> range:
    return range(STEP, count + 1, STEP)


def _nearest(points: Floats) -> Floats:
    """1 - cosine of each point and the nearest before it; 1 for the first."""
    found = np.ones(len(points), np.float32)
    for begin in range(0, len(points), 256):
        block = points[begin : begin + 256] @ points[: begin + 256].T
        for row, likeness in enumerate(block):
            if begin + row:
                found[begin + row] = 1.0 - likeness[: begin + row].max()
    return found


def _mmd(points: Floats, reference: Reference) -> Iterable[tuple[int, float]]:
    features = reference.features(points)
    for end in range(WINDOW, len(points) + 1, STEP):
        yield end, float(((features[end - WINDOW : end].mean(0) - reference.mean) ** 2).sum())


def _prada(nearest: Floats) -> Iterable[tuple[int, float]]:
    for n in _looks(len(nearest)):
        some = nearest[1:n]
        if n >= WINDOW and float(np.ptp(some)) > 1e-6:
            yield n, 1.0 - float(shapiro(some).statistic)


def _templates(openings: Sequence[str]) -> Iterable[tuple[int, float]]:
    counts: Counter[str] = Counter()
    most = 0
    for n, opening in enumerate(openings, 1):
        counts[opening] += 1
        most = max(most, counts[opening])
        if n % STEP == 0:
            yield n, float(most)
