"""A simulated month as the detector and the rules beside it see it: how high each account rose."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

from detection_rules import Reference, Trail, first_above, highest, rising, trails
from traffic.people import Person, people, requests
from traffic.wording import Month

from stillhouse.guard.evidence import Evidence, observe, seen_of
from stillhouse.guard.scoring import score, shipped

KEY = b"the benchmark's key, of 32 bytes"
SEED = 8
PORTIONS = 40  # of a month, each with its share of every kind
REFERENCE = 2_000  # ordinary requests to which MMD compares
FIRST = 1_500  # requests of a distiller that are looked at; of others all
EVERY = 4  # the rules look at every fourth ordinary account, and at all others


@dataclass(frozen=True, slots=True)
class Watched:
    """An account, with the truth about it, the scores at which it stood higher than ever, and the CPU seconds
    that the detector took for all of its requests."""

    id: str
    kind: str
    side: str
    source: str
    trace: str
    declared: str
    operator: str
    requests: int
    seconds: float
    trail: Trail
    rules: dict[str, Trail] = field(default_factory=dict)

    def passed(self, line: float) -> int | None:
        """After how many requests the score lay above `line`."""
        return first_above(self.trail, line)

    @property
    def highest(self) -> float:
        return highest(self.trail)


def watched(month: Month, numbers: Mapping[str, float], rate: float, folder: Path) -> list[Watched]:
    """So many accounts of each kind. What `folder` holds already is read from there, portion by portion."""
    everyone = people(month, SEED, round(sum(numbers.values())), numbers)
    name = f"{month}-{len(everyone)}-{rate:g}"
    files = [folder / f"{name}-{portion}.jsonl" for portion in range(PORTIONS)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for portion, file in enumerate(files):
            if not file.exists():
                pool.submit(_write, everyone[portion::PORTIONS], month, rate, file)
    return [Watched(**json.loads(line)) for file in files for line in file.read_text().splitlines()]


def _write(portion: Sequence[Person], month: Month, rate: float, file: Path) -> None:
    found = [_account(person, month, rate) for person in portion]
    unfinished = file.with_suffix(".part")
    unfinished.write_text("".join(json.dumps(asdict(each)) + "\n" for each in found))
    unfinished.rename(file)


def _account(person: Person, month: Month, rate: float) -> Watched:
    number = int(person.id.rpartition("/")[2])
    rules = rate == 1.0 and (person.side != "ordinary" or number % EVERY == 0)
    most = FIRST if person.side == "distiller" else None
    evidence, weights, texts, seconds = Evidence(), shipped(), [], 0.0

    def scores() -> Iterator[tuple[int, float]]:
        nonlocal seconds
        for n, request in enumerate(islice(requests(person, month, SEED, rate), most), 1):
            body = request.body()
            before = time.process_time()
            seen = seen_of(KEY, body, "chat/completions", request.output_tokens, request.at)
            reached = score(evidence, observe(evidence, seen), weights)
            seconds += time.process_time() - before
            if rules:
                texts.append(request.text)
            yield n, reached

    trail = rising(scores())
    others = trails(texts, _reference()) if rules else {}
    return Watched(
        person.id,
        person.kind,
        person.side,
        person.source,
        person.trace,
        person.declared,
        person.operator,
        evidence.requests,
        seconds,
        [(n, round(reached, 6)) for n, reached in trail],
        others,
    )


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
