"""Where each training row came from, so that a stranger can check it: rows, teachers, leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger import Leaf, Ledger
from stillhouse.workspace import RunFolder

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("leaf", pa.int64()),
        ("exchanges", pa.list_(pa.int64())),
        ("teacher", pa.string()),
        ("revision", pa.string()),
        ("decision", pa.int64()),
    ]
)
_GROUP = 20_000  # rows of a row group


@dataclass(slots=True)
class Taught:
    """What a teacher gave: rows that were trained on, exchanges that they were made from, and readings of
    rows, whose probabilities were learned. Tokens are of both kinds of exchange; None where one told none."""

    model: str
    revision: str
    endpoint: str
    rows: int = 0
    exchanges: int = 0
    readings: int = 0
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    first: str = ""
    last: str = ""
    decisions: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Provenance:
    """`leaves` are what a stranger must see to check the rows; `decisions` allowed the exchanges."""

    rows: int
    teachers: list[Taught]
    decisions: list[int]
    leaves: set[int]


def trace(ledger: Ledger, run: RunFolder, transform: int, written: Path) -> Provenance:
    """Follow every sample of the run back through the log, and write `rows.parquet` at `written`.

    `transform` is the leaf of the curation that made the samples. Raises LedgerError when a row has no leaf:
    such a model cannot be released.
    """
    row_of = _row_leaves(ledger, transform, pq.read_metadata(run.samples).num_rows)
    teachers: dict[tuple[str, str, str], Taught] = {}
    counted: set[int] = set()
    leaves, total = {transform, *row_of.values()}, 0
    with (
        storage("write", written),
        pq.ParquetWriter(written, ROWS) as writer,
        pq.ParquetFile(run.samples) as file,
    ):
        for batch in file.iter_batches(_GROUP, columns=["id", "leaves"]):
            wanted = {leaf for row in batch["leaves"].to_pylist() for leaf in row}
            exchanges = {leaf.index: leaf for leaf in ledger.pick(wanted)}
            rows: dict[str, list[Any]] = {name: [] for name in ROWS.names}
            for name, made_from in zip(batch["id"].to_pylist(), batch["leaves"].to_pylist(), strict=True):
                leaf = row_of.get(tuple(made_from))
                if leaf is None:
                    raise _untraceable(f"the row {name} stands in no leaf of transform {transform}")
                first = exchanges[made_from[0]]
                teacher = _teacher(teachers, first)
                teacher.rows += 1
                for index in made_from:
                    if index not in counted:
                        counted.add(index)
                        _count(_teacher(teachers, exchanges[index]), exchanges[index], "exchanges")
                values = (name, leaf, made_from, teacher.model, teacher.revision, first.body["decision"])
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
                total += 1
            writer.write_batch(pa.RecordBatch.from_pydict(rows, schema=ROWS))
    for reading in ledger.pick(_readings(run)):
        counted.add(reading.index)
        _count(_teacher(teachers, reading), reading, "readings")
    decisions = sorted({one for teacher in teachers.values() for one in teacher.decisions})
    return Provenance(
        total, list(teachers.values()), decisions, leaves | counted | _grounds(ledger, decisions)
    )


def as_json(provenance: Provenance) -> list[dict[str, Any]]:
    """`teachers.json`: what each gave, and by which decisions. Shares are of the rows."""
    return [
        {
            "model": teacher.model,
            "revision": teacher.revision,
            "endpoint": teacher.endpoint,
            "rows": teacher.rows,
            "share": teacher.rows / provenance.rows,
            "exchanges": teacher.exchanges,
            "readings": teacher.readings,
            "prompt_tokens": teacher.prompt_tokens,
            "completion_tokens": teacher.completion_tokens,
            "first": teacher.first,
            "last": teacher.last,
            "decisions": sorted(teacher.decisions),
        }
        for teacher in provenance.teachers
    ]


def _readings(run: RunFolder) -> set[int]:
    """Leaves of what a teacher at an endpoint said when it read training rows."""
    if not run.readings.is_file():
        return set()
    return set(pq.read_table(run.readings, columns=["reading"])["reading"].to_pylist())


def _row_leaves(ledger: Ledger, transform: int, rows: int) -> dict[tuple[int, ...], int]:
    """The row leaves of a curation by the exchanges that they name."""
    found: dict[tuple[int, ...], int] = {}
    for leaf in ledger.leaves("row", start=transform):
        if leaf.body["transform"] == transform:
            found[tuple(leaf.body["exchanges"])] = leaf.index
            if len(found) == rows:
                break
    return found


def _teacher(teachers: dict[tuple[str, str, str], Taught], exchange: Leaf) -> Taught:
    asked = exchange.body["teacher"]
    name = asked["model"], asked["revision"], asked["endpoint"]
    return teachers.setdefault(name, Taught(*name))


def _count(teacher: Taught, exchange: Leaf, what: Literal["exchanges", "readings"]) -> None:
    setattr(teacher, what, getattr(teacher, what) + 1)
    teacher.decisions.add(exchange.body["decision"])
    teacher.first = min(teacher.first or exchange.time, exchange.time)
    teacher.last = max(teacher.last, exchange.time)
    for name in ("prompt_tokens", "completion_tokens"):
        had, more = getattr(teacher, name), exchange.body.get(name)
        setattr(teacher, name, None if had is None or more is None else had + more)


def _grounds(ledger: Ledger, decisions: Iterable[int]) -> set[int]:
    """Decisions and what they rest on: permissions, and the texts that were read."""
    found: set[int] = set()
    for decision in ledger.pick(decisions):
        found.add(decision.index)
        for name in ("authorisation", "terms_snapshot"):
            rests_on = decision.body.get(name)
            found.update([rests_on] if isinstance(rests_on, int) else rests_on or ())
    return found


def _untraceable(why: str) -> LedgerError:
    return LedgerError(
        "the training rows cannot be traced through the ledger",
        why,
        "curate again: `stillhouse curate RECIPE`, and train from its samples",
    )
