"""Questions cut into the files of batches, which lie in the run folder until the answers are recorded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from stillhouse.ask.questions import Part, Sampling, as_exchange, looked_up, request_bytes, worst_cost
from stillhouse.errors import storage
from stillhouse.ledger import Ledger
from stillhouse.ledger.batches import NewLine
from stillhouse.models.batches import input_line
from stillhouse.workspace import sync_folder

ID_DIGITS = 40  # of an exchange key, as the custom id of a line: 160 bits


@dataclass(frozen=True, slots=True)
class Shard:
    """A file that is durably written, and what its lines ask; `digest` is its SHA-256 (hex)."""

    digest: str
    lines: list[NewLine]


def shard_path(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.jsonl"


def cut(
    part: Part,
    sampling: Sampling,
    ledger: Ledger,
    folder: Path,
    most: tuple[int, int],
    wanted: Callable[[str], bool],
    reserve: Callable[[float], bool],
    leave_unknown: bool,
) -> Iterator[Shard]:
    """The questions that the ledger cannot answer and that are in no batch, each key once, shard by shard.

    A shard has at most `most` lines and bytes, and must be in the ledger before the next one is taken.
    `wanted` decides by the key, `leave_unknown` leaves out what is `sent, unknown`; `reserve` sets the worst
    cost (US dollars) of a question aside, and where it cannot the cutting ends.
    """
    most_lines, most_bytes = most
    teacher, open_shard = part.teacher, _OpenShard(folder)
    for group in looked_up(part.questions, teacher, sampling, ledger):
        missing = [
            (question, key)
            for question, key, stored in group
            if stored is None or not (stored.erased or as_exchange(question, teacher, stored))
        ]
        keys = [key for _, key in missing]
        taken = ledger.in_batches(keys) | (ledger.unknown(keys) if leave_unknown else set())
        for question, key in missing:
            if key in taken or key in open_shard.keys or not wanted(key):
                continue
            line = input_line(key[:ID_DIGITS], request_bytes(question, teacher, sampling))
            if open_shard.lines and (
                len(open_shard.lines) == most_lines or open_shard.size + len(line) > most_bytes
            ):
                taken |= open_shard.keys
                yield open_shard.close()
                open_shard = _OpenShard(folder)
            worst = worst_cost(question, teacher, sampling)
            if not reserve(worst):
                if open_shard.lines:
                    yield open_shard.close()
                return
            reserved = None if teacher.price is None else worst
            open_shard.add(line, NewLine(key, question.prompt_id, question.sample_index, reserved))
    if open_shard.lines:
        yield open_shard.close()


@dataclass(slots=True)
class _OpenShard:
    folder: Path
    lines: list[NewLine] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    file: BinaryIO | None = None

    @property
    def path(self) -> Path:
        return self.folder / "shard.new"

    def add(self, line: bytes, asked: NewLine) -> None:
        with storage("write", self.path):
            if self.file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("wb")
            self.file.write(line)
        self.digest.update(line)
        self.size += len(line)
        self.lines.append(asked)
        self.keys.add(asked.key)

    def close(self) -> Shard:
        assert self.file is not None
        digest = self.digest.hexdigest()
        with storage("write", self.path), self.file as file:
            file.flush()
            os.fsync(file.fileno())
        self.path.replace(shard_path(self.folder, digest))
        sync_folder(self.folder)
        return Shard(digest, self.lines)


@contextmanager
def bodies(path: Path) -> Iterator[Callable[[str], bytes | None]]:
    """Gives the body of a shard's request by its custom id; None where the file is gone."""
    if not path.exists():
        yield lambda custom_id: None
        return
    places: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        at = 0
        for line in file:
            places[orjson.loads(line)["custom_id"]] = at, len(line)
            at += len(line)

        def body(custom_id: str) -> bytes | None:
            if custom_id not in places:
                return None
            start, size = places[custom_id]
            return orjson.dumps(orjson.loads(os.pread(file.fileno(), size, start))["body"])

        yield body
