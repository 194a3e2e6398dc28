"""Operators of many accounts among honest customers: how many are found, and how often customers are taken for one.

    .venv/bin/python benchmarks/clusters.py [--quick] [--json FILE] [--folder FOLDER]

SIMULATED accounts (docs/simulation.md). A month has honest customers of every kind, the hard ones among them,
and `CUSTOMERS` more of one bought application; who has bought an application sends its words and, unlike in
the simulation elsewhere, its settings too. In each trial an operator, with no more than 50 exchanges an
account on average, works beside one of these months. Whatever was tuned was tuned on the calibration month.
An operator is found where one cluster, most of whose accounts are its, holds at least `FOUND` of its accounts.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from random import Random

from rows import DATA, Row, arguments, header, need, show, working_folder
from traffic.people import MIX, Person, Request, people, person, requests
from traffic.wording import Month

from stillhouse.guard.calibrating import upper_bound
from stillhouse.guard.clusters import Cluster, Found, clusters
from stillhouse.guard.evidence import Evidence, observe, seen_of
from stillhouse.guard.likeness import REQUESTS, SIZE, Sketch, note
from stillhouse.stats import wilson

KEY = b"the benchmark's key, of 32 bytes"
SEED = 8
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


FULL = Scale(30, 2_500, 120, 40)
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
    for request in islice(asked, REQUESTS):
        seen = seen_of(KEY, request.body(), "chat/completions", request.output_tokens, request.at)
        observe(evidence, seen)
        note(sketch, evidence, seen, request.model)
    return sketch


def honest(month: Month, number: int, folder: Path, seed: int) -> dict[str, Sketch]:
    """The `seed`-th month of so many honest accounts; kept in the folder."""
    file = folder / f"{month}-{number}-{seed}.sketches"
    everyone = people(month, seed, number, HONEST)
    named = (person(month, seed, "app:support", place) for place in count(number))
    everyone += islice((one for one in named if one.application == APPLICATION), CUSTOMERS)
    if not file.exists():
        asked = (
            (as_bought(one, each) for each in islice(requests(one, month, seed), REQUESTS)) for one in everyone
        )
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
    """Shares of the operator's accounts in its best cluster, and of that cluster's accounts that are its."""

    accounts: int
    held: float
    pure: float
    false: int
    seconds: float


def trial(month: Month, honest_accounts: int, months: int, folder: Path, size: int | None, number: int) -> Trial:
    everyone = honest(month, honest_accounts, folder, number % months) if months else {}
    theirs = operator(month, 1_000 + number, size)
    before = time.process_time()
    found = clusters(everyone | theirs, Random(number))
    seconds = time.process_time() - before
    best = max(found.clusters, key=lambda each: len(own(each, theirs)), default=None)
    held = own(best, theirs) if best else []
    return Trial(
        len(theirs),
        len(held) / len(theirs),
        len(held) / len(best.accounts) if best else 0.0,
        sum(2 * len(own(each, theirs)) < len(each.accounts) for each in found.clusters),
        seconds,
    )


def own(cluster: Cluster, theirs: dict[str, Sketch]) -> list[str]:
    return [name for name in cluster.accounts if name in theirs]


def quiet(month: Month, number: int, folder: Path, seed: int) -> Found:
    return clusters(honest(month, number, folder, seed), Random(seed))
