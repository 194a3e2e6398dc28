"""Erasing an answer from all of a workspace: the ledger, the shards of targets, and the files of its runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.targets import SUFFIX, sweep, without
from stillhouse.workspace import RunFolder, locked, read_json_or_none, sync_folder, write_json

OUT_OF_REACH = ("predictions and weights of runs", "releases", "exports with contents", "backups")


@dataclass(slots=True)
class Erased:
    """What erasing a leaf did. `tombstone` is None where the ledger itself held nothing any more.

    `shards` has the digest of every shard that held the answer's targets, with that of the one in its place
    (None where no row was left); `rows` how many rows each file of a run lost. `grown` names the prompts that
    the answer invented: what teachers answered to them are leaves of their own, `answers`, which repeat these
    prompts and stay until they are erased too. What lies in `OUT_OF_REACH` is not looked for.
    """

    tombstone: int | None = None
    shards: dict[str, str | None] = field(default_factory=dict)
    rows: dict[Path, int] = field(default_factory=dict)
    grown: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


def erase(ledger: Ledger, leaf: int, reason: str) -> Erased:
    """Remove the contents of a leaf, and what was made from them, wherever the workspace keeps them.

    `Ledger.erase` says what happens in the ledger. Every shard with targets of this answer is written anew
    without them, under a new address, and the old file deleted; so are `exchanges.parquet`,
    `samples.parquet`, `dropped.parquet` and `grown.parquet` of every run, and the prompts in
    `prompts.parquet` that the answer invented. A run that lost samples is curated again before it goes on,
    and a report of a run that lost anything is deleted.

    Files come first and the tombstone last: after a kill the same call finishes the work. Raises StorageError
    while a run of the workspace is at work, LedgerError when there is nothing to erase, or a shard is damaged.
    """
    workspace, done = ledger.workspace, Erased()
    runs = [RunFolder(path) for path in sorted(workspace.runs.glob("*")) if path.is_dir()]
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(locked(run))
        sweep(workspace.targets)
        for path in sorted(workspace.targets.glob(f"*{SUFFIX}")):
            fresh = without(path, {str(leaf)})
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
