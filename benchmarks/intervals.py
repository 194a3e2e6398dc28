"""Do 95 % intervals cover what they say, and does the non-inferiority verdict err within its level?

    .venv/bin/python benchmarks/intervals.py [--quick] [--json FILE]

Simulated runs, because only of them the truth is known: teacher and student answer the same prompts, right or
wrong, alone or in groups. Prompts of a group share chances drawn around those of all (a Dirichlet
distribution: the lower its weight, the more alike they are). Beside stillhouse's score interval stands the
paired bootstrap over the same groups, and for the verdict the rule that reads the bootstrap's ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rows import Row, arguments, header, show

from stillhouse import stats

SEED = 11
LEVEL = 0.025  # of the verdict, on each side
RESAMPLES = 400  # of the peer
Scores = NDArray[np.float64]


class Truth(NamedTuple):
    """What is true of a run: the teacher's accuracy, how often both are right or both wrong, the share kept;
    how many groups there are of how many prompts on average, and how alike those are (None: not at all)."""

    accuracy: float
    agreement: float
    kept: float
    groups: int
    size: int = 1
    weight: float | None = None

    def __str__(self) -> str:
        many = (
            f"{self.groups} alone" if self.weight is None else f"{self.groups} groups of {self.size}, alike"
        )
        return f"{many}; {self.accuracy:g} right, {self.agreement:g} agree, {self.kept:g} kept"


TRUTHS = (
    Truth(0.95, 0.94, 0.98, 100),
    Truth(0.95, 0.96, 1.0, 200),
    Truth(0.97, 0.95, 0.97, 300),
    Truth(0.95, 0.95, 0.98, 1000),
    Truth(0.99, 0.98, 0.99, 1000),
    Truth(0.8, 0.8, 0.85, 300),
    Truth(0.6, 0.7, 0.9, 100),
    Truth(0.9, 0.85, 0.95, 12, 10, 4.0),
    Truth(0.9, 0.9, 0.95, 20, 10, 4.0),
    Truth(0.95, 0.94, 0.98, 40, 10, 2.0),
    Truth(0.95, 0.94, 0.98, 100, 5, 2.0),
    Truth(0.9, 0.88, 0.97, 60, 15, 8.0),
    Truth(0.8, 0.8, 0.9, 30, 30, 5.0),
)
BEFORE = 0.1  # what the untrained student has right, whatever the others do


def draw(rng: np.random.Generator, truth: Truth) -> tuple[Scores, Scores, stats.Codes]:
    """Scores of student and teacher, and the group of each prompt. Groups differ in size."""
    lost = truth.accuracy * (1 - truth.kept)
    student_only = (1 - truth.agreement - lost) / 2
    both, neither = truth.accuracy - student_only - lost, 1 - truth.accuracy - student_only
    cells = np.array([both, student_only + lost, student_only, neither])
    sizes = np.ones(truth.groups, dtype=np.intp)
    chances = np.tile(cells, (truth.groups, 1))
    if truth.weight is not None:
        sizes = np.maximum(1, rng.poisson(truth.size, truth.groups))
        chances = rng.dirichlet(np.maximum(truth.weight * cells, 1e-9), truth.groups)
    codes = np.repeat(np.arange(truth.groups), sizes)
    kind = (rng.random(len(codes))[:, None] > chances.cumsum(axis=1)[codes][:, :3]).sum(axis=1)
    return np.isin(kind, (0, 2)).astype(float), np.isin(kind, (0, 1)).astype(float), codes


def coverage(truth: Truth, runs: int, rng: np.random.Generator) -> list[Row]:
    margin = 1 - truth.kept + 1e-9  # the student stands at the margin: every ruling is an error
    held = dict.fromkeys(("share", "share by bootstrap", "difference", "gap"), 0)
    ruled = dict.fromkeys(
        ("non-inferior", "inferior", "non-inferior by bootstrap", "inferior by bootstrap"), 0
    )
    gap_truth = (truth.accuracy * truth.kept - BEFORE) / (truth.accuracy - BEFORE)
    for _ in range(runs):
        student, teacher, codes = draw(rng, truth)
        before = (rng.random(len(codes)) < BEFORE).astype(float)
        share = stats.paired_ratio(student, teacher, codes)
        apart = stats.paired_difference(student, teacher, codes)
        boot = stats.bootstrap_ratio(student, teacher, codes, rng, RESAMPLES)
        gap = stats.fieller_ratio(student - before, teacher - before, codes)
        held["share"] += within(share, truth.kept)
        held["share by bootstrap"] += within(boot, truth.kept)
        held["difference"] += within(apart, truth.accuracy * (truth.kept - 1))
        held["gap"] += within(gap, gap_truth)
        if decision := stats.decide(student, teacher, codes, margin):
            ruled[decision.ruling] = ruled.get(decision.ruling, 0) + 1
        ruled["non-inferior by bootstrap"] += boot.low is not None and boot.low >= 1 - margin
        ruled["inferior by bootstrap"] += boot.high is not None and boot.high < 1 - margin
    rows = [covered(f"share kept, {truth}", held["share"], runs, held["share by bootstrap"])]
    rows.append(covered(f"difference, {truth}", held["difference"], runs))
    rows.append(covered(f"gap closed, {truth}", held["gap"], runs))
    for ruling in ("non-inferior", "inferior"):
        span, peer = stats.wilson(ruled[ruling], runs), ruled[f"{ruling} by bootstrap"] / runs
        rows.append(
            Row(
                f"false {ruling}, {truth}",
                span.value,
                "of runs",
                span.low,
                span.high,
                "bootstrap",
                peer,
                (span.value or 0.0) / peer if peer else 0.0,
                f"<= {LEVEL:g}",
                (span.low or 0.0) <= LEVEL,
            )
        )
    return rows


def within(span: stats.Interval, truth: float) -> bool:
    return (span.low is None or span.low <= truth) and (span.high is None or truth <= span.high)


def covered(what: str, count: int, runs: int, peer: int | None = None) -> Row:
    span = stats.wilson(count, runs)
    target, holds = "0.93 to 0.97", 0.93 <= count / runs <= 0.97
    if peer is None:
        return Row(what, span.value, "of runs", span.low, span.high, target=target, holds=holds)
    ratio = count / peer if peer else 0.0
    return Row(
        what, span.value, "of runs", span.low, span.high, "bootstrap", peer / runs, ratio, target, holds
    )


def planned(truth: Truth, margin: float, runs: int, rng: np.random.Generator) -> Row:
    """How often the planned number of prompts decides."""
    n = stats.prompts_needed(truth.accuracy, truth.agreement, margin, truth.kept)
    assert n is not None
    wanted = "non-inferior" if truth.kept > 1 - margin else "inferior"
    count = 0
    for _ in range(runs):
        decision = stats.decide(*draw(rng, truth._replace(groups=n)), margin)
        count += decision is not None and decision.ruling == wanted
    span = stats.wilson(count, runs)
    what = f"{wanted} at a margin of {margin:g} with {n} planned prompts, {truth.kept:g} kept"
    holds = abs(count / runs - 0.8) <= 0.05
    return Row(what, span.value, "of runs", span.low, span.high, target="0.75 to 0.85", holds=holds)


def main() -> None:
    options = arguments((__doc__ or "").split("\n", 1)[0])
    runs = 100 if options.quick else 1000
    rng = np.random.default_rng(SEED)
    rows = [row for truth in TRUTHS for row in coverage(truth, runs, rng)]
    for truth, margin in (
        (Truth(0.9, 0.9, 1.0, 1), 0.05),
        (Truth(0.95, 0.95, 0.99, 1), 0.04),
        (Truth(0.8, 0.85, 0.85, 1), 0.05),
    ):
        rows.append(planned(truth, margin, runs, rng))
    show(header(SEED, ["stillhouse", "numpy"]), rows, options.json)


if __name__ == "__main__":
    main()
