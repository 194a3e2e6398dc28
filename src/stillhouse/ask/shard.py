"""Shards: what became of requests that left from another process, on that process's own disk.

A shard is a file that one process appends to for as long as it lives, and holds locked, so that a reader
knows when it is complete. It is a row of frames, each

    length of the record (4 bytes, little-endian) | its CRC-32 (4 bytes) | the record

and a record is a JSON header's length (4 bytes), the header, the bytes that were sent, the bytes that came.
A frame counts once it is synced to disk. What a crash tore at the end of the file is no frame.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from stillhouse.ask.settling import Begun, Ended
from stillhouse.errors import StorageError, storage
from stillhouse.models.endpoint import Failure, Reply, parse_chat
from stillhouse.money import Price
from stillhouse.workspace import locked_within

SUFFIX = ".shard"
LOCKED_SECONDS = 30.0  # how long a reader waits for the process that writes
_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")


class Shard:
    """A new shard, for one process to write. Raises StorageError where that cannot be done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage("write", path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        self._size = 0

    def append(self, frames: list[bytes]) -> None:
        """Write frames; they are on disk on return, or none of them is."""
        data = memoryview(b"".join(frames))
        with storage("write", self.path):
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._file, data[written:])
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
        self._size += len(data)

    def close(self) -> None:
        os.close(self._file)


def frame(ended: Ended) -> bytes:
    outcome = ended.outcome
    failure, response = (outcome, b"") if isinstance(outcome, Failure) else (None, outcome.raw)
    header = orjson.dumps(
        {"begun": ended.begun, "seconds": ended.seconds, "failure": failure, "request": len(ended.request)}
    )
    record = b"".join((_LENGTH.pack(len(header)), header, ended.request, response))
    return _FRAME.pack(len(record), zlib.crc32(record)) + record


def read_shard(path: Path, wanted: Container[int]) -> Iterator[Ended]:
    """What a shard holds of the wanted attempts, once its writer has closed it or died.

    Raises StorageError when it is still being written.
    """
    with storage("read", path), path.open("rb") as file:
        _await_writer(file, path)
        for record in _records(file):
            (length,) = _LENGTH.unpack_from(record)
            head = orjson.loads(record[4 : 4 + length])
            if head["begun"]["attempt"] in wanted:
                yield _ended(head, record[4 + length :])


def shards(folder: Path, ledger: str) -> list[Path]:
    """The shards of a ledger (by its origin) in a folder, which need not be there."""
    return sorted(folder.glob(f"{ledger.rpartition('/')[2]}-*{SUFFIX}"))


def shard_name(ledger: str, process: str) -> str:
    return f"{ledger.rpartition('/')[2]}-{process}{SUFFIX}"


def _ended(head: dict[str, Any], contents: bytes) -> Ended:
    price, size = head["begun"]["price"], head["request"]
    begun = Begun(**{**head["begun"], "price": None if price is None else Price(**price)})
    request, response = contents[:size], contents[size:]
    if head["failure"] is not None:
        return Ended(begun, Failure(**head["failure"]), request, head["seconds"])
    return Ended(begun, Reply(200, response, {}, parse_chat(response)), request, head["seconds"])


def _records(file: BinaryIO) -> Iterator[bytes]:
    while len(start := file.read(_FRAME.size)) == _FRAME.size:
        length, check = _FRAME.unpack(start)
        record = file.read(length)
        if len(record) < length or zlib.crc32(record) != check:
            return
        yield record


def _await_writer(file: BinaryIO, path: Path) -> None:
    if not locked_within(LOCKED_SECONDS, file, fcntl.LOCK_SH):
        raise StorageError(
            f"{path} is still being written",
            "a process that sends for this run lives on",
            "wait for it, or stop it, and run the same command again",
        )
