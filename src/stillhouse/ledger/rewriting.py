"""Files of runs written anew without what is erased."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import storage
from stillhouse.ledger.needle import Needle
from stillhouse.ledger.subject import ROWS, Found, digest_of
from stillhouse.workspace import RunFolder, sync_folder

_NAMING = ("leaf", "leaves", "row", "reading", "prompt_id", "id", "system", "answer")
_WHOLE = ("prompts.parquet", "grown.parquet")  # whose `id` is that of a prompt
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}|\..+\.parquet|shard\.new|\..+\.new")
_HELD = frozenset(
    ("student", "student-before", "checkpoints", "release", "release.new", "keys", "targets", "anchors")
)


def erase_from_run(run: RunFolder, found: Found, text: Needle | None) -> dict[Path, int]:
    """Take what is erased out of every table of a run; how many rows each file lost.

    A run that lost samples is curated again before it goes on, one that lost predictions is evaluated again,
    and a report of a run that lost anything goes. Copies of samples that a further training made go
    whole.
    """
    for further in run.all_further():
        further.samples.unlink(missing_ok=True)  # nobody needs it: who trains holds the run's lock
    lost = {}
    for path in sorted(run.root.rglob("*.parquet")):
        if not _HELD.intersection(path.relative_to(run.root).parts):
            lost[path] = _without(path, run.root.name, found, text)
    if lost.get(run.samples):
        run.marker("curate").unlink(missing_ok=True)
    if any(lost.get(path) for path in (run.predictions, run.judgements, run.battery)):
        run.marker("evaluate").unlink(missing_ok=True)
    if any(lost.values()):
        run.report.unlink(missing_ok=True)
    return {path: count for path, count in lost.items() if count}


def leftovers(folder: Path) -> list[Path]:
    """What a killed process half wrote, in a folder and those below it."""
    return [path for path in files(folder) if _TEMPORARY.fullmatch(path.name)]


def files(folder: Path) -> Iterator[Path]:
    """The regular files below, without weights, keys and what is sealed by its digest."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _HELD]
        yield from (Path(place, name) for name in names if Path(place, name).is_file())


def _without(path: Path, run: str, found: Found, text: Needle | None) -> int:
    """Write the table anew without the rows that go; how many there were. One without any is not touched."""
    stays = [not _goes(row, path.name, run, found, text) for row in _read(path, text)]
    if all(stays):
        return 0
    fresh, first = path.with_name(f".{path.name}.{secrets.token_hex(4)}"), 0
    with storage("write", path), pq.ParquetFile(path) as file:
        try:
            with pq.ParquetWriter(fresh, file.schema_arrow) as writer:
                for batch in file.iter_batches(ROWS):
                    writer.write_batch(batch.filter(pa.array(stays[first : first + len(batch)])))
                    first += len(batch)
            with fresh.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(path.parent)
    return stays.count(False)


def _read(path: Path, text: Needle | None) -> Iterator[dict[str, Any]]:
    """Its rows; all columns only where a text is looked for in them."""
    with storage("read", path), pq.ParquetFile(path) as file:
        named = [name for name in _NAMING if name in file.schema_arrow.names]
        for batch in file.iter_batches(ROWS, columns=None if text else named):
            yield from batch.to_pylist()


def _goes(row: dict[str, Any], file: str, run: str, found: Found, text: Needle | None) -> bool:
    leaves, prompts = found.leaves, found.prompts.get(run, ())
    if row.get("leaf") in leaves or row.get("reading") in leaves:
        return True
    if any(leaf in leaves for leaf in row.get("leaves") or ()):
        return True
    named = row.get("row")
    if isinstance(named, str) and named.isdecimal() and int(named) in leaves:
        return True
    if row.get("prompt_id") in prompts or (file in _WHOLE and row.get("id") in prompts):
        return True
    if "system" in row:
        said = digest_of(row["answer"])
        if said in found.alone.get(run, ()):
            return True
        if row["system"] == "teacher" and (row["prompt_id"], said) in found.said:
            return True
    return text is not None and text.in_value(row)
