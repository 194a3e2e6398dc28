"""A simulated month as the detector and the rules beside it see it: how high each account rose."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path

from detection_rules import Reference, Trail, rising, trails
from traffic.people import Person, people, requests
from traffic.wording import Month

from stillhouse.guard.evidence import Evidence, observe, seen_of
from stillhouse.guard.scoring import score, shipped

KEY = b"the benchmark's key, of 32 bytes"
SEED = 8
PORTION = 50  # accounts a process takes at once
REFERENCE = 2_000  # ordinary requests to which MMD compares


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
        return self.trail[-1][1] if self.trail else 0.0


def first_above(trail: Trail, line: float) -> int | None:
    return next((n for n, reached in trail if reached > line), None)


def watched(month: Month, count: int, rate: float, rules: bool, folder: Path | None) -> list[Watched]:
    """`count` accounts of the month; those that `folder` holds are read from there."""
    kept = folder / f"{month}-{count}-{rate:g}-{rules:d}.jsonl" if folder else None
    if kept is not None and kept.exists():
        return [Watched(**json.loads(line)) for line in kept.read_text().splitlines()]
    everyone = people(month, SEED, count)
    portions = [everyone[at :: len(everyone) // PORTION + 1] for at in range(len(everyone) // PORTION + 1)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        work = partial(_watch, month=month, rate=rate, rules=rules)
        found = [each for portion in pool.map(work, portions) for each in portion]
    if kept is not None:
        kept.write_text("".join(json.dumps(asdict(each)) + "\n" for each in found))
    return found


def _watch(portion: Sequence[Person], month: Month, rate: float, rules: bool) -> list[Watched]:
    return [_account(person, month, rate, rules) for person in portion]


def _account(person: Person, month: Month, rate: float, rules: bool) -> Watched:
    evidence, weights, texts, seconds = Evidence(), shipped(), [], 0.0

    def scores() -> Iterator[tuple[int, float]]:
        nonlocal seconds
        for n, request in enumerate(requests(person, month, SEED, rate), 1):
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


@cache
def _reference() -> Reference:
    """Of the calibration month, whichever month is watched; of accounts that are in neither."""
    texts: list[str] = []
    for person in people("calibrate", SEED + 1, 400):
        if person.side == "ordinary":
            texts += [request.text for request in islice(requests(person, "calibrate", SEED + 1), 20)]
    return Reference(texts[:: max(1, len(texts) // REFERENCE)], SEED)
