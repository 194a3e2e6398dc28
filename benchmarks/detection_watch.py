"""A simulated month as the detector and the rules beside it see it: how high each account rose.

The months are walked once. What the evidence says of every request is kept in a folder, so that a run that
was interrupted goes on where it stopped, and is scored from there as `stillhouse.guard.scoring` scores it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from detection_rules import Reference, Trail, first_above, highest, rising, trails
from numpy.typing import NDArray
from scipy.signal import lfilter
from traffic.people import Person, people, requests
from traffic.wording import Month

from stillhouse.guard.evidence import FADES, FEATURES, Evidence, means_of, observe
from stillhouse.guard.scoring import Weights, score, shipped
from stillhouse.guard.seen import seen_of

Floats = NDArray[np.float64]

KEY = b"the benchmark's key, of 32 bytes"
SEED = 8
PORTIONS = 40  # of a month, each with its share of every kind
PROCESSES = 2
REFERENCE = 2_000  # ordinary requests to which MMD compares
FIRST = 1_500  # requests of a distiller that are looked at; of others all
EVERY = 4  # the rules look at every fourth ordinary account
COMPARED = ("distiller:pure", "distiller:mix25", "distiller:mix10")  # and at these
KEPT = 1.0 - 1.0 / FADES


@dataclass(frozen=True, slots=True)
class Look:
    """A month with so many accounts of each kind, who ask `rate` times as much; the rules look as well."""

    month: Month
    seed: int
    numbers: Mapping[str, int]
    rate: float = 1.0
    rules: bool = False


@dataclass(frozen=True, slots=True)
class Watched:
    """An account, with the truth about it, and the scores at which it stood higher than ever."""

    id: str
    kind: str
    side: str
    source: str
    trace: str
    declared: str
    operator: str
    requests: int
    rules: dict[str, Trail] = field(default_factory=dict)
    trail: Trail = field(default_factory=list)

    def passed(self, line: float) -> int | None:
        """After how many requests the score lay above `line`."""
        return first_above(self.trail, line)

    @property
    def highest(self) -> float:
        return highest(self.trail)


@dataclass(frozen=True, slots=True)
class Walked:
    """What the evidence said of each request of an account: its features (n, K), its use, and for how many
    requests the use counted then."""

    features: Floats
    uses: NDArray[np.int8]
    counted: Floats


def watched(looks: Mapping[str, Look], folder: Path, portions: int = PORTIONS) -> dict[str, list[Watched]]:
    """The accounts of each look, by its name."""
    weights = shipped()
    return {
        name: [
            replace(account, trail=rising(numbered(scores(walk, weights))))
            for file in files
            for account, walk in read(file)
        ]
        for name, files in walked(looks, folder, portions).items()
    }


def walked(looks: Mapping[str, Look], folder: Path, portions: int = PORTIONS) -> dict[str, list[Path]]:
    """A file for each portion of each look; one that `folder` holds already is left as it is. All looks take
    their first portion before any takes its second, so that what is there is of every look and kind."""
    files: dict[str, list[Path]] = {name: [] for name in looks}
    everyone = {
        name: people(look.month, look.seed, sum(look.numbers.values()), look.numbers)
        for name, look in looks.items()
    }
    with ProcessPoolExecutor(PROCESSES) as pool:
        for portion in range(portions):
            for name, look in looks.items():
                file = folder / f"{name}-{len(everyone[name])}-{portion}.npz"
                some = everyone[name][portion::PORTIONS]
                if some:
                    files[name].append(file)
                if some and not file.exists():
                    pool.submit(_write, some, look, file)
    return files


def read(file: Path) -> Iterator[tuple[Watched, Walked]]:
    with np.load(file) as data:
        accounts = [Watched(**each) for each in json.loads(str(data["accounts"]))]
        features, uses, counted = (data[name] for name in ("features", "uses", "counted"))
    at = 0
    for each in accounts:
        here = slice(at, at := at + each.requests)
        yield each, Walked(features[here].astype(float), uses[here], counted[here].astype(float))


def _write(portion: Sequence[Person], look: Look, file: Path) -> None:
    accounts, walks = zip(*[_account(person, look) for person in portion], strict=True)
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as out:
        np.savez(
            out,
            accounts=json.dumps([asdict(each) for each in accounts]),
            features=np.vstack([walk.features for walk in walks]).astype(np.float32),
            uses=np.concatenate([walk.uses for walk in walks]),
            counted=np.concatenate([walk.counted for walk in walks]).astype(np.float32),
        )
    unfinished.rename(file)


def numbered(values: Floats) -> Iterator[tuple[int, float]]:
    return ((n, round(float(value), 6)) for n, value in enumerate(values, 1))


def scores(walk: Walked, weights: Weights) -> Floats:
    """(n,), what `scoring.score` says after each request."""
    own, whole, weight = means(walk)
    drawn = walk.counted / (walk.counted + weights.prior)
    all_drawn = weight / (weight + weights.prior)
    by_pattern = [
        drawn * (own @ np.array(pattern.of_use) - pattern.use_base)
        + all_drawn * (whole @ np.array(pattern.of_account) - pattern.account_base)
        for pattern in weights.patterns
    ]
    found: Floats = np.max(by_pattern, axis=0)
    return found


def means(walk: Walked) -> tuple[Floats, Floats, Floats]:
    """(n, K) of the use and (n, K) of the account after each request, and (n,) requests of the account."""
    own = np.empty_like(walk.features)
    for use in np.unique(walk.uses):
        places = np.flatnonzero(walk.uses == use)
        # A use that took another's place counts from 1 again.
        begins = [*np.flatnonzero(walk.counted[places] == 1.0), len(places)]
        for begin, end in pairwise(begins):
            own[places[begin:end]] = _faded(walk.features[places[begin:end]])
    weight = _faded(np.ones(len(own)))
    return own / walk.counted[:, None], _faded(walk.features) / weight[:, None], weight


def _faded(values: Floats) -> Floats:
    faded: Floats = lfilter([1.0], [1.0, -KEPT], values, axis=0)
    return faded


def _account(person: Person, look: Look) -> tuple[Watched, Walked]:
    number = int(person.id.rpartition("/")[2])
    rules = look.rules and (person.kind in COMPARED or (person.side == "ordinary" and number % EVERY == 0))
    most = FIRST if person.side == "distiller" else None
    evidence, texts = Evidence(), []
    features, uses, counted = [], [], []
    whole = np.zeros(len(FEATURES))
    for request in islice(requests(person, look.month, look.seed, look.rate), most):
        seen = seen_of(KEY, request.body(), "chat/completions", request.output_tokens, request.at)
        use = observe(evidence, seen)
        _, own_weight, sums, _ = means_of(evidence, use)
        before, whole = whole, np.array(sums, np.float32)
        features.append(whole - KEPT * before)
        uses.append(use)
        counted.append(own_weight)
        if rules:
            texts.append(request.text)
    account = Watched(
        person.id,
        person.kind,
        person.side,
        person.source,
        person.trace,
        person.declared,
        person.operator,
        evidence.requests,
        trails(texts, _reference()) if rules else {},
    )
    return account, Walked(np.array(features), np.array(uses, np.int8), np.array(counted))


def best_time(runs: int = 7) -> float:
    """CPU seconds of the detector per request: the fastest of so many runs over first requests."""
    asked = [
        list(islice(requests(person, "calibrate", SEED + 1), 40))
        for person in people("calibrate", SEED + 1, 60)
    ]
    bodies = [[(each.body(), each.output_tokens, each.at) for each in account] for account in asked]
    times = []
    for _ in range(runs):
        before = time.process_time()
        for account in bodies:
            evidence = Evidence()
            for body, tokens, at in account:
                use = observe(evidence, seen_of(KEY, body, "chat/completions", tokens, at))
                score(evidence, use, shipped())
        times.append(time.process_time() - before)
    return min(times) / sum(map(len, bodies))


@cache
def _reference() -> Reference:
    """Of the calibration month, whichever month is watched; of accounts that are in neither."""
    texts: list[str] = []
    for person in people("calibrate", SEED + 1, 400):
        if person.side == "ordinary":
            texts += [request.text for request in islice(requests(person, "calibrate", SEED + 1), 20)]
    return Reference(texts[:: max(1, len(texts) // REFERENCE)], SEED)
