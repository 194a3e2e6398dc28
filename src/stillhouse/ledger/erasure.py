"""Erasing an answer from all of a workspace: the ledger, the shards of targets, and the files of its runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.targets import SUFFIX, sweep, without
from stillhouse.workspace import RunFolder, locked, sync_folder

_ROWS = 4096  # rows of a file read at once
OUT_OF_REACH = (
    "predictions, checkpoints and students of runs",
    "questions to a judge, which quote the answers that it compared, and its answers",
    "text that a student wrote to a prompt and a teacher at an endpoint read, and what that said of it",
    "releases",
    "exports with contents",
    "backups",
    "blocks that the file system freed",
)


@dataclass(slots=True)
class Erased:
    """What erasing a leaf did. `tombstone` is None where the ledger itself held nothing any more.

    `shards` has the digest of every shard that held the answer's targets, with that of the one in its place
    (None where no row was left); `rows` how many rows each file of a run lost. `grown` names the prompts that
    the answer invented: what teachers answered to them are leaves of their own, `answers`, which repeat these
    prompts and stay until they are erased too. So are `readings`, for which a teacher at an endpoint was sent
    the answer once more. What lies in `OUT_OF_REACH` is not looked for.
    """

    tombstone: int | None = None
    shards: dict[str, str | None] = field(default_factory=dict)
    rows: dict[Path, int] = field(default_factory=dict)
    grown: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    readings: list[int] = field(default_factory=list)


def erase(ledger: Ledger, leaf: int, reason: str) -> Erased:
    """Remove the contents of a leaf, and what was made from them, wherever the workspace keeps them.

    `Ledger.erase` says what happens in the ledger. Every shard with targets of this answer is written anew
    without them, under a new address, and the old file deleted; so are `exchanges.parquet`,
    `samples.parquet`, `dropped.parquet` and `grown.parquet` of every run, and the prompts in
    `prompts.parquet` that the answer invented. A copy of the samples that the killed training of a further
    student left is deleted whole. A run that lost samples is curated again before it goes on, and a report of
    a run that lost anything is deleted.

    Files come first and the tombstone last: after a kill the same call finishes the work.

    Raises StorageError while a run of the workspace is at work, LedgerError when there is nothing to erase or
    a shard is damaged.
    """
    workspace, done = ledger.workspace, Erased()
    runs = [RunFolder(path) for path in sorted(workspace.runs.glob("*")) if path.is_dir()]
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(locked(run))
        sweep(workspace.targets)
        named = {str(leaf), *_read_as(runs, leaf)}
        for path in sorted(workspace.targets.glob(f"*{SUFFIX}")):
            fresh = without(path, named)
            if fresh != path:
                done.shards[path.stem] = None if fresh is None else fresh.stem
        for run in runs:
            _erase_from_run(run, leaf, done)
        try:
            done.tombstone = ledger.erase(leaf, reason)
        except LedgerError:
            if not done.shards and not done.rows:
                raise
    return done


def _read_as(runs: Sequence[RunFolder], leaf: int) -> set[str]:
    """The rows of which this leaf is a reading, by the names that shards have for them."""
    folders = [each for run in runs for each in (run, *run.all_further())]
    records = [row for each in folders for row in _rows(each.readings, ["row", "reading"])]
    return {row["row"] for row in records if row["reading"] == leaf}


def _erase_from_run(run: RunFolder, leaf: int, done: Erased) -> None:
    """The prompts that the answer invented go last: after a kill they still say what else is to go."""
    run.unmixed.unlink(missing_ok=True)
    columns = ["id", "leaf"]
    for further in run.all_further():
        further.samples.unlink(missing_ok=True)  # nobody needs it: who trains holds the run's lock
    grown = {row["id"] for row in _rows(run.grown, columns) if row["leaf"] == leaf and row["id"] is not None}
    for each in (run, *run.all_further()):
        again = {r["reading"] for r in _rows(each.readings, ["row", "reading"]) if r["row"] == str(leaf)}
        done.readings += sorted(again - set(done.readings))
    lost = {
        run.samples: _without(run.samples, "leaves", {leaf}),
        run.dropped: _without(run.dropped, "leaves", {leaf}),
        run.exchanges: _without(run.exchanges, "leaf", {leaf}),
        **{each.readings: _without(each.readings, "row", {str(leaf)}) for each in (run, *run.all_further())},
        run.prompts: _without(run.prompts, "id", grown),
        run.grown: _without(run.grown, "leaf", {leaf}),
    }
    done.rows.update({path: count for path, count in lost.items() if count})
    done.grown += sorted(grown)
    if grown:
        answers = _rows(run.exchanges, ["prompt_id", "leaf"])
        done.answers += sorted({row["leaf"] for row in answers if row["prompt_id"] in grown})
    if lost[run.samples]:
        run.marker("curate").unlink(missing_ok=True)
    if any(lost.values()):
        run.report.unlink(missing_ok=True)


def _without(path: Path, column: str, gone: Collection[Any]) -> int:
    """Write the file anew without the rows that name one of these in a column of values, or of lists of
    values; how many there were. A file without any is not touched."""
    stays = [not _names(row[column], gone) for row in _rows(path, [column])] if gone else []
    if all(stays):
        return 0
    fresh, first = path.with_name(f".{path.name}.{secrets.token_hex(4)}"), 0
    with storage("write", path), pq.ParquetFile(path) as file:
        try:
            with pq.ParquetWriter(fresh, file.schema_arrow) as writer:
                for batch in file.iter_batches(_ROWS):
                    writer.write_batch(batch.filter(pa.array(stays[first : first + len(batch)])))
                    first += len(batch)
            with fresh.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(path.parent)
    return stays.count(False)


def _names(value: Any, gone: Collection[Any]) -> bool:
    return any(each in gone for each in value) if isinstance(value, list) else value in gone


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with storage("read", path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS, columns=columns):
                yield from batch.to_pylist()
