"""One shard of targets is one file, written once from front to back and sealed:

    magic | binding as JSON | a block for each row (see `layout`) | index | footer | SHA-256 | magic

The SHA-256 is over all that stands before it, and names the file. Until it is sealed, a shard has another
name and no end, so a writer that was killed leaves nothing that could be taken for targets.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger.targets.layout import Binding, Targets, decode, encode
from stillhouse.ledger.targets.vectors import decode_vectors, encode_vectors
from stillhouse.workspace import sync_folder

FORMAT = 1
SUFFIX = ".targets"
_UNSEALED = "unsealed-"
_BEGIN, _END = b"\x93STILLTG", b"SEALED\r\n"
_LENGTH = 4  # bytes of the length of a JSON text
_OF_VECTORS = {"width": 0, "dtype": "", "readout": ""}  # said by shards of vectors alone
_TAIL = _LENGTH + 32 + len(_END)
_AGAIN = (
    "delete it, then `stillhouse collect RECIPE`, or `train` where the teacher reads the rows: it is written "
    "again, and nobody is asked twice"
)


def ids_digest(ids: NDArray[np.int32]) -> bytes:
    """SHA-256 over token ids as little-endian int32: the second half of a row's address."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").tobytes()).digest()


class ShardWriter:
    """A shard that is being written in `folder`; `seal` makes it one. Left without, it is removed."""

    def __init__(self, folder: Path, binding: Binding) -> None:
        self.binding = binding
        self._unsealed = folder / f"{_UNSEALED}{secrets.token_hex(8)}{SUFFIX}"
        self._hash = hashlib.sha256()
        self._rows: dict[str, tuple[bytes, int, int]] = {}
        self._known = 0
        self.size = 0
        with storage("write", self._unsealed):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._unsealed.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)  # says that its writer lives
            while not os.fstat(self._file.fileno()).st_nlink:  # swept between these two
                self._file.close()
                self._file = self._unsealed.open("xb")
                fcntl.flock(self._file, fcntl.LOCK_EX)
        said = {k: v for k, v in asdict(binding).items() if binding.width or k not in _OF_VECTORS}
        head = json.dumps({"format": FORMAT} | said, sort_keys=True).encode()
        self._write(_BEGIN + len(head).to_bytes(_LENGTH, "little") + head)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk refuses what is still buffered
            self._file.close()
        self._unsealed.unlink(missing_ok=True)

    def add(self, sample_id: str, ids: NDArray[np.int32], targets: Targets | NDArray[np.float32]) -> None:
        """Append the targets of one row, whose input ids are `ids`, or its vectors (N, D).

        Raises ValueError for a sample that is there already and for what `encode` or `encode_vectors` refuse,
        StorageError when the disk is full.
        """
        if isinstance(targets, Targets):
            block, known = encode(self.binding, targets), targets.known
        else:
            block, known = encode_vectors(self.binding, targets), len(targets)
        self._append(sample_id, ids_digest(ids), len(targets), known, block)

    def copy(self, shard: Shard, row: int) -> None:
        """Append a row of another shard of the same binding as it stands there.

        Raises ValueError for a row that no shard holds.
        """
        block, positions = shard.block(row), np.array([shard.positions[row]])
        if shard.binding.width:
            known = len(decode_vectors(shard.binding, [block], positions))
        else:
            known = decode(shard.binding, [block], positions).known
        digest = shard.digests[row]
        self._append(shard.sample_ids[row], digest, shard.positions[row], known, block.tobytes())

    def seal(self) -> Path:
        """Write the index, make the file durable and give it its name. An equal shard is written once."""
        index_at, rows = self.size, self._rows.values()
        names = [name.encode() for name in self._rows]
        self._write(b"".join(digest for digest, _, _ in rows))
        self._write(np.array([at for _, _, at in rows], dtype="<u8").tobytes())
        self._write(np.array([positions for _, positions, _ in rows], dtype="<u4").tobytes())
        self._write(np.array([len(name) for name in names], dtype="<u4").tobytes() + b"".join(names))
        footer = json.dumps({"rows": len(rows), "index": index_at, "known": self._known}).encode()
        self._write(footer + len(footer).to_bytes(_LENGTH, "little"))
        digest = self._hash.digest()
        sealed = self._unsealed.with_name(digest.hex() + SUFFIX)
        with storage("write", sealed):
            self._file.write(digest + _END)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._unsealed, sealed)
            sync_folder(sealed.parent)
        return sealed

    def _append(self, sample_id: str, digest: bytes, positions: int, known: int, block: bytes) -> None:
        if sample_id in self._rows:
            raise ValueError(f"the shard holds targets of {sample_id!r} already")
        self._rows[sample_id] = (digest, positions, self.size)
        self._known += known
        self._write(block)

    def _write(self, data: bytes) -> None:
        with storage("write", self._unsealed):
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A sealed shard, mapped into memory. Row n is that of sample `sample_ids[n]`, with the digest of its
    input ids, its number of positions, and its block from byte `borders[n]` to `borders[n + 1]`; `known`
    positions have targets."""

    path: Path
    binding: Binding
    data: NDArray[np.uint8]
    sample_ids: tuple[str, ...]
    digests: tuple[bytes, ...]
    positions: tuple[int, ...]
    borders: tuple[int, ...]
    known: int

    def block(self, row: int) -> NDArray[np.uint8]:
        return self.data[self.borders[row] : self.borders[row + 1]]


def open_shard(path: Path) -> Shard:
    """Map a sealed shard. Checked are its two ends, its name and its index; `verify_shard` reads every byte.

    Raises LedgerError, which names the file, for one that is torn, damaged or of another format.
    """
    with storage("read", path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"", np.uint8)
    if size < len(_BEGIN) + _TAIL or data[-len(_END) :].tobytes() != _END:
        raise _unusable(path, "its end is missing: it was never sealed, or it was cut off")
    if data[: len(_BEGIN)].tobytes() != _BEGIN:
        raise _unusable(path, "it does not begin as one")
    if path.stem != data[-len(_END) - 32 : -len(_END)].tobytes().hex():
        raise _unusable(path, "its name is not the digest that it was sealed with")
    try:
        shard = _read_shard(path, data)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise _unusable(path, f"it cannot be read: {error}") from None
    rows, borders = len(shard.sample_ids), shard.borders
    ordered = all(begin < end for begin, end in pairwise(borders))
    if not (ordered and len(set(shard.sample_ids)) == rows and min(shard.positions, default=1) > 0):
        raise _unusable(path, "its index does not fit its rows")
    return shard


def verify_shard(path: Path) -> None:
    """Read the whole file. Raises LedgerError when it is not what was sealed."""
    open_shard(path)
    with storage("read", path), path.open("rb") as file:
        left, digest = path.stat().st_size - 32 - len(_END), hashlib.sha256()
        while left and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    if digest.hexdigest() != path.stem:
        raise _unusable(path, "its content is not what it was sealed with")


def unsealed(folder: Path) -> list[Path]:
    """Shards that were never finished, because their writer was killed or is still at work."""
    return sorted(folder.glob(f"{_UNSEALED}*{SUFFIX}"))


def sweep(folder: Path) -> list[Path]:
    """Delete the shards whose writer was killed, and give their paths; one that is being written stays."""
    dead = []
    for path in unsealed(folder):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            dead.append(path)
    return dead


def without(path: Path, sample_ids: Collection[str]) -> Path | None:
    """Write a shard anew without the rows of these samples, and delete the old file. Returns the new one,
    None where nothing was left to write, and `path` itself, untouched, where none of them is in it.

    Killed in between, both files are there; the same call again deletes the old one. Raises LedgerError for
    a shard that is damaged.
    """
    shard = open_shard(path)
    stays = [row for row, name in enumerate(shard.sample_ids) if name not in sample_ids]
    if len(stays) == len(shard.sample_ids):
        return path
    fresh = None
    if stays:
        verify_shard(path)  # what is copied is sealed anew, and damage must not be sealed with it
        with ShardWriter(path.parent, shard.binding) as writer:
            for row in stays:
                writer.copy(shard, row)
            fresh = writer.seal()
    with storage("delete", path):
        path.unlink()
        sync_folder(path.parent)
    return fresh


def _read_shard(path: Path, data: NDArray[np.uint8]) -> Shard:
    """What a sealed file says; for nonsense the error of whatever it was taken for."""
    at = len(_BEGIN) + _LENGTH
    blocks_at = at + _length(data[len(_BEGIN) : at])
    footer_at = len(data) - _TAIL - _length(data[-_TAIL : _LENGTH - _TAIL])
    footer = json.loads(data[footer_at:-_TAIL].tobytes())
    rows, index_at = int(footer["rows"]), int(footer["index"])
    widths = [32 * rows, 8 * rows, 4 * rows, 4 * rows]
    starts = [index_at, *(index_at + width for width in accumulate(widths))]
    digests, begins, positions, lengths = (data[a:b] for a, b in pairwise(starts))
    borders = (*begins.view("<u8").tolist(), index_at)
    if borders[0] != blocks_at:
        raise ValueError("its first block does not follow its binding")
    names = _split(data[starts[-1] : footer_at].tobytes(), lengths.view("<u4").tolist())
    return Shard(
        path,
        _read_binding(data[at:blocks_at].tobytes()),
        data,
        tuple(name.decode() for name in names),
        tuple(_split(digests.tobytes(), [32] * rows)),
        tuple(positions.view("<u4").tolist()),
        borders,
        int(footer["known"]),
    )


def _read_binding(head: bytes) -> Binding:
    said: dict[str, Any] = {"temperature": 1.0, **_OF_VECTORS} | json.loads(head)  # not every shard says all
    if said.pop("format") != FORMAT:
        raise ValueError("another version of stillhouse wrote it")
    named = {"int": int, "float": float}
    kinds = {field.name: named.get(str(field.type), str) for field in fields(Binding)}
    if {name: type(value) for name, value in said.items()} != kinds:
        raise ValueError("its binding is not whole")
    return Binding(**said)


def _length(data: NDArray[np.uint8]) -> int:
    return int.from_bytes(data.tobytes(), "little")


def _split(data: bytes, lengths: Sequence[int]) -> list[bytes]:
    if sum(lengths) != len(data):
        raise ValueError("its index is not whole")
    ends = list(accumulate(lengths))
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _unusable(path: Path, why: str) -> LedgerError:
    return LedgerError(f"{path} is not a usable shard of targets", why, _AGAIN)
