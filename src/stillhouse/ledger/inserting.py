"""Rows for what a group of callers asked at once: a few statements for all of them, within a transaction.

While SQLite works on a statement other threads of Python run, and afterwards it waits for its turn among
them. So what counts is the number of statements, more than that of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from stillhouse.errors import LedgerError
from stillhouse.ledger.database import Connection
from stillhouse.ledger.leaves import NewLeaf
from stillhouse.ledger.spending import spend
from stillhouse.ledger.tree import TILE, seal

T = TypeVar("T")

_AT_ONCE = (64, 16, 4, 1)  # rows of a statement; few sizes, so that SQLite keeps all of them prepared


class Answer(NamedTuple):
    """What settles an attempt; `cost` in billionths of a US dollar."""

    attempt: int
    leaf: NewLeaf
    cost: int | None


def insert_attempts(db: Connection, rows: Sequence[tuple[Any, ...]], batch: int | None = None) -> list[int]:
    """(key, run, prompt_id, teacher, sample_index, began, reserved, decision) of requests about to be sent,
    as lines of a batch or alone; gives the attempts' ids. Raises GateRefused where a decision rests on a
    permission that is not in force for all of them."""
    spend(db, [(row[7], row[5]) for row in rows])
    first = db.execute("SELECT coalesce(max(id), 0) + 1 FROM attempt").fetchone()[0]
    ids = range(first, first + len(rows))
    _insert(
        db,
        "attempt (id, key, run, prompt_id, teacher, sample_index, began, reserved, decision, batch, state)",
        [(number, *row, batch, "open") for number, row in zip(ids, rows, strict=True)],
    )
    return list(ids)


def insert_leaves(db: Connection, leaves: Sequence[NewLeaf]) -> list[int]:
    """Gives the leaves' indices: within a writing transaction the next one is certain, whatever other
    processes do."""
    first = db.execute("SELECT coalesce(max(idx) + 1, 0) FROM leaf").fetchone()[0]
    indices = range(first, first + len(leaves))
    placed = list(zip(indices, leaves, strict=True))
    _insert(
        db,
        "leaf (idx, kind, time, hash, data)",
        [(index, leaf.kind, leaf.time, leaf.hash, leaf.data) for index, leaf in placed],
    )
    contents = [(index, *content) for index, leaf in placed for content in leaf.contents]
    _insert(db, "content (leaf, name, salt, body)", contents)
    _insert(db, "exchange", [(leaf.key, index) for index, leaf in placed if leaf.key is not None])
    for size in range((first // TILE + 1) * TILE, first + len(leaves) + 1, TILE):
        seal(db, size)
    return list(indices)


def began(db: Connection, attempts: Sequence[int]) -> list[str]:
    """When each attempt began, as the stamp in its row. Raises LedgerError for one that was never begun."""
    times: dict[int, str] = {}
    for some in _some(attempts):
        query = f"SELECT id, began FROM attempt WHERE id IN ({','.join('?' * len(some))})"
        times.update(db.execute(query, some).fetchall())
    for attempt in attempts:
        if attempt not in times:
            raise settled_before(attempt)
    return [times[attempt] for attempt in attempts]


def settle_answers(db: Connection, answers: Sequence[Answer]) -> list[int]:
    """Gives the indices of the answers' leaves. Raises LedgerError when an attempt was settled before."""
    indices = insert_leaves(db, [answer.leaf for answer in answers])
    rows = [
        (answer.attempt, answer.leaf.time, index, answer.cost)
        for answer, index in zip(answers, indices, strict=True)
    ]
    for some in _some(rows):
        changed = db.execute(
            "UPDATE attempt SET state = 'answered', ended = column2, leaf = column3,"
            " cost = CAST(column4 AS BIGINT)"
            f" FROM ({_values(len(some), 4)}) AS answer WHERE id = column1 AND state IN ('open', 'unknown')",
            [value for row in some for value in row],
        ).rowcount
        if changed != len(some):  # which takes all of them back, and each is tried alone
            raise settled_before(some[0][0])
    return indices


def settled_before(attempt: int) -> LedgerError:
    return LedgerError(
        f"attempt {attempt} cannot be settled",
        "it is settled or was never begun",
        "this is a defect of stillhouse; please report it",
    )


def _insert(db: Connection, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
    for some in _some(rows):
        statement = f"INSERT INTO {into} {_values(len(some), len(some[0]))}"
        db.execute(statement, [value for row in some for value in row])


def _some(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    start = 0
    while start < len(rows):
        size = next(size for size in _AT_ONCE if size <= len(rows) - start)
        yield rows[start : start + size]
        start += size


@lru_cache
def _values(rows: int, columns: int) -> str:
    return "VALUES " + ",".join(["(" + ",".join("?" * columns) + ")"] * rows)
