"""Prompts on disk: a million of them take no more memory than a thousand.

They are written once, to an unnamed temporary file that goes with its last reader, and copied into the run
folder as `prompts.parquet`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.errors import storage
from stillhouse.records import Message, Prompt

Split = Literal["train", "test"]

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())]))
PROMPTS = pa.schema(
    [
        ("id", pa.string()),
        ("messages", MESSAGES),
        ("tools", pa.string()),
        ("family", pa.string()),
        ("group", pa.string()),
        ("reference", pa.string()),
        ("scorer", pa.string()),
        ("split", pa.string()),
    ]
)
_PLACED = PROMPTS.append(pa.field("place", pa.string())).append(pa.field("question", pa.uint64()))
_ROWS = 1024  # rows in memory at once


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The prompts of one split, read again with each iteration."""

    file: pa.NativeFile
    split: Split
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Prompt]:
        for batch in pq.ParquetFile(self.file).iter_batches(_ROWS):
            chosen = batch.filter(pc.equal(batch["split"], self.split))
            for row in chosen.to_pylist():
                yield _prompt(row)

    def scorers(self) -> set[str]:
        """The names of the scorers of both splits."""
        column = pq.ParquetFile(self.file).read(["scorer"])["scorer"]
        return {name for name in pc.unique(column).to_pylist() if name}


Prompts = PromptFile | Sequence[Prompt]


class Spool:
    """Takes prompts as they are read, and then gives both splits."""

    def __init__(self) -> None:
        self._file, self._writer = _new(_PLACED)
        self._rows: list[dict[str, Any]] = []
        self._ids = bytearray()

    def add(self, prompt: Prompt, split: Split, place: str, question: int) -> None:
        """`question` is a 64-bit hash of what is asked, and `place` says where the prompt stood."""
        self._rows.append({**_row(prompt), "split": split, "place": place, "question": question})
        self._ids += _hash(prompt.id)
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> tuple[PromptFile, PromptFile, list[tuple[str, str]], int]:
        """Train, test, (place, id) of prompts whose id stood before, and how many training prompts were
        left out because the test asks the same."""
        self._flush()
        with storage("write", Path(tempfile.gettempdir())):
            self._writer.close()
            twice, places = self._repeated()
            asked = self._asked(places)
            leaked, kept = 0, {"train": 0, "test": 0}
            final, writer = _new(PROMPTS)
            start = 0
            for batch in self._batches():
                stays = np.ones(batch.num_rows, bool)
                stays[[at - start for at in places if start <= at < start + batch.num_rows]] = False
                start += batch.num_rows
                learnt = pc.equal(batch["split"], "train").to_numpy(zero_copy_only=False)
                leaks = stays & learnt & pc.is_in(batch["question"], asked).to_numpy(zero_copy_only=False)
                leaked += int(leaks.sum())
                stays &= ~leaks
                kept["train"] += int((stays & learnt).sum())
                kept["test"] += int((stays & ~learnt).sum())
                writer.write_batch(batch.filter(pa.array(stays)).select(PROMPTS.names))
            writer.close()
        file = _opened(final)
        os.close(final)
        os.close(self._file)
        return PromptFile(file, "train", kept["train"]), PromptFile(file, "test", kept["test"]), twice, leaked

    def _repeated(self) -> tuple[list[tuple[str, str]], list[int]]:
        """(place, id) and row of every prompt whose id stood before."""
        values, counts = np.unique(np.frombuffer(self._ids, np.uint64), return_counts=True)
        repeated = {value.tobytes() for value in values[counts > 1]}
        twice: list[tuple[str, str]] = []
        rows: list[int] = []
        seen: set[str] = set()
        if repeated:  # or the hashes of two ids are the same, which costs this pass and nothing else
            for row, (name, place) in enumerate(self._columns("id", "place")):
                if _hash(name) in repeated and name in seen:
                    twice.append((place, name))
                    rows.append(row)
                elif _hash(name) in repeated:
                    seen.add(name)
        return twice, rows

    def _asked(self, left_out: list[int]) -> pa.Array:
        """What the test asks, as hashes."""
        gone = set(left_out)
        rows = enumerate(self._columns("split", "question"))
        asked = {question for row, (split, question) in rows if split == "test" and row not in gone}
        return pa.array(sorted(asked), pa.uint64())

    def _columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        for batch in self._batches(names):
            yield from zip(*(batch[name].to_pylist() for name in names), strict=True)

    def _batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        yield from pq.ParquetFile(_opened(self._file)).iter_batches(_ROWS, columns=columns)

    def _flush(self) -> None:
        if self._rows:
            with storage("write", Path(tempfile.gettempdir())):
                self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=_PLACED))
            self._rows = []


def extended(train: Prompts, test: Prompts, more: Sequence[Prompt]) -> tuple[Prompts, Prompts]:
    """Both splits, with further training prompts at the end."""
    if not (isinstance(train, PromptFile) and isinstance(test, PromptFile) and train.file is test.file):
        return (*train, *more), test
    fresh, writer = _new(PROMPTS)
    for batch in pq.ParquetFile(train.file).iter_batches(_ROWS):
        writer.write_batch(batch)
    rows = [{**_row(prompt), "split": "train"} for prompt in more]
    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=PROMPTS))
    writer.close()
    file = _opened(fresh)
    os.close(fresh)
    return PromptFile(file, "train", len(train) + len(more)), PromptFile(file, "test", len(test))


def read_prompts(path: Path, split: Split) -> PromptFile:
    """The prompts of a split as a run wrote them. Raises OSError when the file is not there."""
    file = pa.OSFile(str(path))
    column = pq.ParquetFile(file).read(["split"])["split"]
    return PromptFile(file, split, pc.sum(pc.equal(column, split)).as_py() or 0)


def write_prompts(path: Path, train: Prompts, test: Prompts) -> None:
    """Write both splits as `prompts.parquet`."""
    with storage("write", path):
        if isinstance(train, PromptFile) and isinstance(test, PromptFile) and train.file is test.file:
            train.file.seek(0)
            with path.open("wb") as out:
                shutil.copyfileobj(train.file, out)
            return
        rows = [{**_row(p), "split": "train"} for p in train] + [{**_row(p), "split": "test"} for p in test]
        pq.write_table(pa.Table.from_pylist(rows, schema=PROMPTS), path)


def plain_messages(messages: Collection[Message]) -> list[dict[str, str]]:
    """Messages as rows of a file hold them."""
    return [{"role": m.role, "content": m.content, "extra": m.extra} for m in messages]


def _new(schema: pa.Schema) -> tuple[int, pq.ParquetWriter]:
    """A file without a name, as its descriptor, and what writes to it."""
    with storage("write", Path(tempfile.gettempdir())):
        file, name = tempfile.mkstemp(prefix="stillhouse-", suffix=".parquet")
        writer = pq.ParquetWriter(name, schema, compression="zstd")
        os.unlink(name)
    return file, writer


def _opened(file: int) -> pa.NativeFile:
    return pa.OSFile(f"/dev/fd/{file}")


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _row(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "messages": plain_messages(prompt.messages),
        "tools": prompt.tools or None,
        "family": prompt.family,
        "group": prompt.group,
        "reference": prompt.reference,
        "scorer": prompt.scorer,
    }


def _prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(
        row["id"],
        tuple(Message(m["role"], m["content"], m["extra"] or "") for m in row["messages"]),
        row["family"],
        row["group"],
        row["reference"],
        row["scorer"],
        row["tools"] or "",
    )
