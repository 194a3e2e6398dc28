"""What the ledger is asked while questions are put: which are answered, what became of the attempts, what
they cost. Each function takes `read`, which runs a reading statement and gives all rows; `field` is SQL for a
value in a leaf (`Database.field`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import zstandard

from stillhouse.ledger.leaves import key_bytes, read_leaf

Read = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
Field = Callable[[str], str]

_SQL_VARIABLES = 500


@dataclass(frozen=True, slots=True)
class AttemptCounts:
    """Requests by what became of them; `unknown` were sent, or about to be, when their process died."""

    open: int = 0
    answered: int = 0
    failed: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        return self.open + self.answered + self.failed + self.unknown


class Spent(NamedTuple):
    """US dollars: `known` by the usage of answers, `most` with the worst case of every attempt that may have
    been billed without saying how much."""

    known: float
    most: float


class Billed(NamedTuple):
    """Answers that were bought, the tokens that were read for them, and US dollars, None where no price was
    known."""

    answers: int
    prompt_tokens: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class StoredExchange:
    """A recorded answer; `response` is None when it was erased or never recorded, and `erased` says that it
    was there and was erased."""

    key: str
    leaf: int
    body: dict[str, Any]
    response: bytes | None
    erased: bool = False


def nano(dollars: float | None) -> int | None:
    """Billionths of a US dollar, rounded up: a sum of them never stays below the true one. What no provider
    can mean (over nine million dollars) is taken for the most that a record holds."""
    return None if dollars is None else min(2**53 - 1, math.ceil(dollars * 1e9 - 1e-6))


def attempts(read: Read, run: str | None) -> AttemptCounts:
    where, given = ("", ()) if run is None else ("WHERE run = ?", (run,))
    return AttemptCounts(**dict(read(f"SELECT state, count(*) FROM attempt {where} GROUP BY state", given)))


def spent(read: Read, run: str) -> Spent:
    rows = read(
        "SELECT CAST(coalesce(sum(cost), 0) AS BIGINT),"
        " CAST(coalesce(sum(coalesce(cost, reserved)), 0) AS BIGINT) FROM attempt WHERE run = ?",
        (run,),
    )
    return Spent(rows[0][0] / 1e9, rows[0][1] / 1e9)


def billed(read: Read, field: Field, run: str, stage: str) -> Billed:
    rows = read(
        f"SELECT count(*), CAST(sum(CAST({field('prompt_tokens')} AS BIGINT)) AS BIGINT),"
        " CAST(sum(a.cost) AS BIGINT) FROM attempt a JOIN leaf l ON l.idx = a.leaf"
        f" WHERE a.run = ? AND {field('stage')} = ?",
        (run, stage),
    )
    answers, read_tokens, cost = rows[0]
    return Billed(answers, read_tokens or 0, None if cost is None else cost / 1e9)


def unpriced(read: Read, field: Field, run: str) -> list[tuple[str, int | None, int | None]]:
    """(teacher, prompt tokens, completion tokens) of the run's attempts that may have been billed when no
    price was known; None where no usage is known either."""
    rows = read(
        f"SELECT a.teacher, CAST({field('prompt_tokens')} AS BIGINT),"
        f" CAST({field('completion_tokens')} AS BIGINT)"
        " FROM attempt a LEFT JOIN leaf l ON l.idx = a.leaf"
        " WHERE a.run = ? AND a.reserved IS NULL AND a.cost IS NULL",
        (run,),
    )
    return [(str(teacher), prompt, completion) for teacher, prompt, completion in rows]


def unknown(read: Read, keys: Iterable[str]) -> set[str]:
    return _attempted(read, "state = 'unknown'", keys)


def in_batches(read: Read, keys: Iterable[str]) -> set[str]:
    return _attempted(read, "state = 'open' AND batch IS NOT NULL", keys)


def _attempted(read: Read, how: str, keys: Iterable[str]) -> set[str]:
    """Those of the keys that have an attempt of this kind."""
    found: set[str] = set()
    remaining = iter(keys)
    while batch := list(islice(remaining, _SQL_VARIABLES)):
        marks = ",".join("?" * len(batch))
        query = f"SELECT DISTINCT key FROM attempt WHERE {how} AND key IN ({marks})"
        found |= {bytes(key).hex() for (key,) in read(query, [key_bytes(key) for key in batch])}
    return found


def unsettled(read: Read, run: str) -> dict[int, str]:
    rows = read("SELECT id, key FROM attempt WHERE run = ? AND state IN ('open', 'unknown')", (run,))
    return {attempt: bytes(key).hex() for attempt, key in rows}


def exchanges(read: Read, keys: Iterable[str]) -> Iterator[StoredExchange]:
    remaining = iter(keys)
    while batch := list(islice(remaining, _SQL_VARIABLES)):
        found = _exchanges(read, batch)
        for key in batch:
            if key in found:
                yield found[key]


def _exchanges(read: Read, keys: list[str]) -> dict[str, StoredExchange]:
    marks = ",".join("?" * len(keys))
    rows = read(
        "SELECT e.key, l.idx, l.kind, l.time, l.data, l.hash, c.id, c.body"
        f" FROM (SELECT key, max(leaf) AS leaf FROM exchange WHERE key IN ({marks}) GROUP BY key) e"
        " JOIN leaf l ON l.idx = e.leaf"
        " LEFT JOIN content c ON c.leaf = e.leaf AND c.name = 'response'",
        [key_bytes(key) for key in keys],
    )
    unpack = zstandard.ZstdDecompressor().decompress
    found: dict[str, StoredExchange] = {}
    for key, index, kind, time, data, digest, content, packed in rows:
        name, leaf = bytes(key).hex(), read_leaf(index, kind, time, data, digest)
        response = None if packed is None else unpack(packed)
        erased = content is not None and packed is None
        found[name] = StoredExchange(name, leaf.index, leaf.body, response, erased)
    return found
