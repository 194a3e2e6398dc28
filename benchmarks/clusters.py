"""Operators of many accounts among honest customers: how many are found, and which customers seem to be one.

    .venv/bin/python benchmarks/clusters.py [--quick] [--json FILE] [--folder FOLDER]

SIMULATED accounts (docs/simulation.md). A month has honest customers of every kind, the hard ones among them,
and `CUSTOMERS` more of one bought application; who has bought an application sends its words and, unlike in
the simulation elsewhere, its settings too. In each trial an operator, with no more than 50 exchanges an
account on average, works beside one of these months. Whatever was tuned was tuned on the calibration
month. An operator is found where one cluster, most of whose accounts are its, holds `FOUND` of its accounts.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from random import Random
from statistics import fmean

from rows import DATA, Row, arguments, header, need, show, working_folder
from scipy.stats import chi2
from traffic.people import MIX, Person, Request, people, person, requests
from traffic.wording import Month

from stillhouse.guard.clusters import LEAST, clusters
from stillhouse.guard.evidence import SIZE as EVIDENCE
from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.likeness import REQUESTS, SIZE, Sketch, came, note
from stillhouse.guard.seen import seen_of
from stillhouse.stats import wilson

KEY = b"the benchmark's key, of 32 bytes"
SEED = 8
FIRST_OPERATOR = 1_000  # seed; each operator is the first of a month of its own
ACCOUNTS, EXCHANGES = 50, 50
FOUND = 0.4
CUSTOMERS, APPLICATION = 100, "app:support#0"
HONEST = {name: share for name, share in MIX.items() if not name.startswith("distiller")}


@dataclass(frozen=True, slots=True)
class Scale:
    """`months` of `honest` accounts each, `trials` of 50 accounts, and `large` of operators of any size."""

    months: int
    honest: int
    trials: int
    large: int


FULL = Scale(30, 500, 120, 10)
QUICK = Scale(1, 250, 4, 0)


def as_bought(person: Person, request: Request) -> Request:
    """With the settings of the application that the account bought."""
    if not person.application:
        return request
    draw = Random(person.application)
    return replace(
        request,
        max_tokens=draw.choice((None, 256, 1_024)),
        temperature=draw.choice((None, 0.0, 0.7)),
        n=1,
        logprobs=0,
        reasoning=False,
    )


def sketch_of(asked: Iterable[Request]) -> Sketch:
    evidence, sketch = Evidence(), Sketch()
    for number, request in enumerate(asked):
        if number < REQUESTS:
            seen = seen_of(KEY, request.body(), "chat/completions", request.output_tokens, request.at)
            observe(evidence, seen)
            note(sketch, evidence, seen, request.model)
        else:
            came(sketch, request.at, request.model)
    return sketch


def honest(month: Month, number: int, folder: Path, seed: int) -> dict[str, Sketch]:
    """The `seed`-th month of so many honest accounts; kept in the folder."""
    file = folder / f"{month}-{number}-{seed}.sketches"
    everyone = people(month, seed, number, HONEST)
    named = (person(month, seed, "app:support", place) for place in count(number))
    everyone += islice((one for one in named if one.application == APPLICATION), CUSTOMERS)
    if not file.exists():
        asked = ((as_bought(one, each) for each in requests(one, month, seed)) for one in everyone)
        unfinished = file.with_suffix(".part")
        unfinished.write_bytes(b"".join(sketch_of(each).packed() for each in asked))
        unfinished.rename(file)
    data = file.read_bytes()
    parts = (data[at : at + SIZE] for at in range(0, len(data), SIZE))
    return {one.id: Sketch.unpacked(part) for one, part in zip(everyone, parts, strict=True)}


def operator(month: Month, seed: int, accounts: int | None) -> dict[str, Sketch]:
    """The first operator of a month of its own: `accounts` of its accounts with their first 50 requests each
    on average, or all of them with all requests."""
    team = []
    for number in count():
        one = person(month, seed, "distiller:operator", number)
        if one.operator != "operator-0" or number == accounts:
            break
        team.append(one)
    if accounts is None:
        return {one.id: sketch_of(requests(one, month, seed)) for one in team}
    asked: dict[str, list[Request]] = {one.id: [] for one in team}

    def timed(one: Person) -> Iterator[tuple[float, str, Request]]:
        return ((each.at, one.id, each) for each in requests(one, month, seed, EXCHANGES / 60))

    together = heapq.merge(*map(timed, team), key=lambda each: each[0])
    for _, name, each in islice(together, accounts * EXCHANGES):
        asked[name].append(each)
    return {name: sketch_of(each) for name, each in asked.items()}


@dataclass(frozen=True, slots=True)
class Trial:
    """Which share of the operator's accounts the cluster has that holds most of them, and which share of that
    cluster they are; how many clusters are mostly of others; whether the rule by settings finds it."""

    accounts: int
    steady: bool
    held: float
    pure: float
    false: int
    seconds: float
    by_settings: bool

    @property
    def found(self) -> bool:
        return self.held >= FOUND and self.pure > 0.5


def trial(month: Month, scale: Scale, folder: Path, size: int | None, number: int) -> Trial:
    theirs = operator(month, FIRST_OPERATOR + number, size)
    everyone = honest(month, scale.honest, folder, number % scale.months) | theirs
    before = time.process_time()
    found = clusters(everyone, Random(number)).clusters
    seconds = time.process_time() - before
    held, pure = best((cluster.accounts for cluster in found), theirs)
    false = sum(2 * len(own(cluster.accounts, theirs)) <= len(cluster.accounts) for cluster in found)
    rule_held, rule_pure = best(same_settings(everyone), theirs)
    steady = not person(month, FIRST_OPERATOR + number, "distiller:operator", 0).trace
    by_settings = rule_held >= FOUND and rule_pure > 0.5
    return Trial(len(theirs), steady, held, pure, false, seconds, by_settings)


def own(accounts: Iterable[str], theirs: Iterable[str]) -> set[str]:
    return set(accounts) & set(theirs)


def best(groups: Iterable[Sequence[str]], theirs: dict[str, Sketch]) -> tuple[float, float]:
    """Of the group with most of the operator's accounts: which share of them, and which of it they are."""
    most = max(groups, key=lambda group: len(own(group, theirs)), default=())
    found = len(own(most, theirs))
    return found / len(theirs), found / max(1, len(most))


def same_settings(sketches: dict[str, Sketch]) -> list[list[str]]:
    """The rule beside it: who uses one model with one system message and one set of parameters most."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, sketch in sketches.items():
        groups[max(sketch.settings, key=sketch.settings.__getitem__, default=0)].append(name)
    return [group for group in groups.values() if len(group) >= LEAST]


@dataclass(frozen=True, slots=True)
class Quiet:
    accounts: int
    clusters: int
    by_settings: int


def quiet(month: Month, scale: Scale, folder: Path, seed: int) -> Quiet:
    """A month with no operator."""
    sketches = honest(month, scale.honest, folder, seed)
    found = clusters(sketches, Random(seed)).clusters
    return Quiet(len(sketches), len(found), len(same_settings(sketches)))


def share(what: str, trials: Sequence[Trial], target: float | None = None) -> Row:
    """How many operators were found."""
    hits = sum(each.found for each in trials)
    rule = sum(each.by_settings for each in trials) / len(trials)
    part, span = hits / len(trials), wilson(hits, len(trials))
    return Row(
        f"{what}: found",
        part,
        f"of {len(trials)}",
        span.low,
        span.high,
        peer="same settings alone" if rule else None,
        peer_value=rule,
        ratio=part / rule if rule else None,
        target=None if target is None else f">= {target:g} of at least 100",
        holds=None if target is None else part >= target and len(trials) >= 100,
    )


def a_month(what: str, events: int, months: int, rule: float | None = None) -> Row:
    """A rate with the exact interval of a Poisson count (Garwood 1936)."""
    low = float(chi2.ppf(0.025, 2 * events)) / 2 / months if events else 0.0
    high = float(chi2.ppf(0.975, 2 * events + 2)) / 2 / months
    row = Row(what, events / months, "a month", low, high)
    if rule is None:
        return row
    return replace(
        row,
        peer="same settings alone" if rule else None,
        peer_value=rule,
        ratio=events / months / rule if rule else None,
        target="<= 1 over at least 30",
        holds=events <= months and months >= 30,
    )


def figures(quiets: Sequence[Quiet], small: Sequence[Trial], large: Sequence[Trial]) -> list[Row]:
    rule = fmean(each.by_settings for each in quiets)
    rows = [
        Row("honest accounts a month", fmean(each.accounts for each in quiets), ""),
        share(f"operators of {ACCOUNTS} accounts, {EXCHANGES} exchanges each", small, 0.9),
        *(
            share(f"the same, {what}", some)
            for what, some in (
                ("requests in bursts", [each for each in small if not each.steady]),
                ("requests spread evenly", [each for each in small if each.steady]),
            )
            if some
        ),
        Row("accounts of an operator that was found: in its cluster", mean_of(small, "held"), ""),
        Row("accounts of such a cluster: the operator's", mean_of(small, "pure"), ""),
        a_month("false clusters, no operator", sum(each.clusters for each in quiets), len(quiets), rule),
        a_month("false clusters beside an operator", sum(each.false for each in small), len(small)),
    ]
    if large:
        sizes = [each.accounts for each in large]
        what = f"operators of {min(sizes)} to {max(sizes)} accounts, some 60 exchanges each"
        rows.append(share(what, large))
    seconds = max(each.seconds for each in [*small, *large])
    rows.append(Row("a search among these accounts, the longest", seconds, "CPU s"))
    return rows


def mean_of(trials: Sequence[Trial], name: str) -> float | None:
    found = [getattr(each, name) for each in trials if each.found]
    return fmean(found) if found else None


def cost(month: Month) -> list[Row]:
    """What the sketch adds to a request and to an account."""
    everyone = people(month, SEED, 40, HONEST)
    taken = []
    for one in everyone:
        evidence, seen = Evidence(), []
        for request in islice(requests(one, month, SEED), 60):
            each = seen_of(KEY, request.body(), "chat/completions", request.output_tokens, request.at)
            observe(evidence, each)
            seen.append((each, request.model))
        taken.append((evidence, seen))
    times = []
    for _ in range(5):
        before = time.process_time()
        for evidence, seen in taken:
            sketch = Sketch()
            for each, model in seen:
                note(sketch, evidence, each, model)
        times.append(time.process_time() - before)
    spent = 1e6 * min(times) / sum(len(seen) for _, seen in taken)
    whole = EVIDENCE + SIZE
    return [
        Row("the sketch, a request", spent, "us CPU"),
        Row("the sketch", SIZE, "bytes an account"),
        Row("sketch and evidence", whole, "bytes an account", target="<= 4,096", holds=whole <= 4_096),
    ]


def main() -> None:
    options = arguments((__doc__ or "").split("\n", 1)[0], resumable=True)
    need(DATA / "traffic")
    scale = QUICK if options.quick else FULL
    with working_folder(options.folder) as folder, ProcessPoolExecutor(os.cpu_count()) as pool:
        quiets = list(pool.map(partial(quiet, "test", scale, folder), range(scale.months)))
        small = list(pool.map(partial(trial, "test", scale, folder, ACCOUNTS), range(scale.trials)))
        large = list(pool.map(partial(trial, "test", scale, folder, None), range(scale.large)))
    rows = [*figures(quiets, small, large), *cost("test")]
    show(header(SEED, ["stillhouse", "scipy"]), rows, options.json)


if __name__ == "__main__":
    main()
