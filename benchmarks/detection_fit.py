"""Fits the detector's weights on simulated accounts of the calibration month, and writes them.

    .venv/bin/python benchmarks/detection_fit.py [--out src/stillhouse/guard/weights.toml] [--folder FOLDER]

Under seeds of its own: the accounts on which `detection.py` sets thresholds, and those of the test month, are
others. One pattern is fitted for each way of copying, as a logistic regression between the request at which
an honest account looks worst and the one at which a distiller does, within the requests in which it should
be found; which those are depends on the weights, so it is done again until it settles. Honest are ordinary
accounts and those hard ones that something tells apart. What is a reason and what speaks against one is set
by hand, in `REASONS`: the fit says only how much. A pattern is scaled so that its share of ordinary accounts,
in `ALARMS`, reaches 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detection_watch import Look, Watched, means, read, walked
from numpy.typing import NDArray
from rows import DATA, need, working_folder
from scipy.optimize import minimize
from traffic import wording_bulk
from traffic.people import KINDS, person, requests
from traffic.wording import of_month

from stillhouse.guard.evidence import FEATURES

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]

ORDINARY = 0.6  # of the accounts of a simulated month
SEPARABLE = {
    "benchmark": 140,
    "labelling": 120,
    "backtranslation": 60,
    "synthetic": 80,  # of these only those who show examples and want more of the kind
    "loadtest": 60,
    "nat": 120,
}
DISTILLERS = {
    "distiller:pure": 120,
    "distiller:slow": 50,
    "distiller:operator": 60,
    "distiller:pivot": 50,
    "distiller:mix5": 120,
    "distiller:mix10": 240,
    "distiller:mix25": 240,
    "distiller:reasoning": 80,
    "distiller:rubric": 80,
}
LOOKS = {
    "ordinary": Look(
        "calibrate",
        0,
        {name: round(ORDINARY * kind.share) for name, kind in KINDS.items() if kind.side == "ordinary"},
    ),
    "hard": Look("calibrate", 1, SEPARABLE),
    "distillers": Look("calibrate", 1, DISTILLERS),
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
# Of ordinary accounts: most for what is hardest to see, which the others would have found in any case.
ALARMS = {"answers": 0.003, "hidden": 0.01, "reasoning": 0.002, "grades": 0.001}
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
ROUNDS, STEPS = 5, 80
DENSE, SPARSE = 200, 4  # requests that are all kept, and of those after them each so many
LOOKED = 1_000  # requests of a hard account
DISTILLERS_WEIGH = 0.2  # what all distillers weigh, with all honest accounts as 1
HARD_WEIGH = 2.0  # a hard account, with an ordinary one as 1
# Half of what distillers weigh is as if one of these were as in ordinary accounts, so that no pattern rests
# on a single trait, which another set of questions may not have.
TRAITS = (
    ("asks", "harvest"),
    ("tidy",),
    ("answer", "ratio", "harvest"),
    ("new", "far"),
    ("room",),
    ("length",),
)
WITHOUT = 0.5
FIRST = {"grades": {"grades": 5.0}}  # where to begin
FIRST_ELSE = {"harvest": 5.0, "single": 1.0}
FOR_COPYING = (
    "single tidy answer room reasoning steps new far asks ratio harvest logprobs choices clock even".split(),
    "repeat preamble length label templated followed".split(),
)
# Features that may speak for a pattern, and against it; no other has a weight.
REASONS = {
    "answers": FOR_COPYING,
    "hidden": FOR_COPYING,
    "reasoning": FOR_COPYING,
    "grades": ("single new far logprobs choices grades length answer".split(), ["repeat", "label"]),
}
# What is hidden differs from the rest of its account, whichever way: of the account any feature may speak.
UNLIKE_ITS_ACCOUNT = ("hidden",)
K = len(FEATURES)


class Account(NamedTuple):
    """`rows` are (requests, 2 K + 2): means of the use and of the account, requests of either."""

    kind: str
    side: str
    rows: Rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("src/stillhouse/guard/weights.toml"))
    parser.add_argument("--folder", type=Path, help="work there, and go on with what is there")
    options = parser.parse_args()
    need(DATA)
    accounts = collected(options.folder)
    ordinary = [each for each in accounts if each.side == "ordinary"]
    hard = [each for each in accounts if each.side == "hard"]
    base = np.mean([each.rows[-1, K : 2 * K] for each in ordinary], axis=0)
    patterns = {
        name: fitted(name, [each for each in accounts if each.kind in kinds], ordinary, hard, base)
        for name, kinds in PATTERNS.items()
    }
    options.out.write_text(written(base, patterns))


def collected(folder: Path | None) -> list[Account]:
    with working_folder(folder) as here:
        files = walked(LOOKS, here)
        return [
            Account(account.kind, account.side, kept(means(walk), walk.counted, looked_at(account)))
            for some in files.values()
            for file in some
            for account, walk in read(file)
            if not _harvests(account)
        ]


def looked_at(account: Watched) -> int | None:
    return LOOKED if account.side == "hard" else WITHIN.get(account.kind)


def kept(found: tuple[Floats, Floats, Floats], counted: Floats, most: int | None) -> Rows:
    own, whole, weight = found
    rows = np.hstack((own, whole, counted[:, None], weight[:, None]))[:most]
    return np.vstack((rows[:DENSE], rows[DENSE::SPARSE])).astype(np.float32)


def _harvests(account: Watched) -> bool:
    """Whether it is a buyer of synthetic data who asks what a distiller asks."""
    if account.kind != "synthetic":
        return False
    seed = LOOKS["hard"].seed
    number = int(account.id.rpartition("/")[2])
    first = next(requests(person("calibrate", seed, account.kind, number), "calibrate", seed))
    return not first.text.startswith(tuple(of_month(wording_bulk.GENERATIONS, "calibrate")))


def fitted(
    name: str,
    distillers: Sequence[Account],
    ordinary: Sequence[Account],
    hard: Sequence[Account],
    base: Rows,
) -> Rows:
    """(2 K,) weights, for the use and for the account."""
    theirs, others = ([drawn(each.rows, base) for each in side] for side in (distillers, [*ordinary, *hard]))
    weights = np.zeros(2 * K, np.float32)
    for feature, weight in FIRST.get(name, FIRST_ELSE).items():
        weights[FEATURES.index(feature)] = weight
    worst: set[tuple[int, int]] = set()
    for _ in range(ROUNDS):
        worst |= {(number, int((rows @ weights).argmax())) for number, rows in enumerate(others)}
        bad = np.array([rows[(rows @ weights).argmax()] for rows in theirs], np.float64)
        good = np.array([others[number][at] for number, at in sorted(worst)], np.float64)
        weigh = np.array([1.0 if number < len(ordinary) else HARD_WEIGH for number, _ in sorted(worst)])
        weights = regression(bad, good, weigh, weights, bounds(name))
    reached = sorted(float((rows @ weights).max()) for rows in others[: len(ordinary)])
    return weights / reached[int((1.0 - ALARMS[name]) * len(reached)) - 1]


def drawn(rows: Rows, base: Rows) -> Rows:
    """(n, 2 K): how far from ordinary, drawn towards it while there are few requests."""
    of_use, of_account = ((rows[:, at : at + 1]) for at in (2 * K, 2 * K + 1))
    return np.hstack(
        (
            (rows[:, :K] - base) * of_use / (of_use + PRIOR),
            (rows[:, K : 2 * K] - base) * of_account / (of_account + PRIOR),
        )
    )


def bounds(name: str) -> list[tuple[float | None, float | None]]:
    """Of the weights: for the use, for the account, and of the constant."""
    good, bad = REASONS[name]
    signed = [(None if feature in bad else 0.0, None if feature in good else 0.0) for feature in FEATURES]
    any_way: list[tuple[float | None, float | None]] = [(None, None)]
    return signed + (K * any_way if name in UNLIKE_ITS_ACCOUNT else signed) + any_way


def regression(
    bad: Floats,
    good: Floats,
    weigh: Floats,
    first: Rows,
    limits: list[tuple[float | None, float | None]],
) -> Rows:
    """`weigh` are the weights of the good; those of the bad are alike, and together so much of theirs."""
    without = [_without(bad, trait) for trait in TRAITS]
    points = np.vstack((bad, *without, good))
    is_bad = np.repeat([1.0, 0.0], [len(points) - len(good), len(good)])
    each = np.repeat([1.0 - WITHOUT, WITHOUT / len(TRAITS)], [len(bad), len(points) - len(good) - len(bad)])
    weight = np.append(each * DISTILLERS_WEIGH * weigh.sum() / len(bad), weigh)

    def loss(at: Floats) -> tuple[float, Floats]:
        logit = points @ at[:-1] + at[-1]
        value = weight @ (np.logaddexp(0.0, logit) - is_bad * logit) + RIDGE / 2 * at[:-1] @ at[:-1]
        slope = weight * (1.0 / (1.0 + np.exp(-logit)) - is_bad)
        return float(value), np.append(points.T @ slope + RIDGE * at[:-1], slope.sum())

    best = minimize(
        loss, np.append(first, -3.0), jac=True, bounds=limits, method="L-BFGS-B", options={"maxiter": STEPS}
    )
    return np.asarray(best.x[:-1], np.float32)


def _without(points: Floats, trait: Sequence[str]) -> Floats:
    """The same points, in these features like ordinary accounts."""
    changed = points.copy()
    for feature in trait:
        changed[:, [FEATURES.index(feature), K + FEATURES.index(feature)]] = 0.0
    return changed


def written(base: Rows, patterns: dict[str, Rows]) -> str:
    lines = [
        "# Written by benchmarks/detection_fit.py, from simulated accounts.",
        f"prior = {PRIOR}",
        "",
        "[ordinary]",
    ]
    lines += _table(base)
    for name, weights in patterns.items():
        lines += ["", "[[patterns]]", f'name = "{name}"', f'words = "{WORDS[name]}"']
        lines += ["[patterns.use]", *_table(weights[:K]), "[patterns.account]", *_table(weights[K:])]
    return "\n".join(lines) + "\n"


def _table(values: Rows) -> list[str]:
    rows = (f"{feature} = {value:.4f}" for feature, value in zip(FEATURES, values, strict=True))
    return [row for row in rows if not row.endswith(" 0.0000") and not row.endswith("-0.0000")]


if __name__ == "__main__":
    main()
