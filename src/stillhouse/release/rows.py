"""rows.parquet: where each training row came from. It holds no text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger import Ledger
from stillhouse.ledger.manifest import sha256_of
from stillhouse.release.gather import shown
from stillhouse.workspace import RunFolder

COLUMNS = (
    ("row", pa.int64(), "The row's number in the order of the samples; ids of prompts may say too much."),
    ("leaf", pa.int64(), "The row's leaf in the ledger, which commits to its text."),
    ("exchanges", pa.list_(pa.int64()), "The leaves of the teacher's answers that it was made from."),
    ("decisions", pa.list_(pa.int64()), "The leaves of the decisions under which they were asked for."),
    ("teacher", pa.string(), "The model that answered."),
)
SCHEMA = pa.schema([(name, kind) for name, kind, _ in COLUMNS])


@dataclass(frozen=True, slots=True)
class Rows:
    """The file as the documents name it."""

    count: int
    size: int
    sha256: str


def write_rows(run: RunFolder, ledger: Ledger, transform: int, path: Path) -> Rows:
    """Write the file, a row for each sample in their order; `transform` is the leaf of their curation.

    Raises LedgerError when the samples are not those that the ledger names.
    """
    exchanges = pq.read_table(run.exchanges, columns=["leaf", "decision"])
    decided = dict(zip(*(exchanges[name].to_pylist() for name in ("leaf", "decision")), strict=True))
    count = 0
    with storage("write", path), pq.ParquetWriter(path, SCHEMA) as writer:
        batch: list[dict[str, Any]] = []
        for row in _rows(run, ledger, transform):
            batch.append({**row, "decisions": [decided[leaf] for leaf in row["exchanges"]]})
            if len(batch) == 4096:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
                count, batch = count + len(batch), []
        writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
    return Rows(count + len(batch), path.stat().st_size, sha256_of(path))


def _rows(run: RunFolder, ledger: Ledger, transform: int) -> Iterator[dict[str, Any]]:
    """Samples and their leaves, which were written in the same order."""
    leaves = (leaf for leaf in ledger.leaves("row", start=transform) if leaf.body["transform"] == transform)
    for number, (sample, leaf) in enumerate(zip_longest(_samples(run), leaves)):
        if sample is None or leaf is None or sample["leaves"] != leaf.body["exchanges"]:
            raise LedgerError(
                f"the samples of the run {run.root.name} are not those in the ledger",
                "the row at which they part is " + (sample["id"] if sample else f"leaf {leaf.index}"),
                "curate again with `stillhouse curate`",
            )
        yield {
            "row": number,
            "leaf": leaf.index,
            "exchanges": sample["leaves"],
            "teacher": shown(sample["teacher"]),
        }


def _samples(run: RunFolder) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(run.samples).iter_batches(columns=["id", "leaves", "teacher"]):
        yield from batch.to_pylist()
