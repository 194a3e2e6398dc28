"""Batch jobs as the ledger knows them. A batch is written, with an open attempt for each of its lines, before
anything is made at the provider; so a process that starts again knows what may be under way there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from stillhouse.errors import LedgerError
from stillhouse.ledger.database import Connection
from stillhouse.ledger.inserting import insert_attempts
from stillhouse.ledger.leaves import key_bytes, utc_stamp
from stillhouse.ledger.lookup import nano
from stillhouse.ledger.spending import give_back
from stillhouse.ledger.store import Ledger
from stillhouse.money import Price

BatchState = Literal["intended", "asked", "running", "over"]

_COLUMNS = (
    "id, run, endpoint, model, revision, decision, shard, lines, price_input, price_output,"
    " state, file, asked, name"
)


class NewLine(NamedTuple):
    """A request that goes into a batch; `reserved` (US dollars) is None where no price is known."""

    key: str
    prompt_id: str
    sample_index: int
    reserved: float | None


class Line(NamedTuple):
    """An attempt that is a line of a batch; `reserved` as in NewLine."""

    attempt: int
    key: str
    sample_index: int
    reserved: float | None
    open: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """A row of the table `batch`; `m0003_batches` says what the states mean. `shard` is the SHA-256 (hex) of
    its file, `decision` the leaf that allowed the questions, `price` the one by which it was reckoned when it
    was asked for; `file` and `name` are the provider's names."""

    id: int
    run: str
    teacher: tuple[str, str, str]  # endpoint, model, revision
    decision: int
    shard: str
    lines: int
    price: Price | None
    state: BatchState
    file: str | None = None
    asked: datetime | None = None
    name: str | None = None


def begin_batch(
    ledger: Ledger,
    *,
    run: str,
    teacher: tuple[str, str, str],
    decision: int,
    price: Price | None,
    shard: str,
    lines: Sequence[NewLine],
) -> Batch:
    """Write down what is about to be asked, all lines or none; `teacher` is endpoint, model and revision.

    Raises GateRefused where the decision rests on a permission that does not cover so many lines now.
    """
    now = utc_stamp(ledger.clock())

    def insert(db: Connection) -> int:
        prices = (None, None) if price is None else (price.input, price.output)
        (batch,) = db.execute(
            "INSERT INTO batch (run, endpoint, model, revision, decision, shard, lines, began,"
            " price_input, price_output, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'intended')"
            " RETURNING id",
            (run, *teacher, decision, bytes.fromhex(shard), len(lines), now, *prices),
        ).fetchone()
        rows = [
            (key_bytes(key), run, prompt_id, teacher[1], sample_index, now, nano(reserved), decision)
            for key, prompt_id, sample_index, reserved in lines
        ]
        insert_attempts(db, rows, batch)
        return int(batch)

    return batch_of(ledger, ledger.write(insert).result())


def batch_of(ledger: Ledger, number: int) -> Batch:
    """Raises LedgerError when there is none."""
    rows = ledger.read(f"SELECT {_COLUMNS} FROM batch WHERE id = ?", (number,))
    if not rows:
        raise LedgerError(f"the ledger has no batch {number}", "it was never written", "see `ledger show`")
    return _batch(rows[0])


def open_batches(ledger: Ledger, run: str) -> list[Batch]:
    """The batches of a run that are not over, oldest first."""
    query = f"SELECT {_COLUMNS} FROM batch WHERE run = ? AND state != 'over' ORDER BY id"
    return [_batch(row) for row in ledger.read(query, (run,))]


def known_names(ledger: Ledger, endpoint: str) -> set[str]:
    """The provider's names of all batches that the ledger knows to be its own."""
    query = "SELECT name FROM batch WHERE endpoint = ? AND name IS NOT NULL"
    return {name for (name,) in ledger.read(query, (endpoint,))}


def lines_of(ledger: Ledger, batch: Batch) -> list[Line]:
    rows = ledger.read(
        "SELECT id, key, sample_index, reserved, state = 'open' FROM attempt WHERE batch = ? ORDER BY id",
        (batch.id,),
    )
    return [
        Line(attempt, bytes(key).hex(), index, None if reserved is None else reserved / 1e9, bool(is_open))
        for attempt, key, index, reserved, is_open in rows
    ]


def reserved_in_batches(ledger: Ledger, run: str) -> float:
    """US dollars that the lines of a run's open batches can cost at most."""
    rows = ledger.read(
        "SELECT CAST(coalesce(sum(reserved), 0) AS BIGINT) FROM attempt"
        " WHERE batch IS NOT NULL AND state = 'open' AND run = ?",
        (run,),
    )
    return float(rows[0][0]) / 1e9


def record_file(ledger: Ledger, batch: Batch, file: str) -> Batch:
    """The shard lies at the provider under this name."""
    return _changed(ledger, batch, "file = ?", file)


def record_asked(ledger: Ledger, batch: Batch) -> Batch:
    """The provider is about to be asked to create the batch: from now on it may exist."""
    return _changed(ledger, batch, "state = 'asked', asked = ?", utc_stamp(ledger.clock()))


def record_running(ledger: Ledger, batch: Batch, name: str) -> Batch:
    """The batch exists under this name."""
    return _changed(ledger, batch, "state = 'running', name = ?", name)


def end_batch(ledger: Ledger, batch: Batch, ending: str, never_worked: str | None = None) -> int:
    """Close a batch; returns how many of its lines were still open.

    They become unknown; with `never_worked` they failed for that reason and were not billed.
    """
    now = utc_stamp(ledger.clock())
    settle = (
        "UPDATE attempt SET state = 'unknown', ended = ?1 WHERE batch = ?2 AND state = 'open'"
        if never_worked is None
        else "UPDATE attempt SET state = 'failed', ended = ?1, reason = ?3, cost = 0"
        " WHERE batch = ?2 AND state = 'open'"
    )
    given = (now, batch.id) if never_worked is None else (now, batch.id, never_worked)

    def close(db: Connection) -> int:
        if never_worked is not None:
            open_lines = "SELECT id FROM attempt WHERE batch = ? AND state = 'open'"
            give_back(db, [attempt for (attempt,) in db.execute(open_lines, (batch.id,)).fetchall()])
        left = db.execute(settle, given).rowcount
        db.execute(
            "UPDATE batch SET state = 'over', ended = ?, ending = ? WHERE id = ?", (now, ending, batch.id)
        )
        return left

    return ledger.write(close).result()


def _changed(ledger: Ledger, batch: Batch, change: str, value: str) -> Batch:
    ledger.write(
        lambda db: db.execute(f"UPDATE batch SET {change} WHERE id = ?", (value, batch.id)).rowcount
    ).result()
    return batch_of(ledger, batch.id)


def _batch(row: tuple[Any, ...]) -> Batch:
    (
        number,
        run,
        endpoint,
        model,
        revision,
        decision,
        shard,
        lines,
        read,
        written,
        state,
        file,
        asked,
        name,
    ) = row
    return Batch(
        id=number,
        run=run,
        teacher=(endpoint, model, revision),
        decision=decision,
        shard=bytes(shard).hex(),
        lines=lines,
        price=None if read is None else Price(read, written),
        state=state,
        file=file,
        asked=None if asked is None else datetime.fromisoformat(asked),
        name=name,
    )
