"""Fits the detector's weights on simulated accounts of the calibration month, and writes them.

    .venv/bin/python benchmarks/detection_fit.py [--out src/stillhouse/guard/weights.toml]

Under seeds of its own: the accounts on which `detection.py` sets thresholds, and those of the test month, are
others. One pattern is fitted for each way of copying, as a logistic regression between the request at which
an ordinary account looks worst and the one at which a distiller does, within the requests in which it should
be found; which those are depends on the weights, so it is done again until it settles. What is a reason and
what speaks against one is set by hand, in `REASONS`: the fit says only how much. A pattern is scaled so that
one in a hundred ordinary accounts reaches 1.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from traffic.people import Person, people, requests

from stillhouse.guard.evidence import FEATURES, Evidence, means_of, observe, seen_of

Floats = NDArray[np.float32]

KEY = b"the benchmark's key, of 32 bytes"
SEEDS = (0, 1)  # of a whole month, and of more distillers
COUNT = 2_400
MORE = {
    "distiller:pure": 30,
    "distiller:slow": 20,
    "distiller:operator": 30,
    "distiller:pivot": 20,
    "distiller:mix5": 40,
    "distiller:mix10": 80,
    "distiller:mix25": 80,
    "distiller:reasoning": 40,
    "distiller:rubric": 40,
}
PATTERNS = {
    "answers": ("distiller:pure", "distiller:slow", "distiller:operator", "distiller:pivot"),
    "hidden": ("distiller:mix5", "distiller:mix10", "distiller:mix25"),
    "reasoning": ("distiller:reasoning",),
    "grades": ("distiller:rubric",),
}
WORDS = {
    "answers": "Looks like collecting answers to train another model on",
    "hidden": "Looks like collecting answers among other requests",
    "reasoning": "Looks like collecting reasoning to train another model on",
    "grades": "Looks like having answers graded to train another model on",
}
WITHIN = {  # the requests in which each kind should be found
    "distiller:pure": 200,
    "distiller:slow": 200,
    "distiller:operator": 60,
    "distiller:pivot": 400,
    "distiller:mix5": 700,
    "distiller:mix10": 500,
    "distiller:mix25": 300,
    "distiller:reasoning": 200,
    "distiller:rubric": 200,
}
PRIOR = 8.0  # requests that an ordinary account's means count for
RIDGE = 1.0
ROUNDS = 8
SCALED_TO = 0.99
DENSE, SPARSE = 300, 4  # requests that are all kept, and of those after them each so many
DISTILLERS = 0.2  # what all distillers weigh, with all ordinary accounts as 1
FIRST = {"grades": {"grades": 5.0}}  # where to begin
FIRST_ELSE = {"harvest": 5.0, "single": 1.0}
FOR_COPYING = (
    "single tidy answer room reasoning steps new far asks ratio harvest logprobs choices clock even".split(),
    "repeat preamble length label templated".split(),
)
# Features that may speak for a pattern, and against it; no other has a weight.
REASONS = {
    "answers": FOR_COPYING,
    "hidden": FOR_COPYING,
    "reasoning": FOR_COPYING,
    "grades": (["single", "new", "far", "logprobs", "choices", "grades"], ["repeat"]),
}
# What is hidden differs from the rest of its account, whichever way: of the account any feature may speak.
UNLIKE_ITS_ACCOUNT = ("hidden",)
K = len(FEATURES)


class Account(NamedTuple):
    """`rows` are (requests, 2 K + 3): means of the use and of the account, requests of either, its number."""

    kind: str
    side: str
    rows: Floats


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("src/stillhouse/guard/weights.toml"))
    out: Path = parser.parse_args().out
    accounts = collected()
    ordinary = [each for each in accounts if each.side == "ordinary"]
    means = np.mean([each.rows[-1, K : 2 * K] for each in ordinary], axis=0)
    patterns = {
        name: fitted(name, [each for each in accounts if each.kind in kinds], ordinary, means)
        for name, kinds in PATTERNS.items()
    }
    out.write_text(written(means, patterns))


def collected() -> list[Account]:
    everyone = [(person, SEEDS[0]) for person in people("calibrate", SEEDS[0], COUNT)]
    everyone += [(person, SEEDS[1]) for person in people("calibrate", SEEDS[1], sum(MORE.values()), MORE)]
    everyone = [each for each in everyone if each[0].side != "hard"]
    portions = [everyone[at::40] for at in range(40)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [each for portion in pool.map(_watched, portions) for each in portion if len(each.rows)]


def _watched(portion: Sequence[tuple[Person, int]]) -> list[Account]:
    found = []
    for person, seed in portion:
        evidence, rows = Evidence(), []
        most = WITHIN.get(person.kind)
        for number, request in enumerate(islice(requests(person, "calibrate", seed), most)):
            seen = seen_of(KEY, request.body(), "chat/completions", request.output_tokens, request.at)
            use = observe(evidence, seen)
            if number < DENSE or number % SPARSE == 0:
                own, own_weight, whole, weight = means_of(evidence, use)
                rows.append(
                    [*(x / own_weight for x in own), *(x / weight for x in whole), own_weight, weight]
                )
        found.append(Account(person.kind, person.side, np.array(rows, np.float16).astype(np.float32)))
    return found


def fitted(name: str, distillers: Sequence[Account], ordinary: Sequence[Account], means: Floats) -> Floats:
    """(2 K,) weights, for the use and for the account."""
    theirs, others = ([drawn(each.rows, means) for each in side] for side in (distillers, ordinary))
    weights = np.zeros(2 * K, np.float32)
    for feature, weight in FIRST.get(name, FIRST_ELSE).items():
        weights[FEATURES.index(feature)] = weight
    kept: set[tuple[int, int]] = set()
    for _ in range(ROUNDS):
        kept |= {(number, int((rows @ weights).argmax())) for number, rows in enumerate(others)}
        bad = np.array([rows[(rows @ weights).argmax()] for rows in theirs], np.float64)
        good = np.array([others[number][at] for number, at in sorted(kept)], np.float64)
        weights = regression(bad, good, weights, bounds(name))
    reached = sorted(float((rows @ weights).max()) for rows in others)
    return weights / reached[int(SCALED_TO * len(reached))]


def drawn(rows: Floats, means: Floats) -> Floats:
    """(n, 2 K): how far from ordinary, drawn towards it while there are few requests."""
    of_use, of_account = ((rows[:, at : at + 1]) for at in (2 * K, 2 * K + 1))
    return np.hstack(
        (
            (rows[:, :K] - means) * of_use / (of_use + PRIOR),
            (rows[:, K : 2 * K] - means) * of_account / (of_account + PRIOR),
        )
    )


def bounds(name: str) -> list[tuple[float | None, float | None]]:
    """Of the weights: for the use, for the account, and of the constant."""
    good, bad = REASONS[name]
    signed = [(None if feature in bad else 0.0, None if feature in good else 0.0) for feature in FEATURES]
    any_way: list[tuple[float | None, float | None]] = [(None, None)]
    return signed + (K * any_way if name in UNLIKE_ITS_ACCOUNT else signed) + any_way


def regression(
    bad: NDArray[np.float64],
    good: NDArray[np.float64],
    first: Floats,
    limits: list[tuple[float | None, float | None]],
) -> Floats:
    points = np.vstack((bad, good))
    is_bad = np.repeat([1.0, 0.0], [len(bad), len(good)])
    weight = np.where(is_bad, DISTILLERS * len(good) / len(bad), 1.0)

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logit = points @ at[:-1] + at[-1]
        value = weight @ (np.logaddexp(0.0, logit) - is_bad * logit) + RIDGE / 2 * at[:-1] @ at[:-1]
        slope = weight * (1.0 / (1.0 + np.exp(-logit)) - is_bad)
        return float(value), np.append(points.T @ slope + RIDGE * at[:-1], slope.sum())

    best = minimize(
        loss, np.append(first, -3.0), jac=True, bounds=limits, method="L-BFGS-B", options={"maxiter": 300}
    )
    return np.asarray(best.x[:-1], np.float32)


def written(means: Floats, patterns: dict[str, Floats]) -> str:
    lines = [
        "# Written by benchmarks/detection_fit.py, from simulated accounts.",
        f"prior = {PRIOR}",
        "",
        "[ordinary]",
    ]
    lines += _table(means)
    for name, weights in patterns.items():
        lines += ["", "[[patterns]]", f'name = "{name}"', f'words = "{WORDS[name]}"']
        lines += ["[patterns.use]", *_table(weights[:K]), "[patterns.account]", *_table(weights[K:])]
    return "\n".join(lines) + "\n"


def _table(values: Floats) -> list[str]:
    rows = (f"{feature} = {value:.4f}" for feature, value in zip(FEATURES, values, strict=True))
    return [row for row in rows if not row.endswith(" 0.0000") and not row.endswith("-0.0000")]


if __name__ == "__main__":
    main()
