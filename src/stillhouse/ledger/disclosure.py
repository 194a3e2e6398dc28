"""Some leaves of the log for others, with what shows that they are in it, and nothing of the rest but hashes.

FOLDER/checkpoint             signed note
FOLDER/public-key.pem         Ed25519
FOLDER/leaves.jsonl.gz        {"index":N,"leaf":CANONICAL BYTES} a line, in order
FOLDER/tile/LEVEL/000         hashes of all leaves, as tlog-tiles has them
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger import merkle
from stillhouse.ledger.checkpoint import Checkpoint
from stillhouse.ledger.export import tile_path, write_hashes
from stillhouse.ledger.keys import public_bytes, public_pem, read_signing_key
from stillhouse.ledger.leaves import Leaf
from stillhouse.ledger.tree import TILE

if TYPE_CHECKING:
    from stillhouse.ledger.store import Ledger

LEAVES = "leaves.jsonl.gz"
_LINE = re.compile(rb'\{"index":(0|[1-9][0-9]*),"leaf":(.*)\}\n', re.DOTALL)


def disclose(ledger: Ledger, folder: Path, leaves: Iterable[int], checkpoint: Checkpoint) -> None:
    """Write these leaves, the hashes of all up to the checkpoint, the checkpoint and its key."""
    with storage("write the proofs to", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LEAVES).open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            for leaf in ledger.pick(leaves):
                packed.write(b'{"index":%d,"leaf":%b}\n' % (leaf.index, leaf.data))
        write_hashes(ledger, folder, checkpoint.size)
        (folder / "public-key.pem").write_bytes(public_pem(public_bytes(read_signing_key(ledger.workspace))))
        (folder / "checkpoint").write_bytes(checkpoint.note)


def disclosed(folder: Path) -> Iterator[Leaf]:
    """The leaves in a folder, in order. Raises LedgerError for a line that is none, or out of order."""
    last = -1
    try:
        with gzip.open(folder / LEAVES) as lines:
            for line in lines:
                match = _LINE.fullmatch(line)
                if match is None or int(match[1]) <= last:
                    raise _damaged(folder / LEAVES, f"the line after leaf {last} is none, or out of order")
                last, data = int(match[1]), match[2]
                leaf = orjson.loads(data)
                yield Leaf(last, leaf["kind"], leaf["time"], leaf["body"], data, merkle.leaf_hash(data))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / LEAVES, str(error) or type(error).__name__) from None


def leaf_hashes(folder: Path, size: int) -> bytes:
    """The hashes of the first `size` leaves, 32 bytes each, from the tiles of a folder.

    Raises LedgerError where a tile is missing or of another length.
    """
    found = bytearray()
    for number, start in enumerate(range(0, size, TILE)):
        found += _tile(folder, 0, number, min(TILE, size - start))
    return bytes(found)


def root_at(hashes: bytes, size: int) -> bytes:
    """Merkle root over the first `size` of these leaf hashes."""
    frontier: list[bytes] = []
    for number, start in enumerate(range(0, size, TILE)):
        end = min(start + TILE, size)
        tile = merkle.root_of([hashes[32 * at : 32 * at + 32] for at in range(start, end)])
        if end - start == TILE:
            merkle.push(frontier, number, tile)
        else:
            frontier.append(tile)
    return merkle.fold(frontier)


def check_upper_tiles(folder: Path, hashes: bytes, size: int) -> None:
    """Raises LedgerError where a tile above the leaves' is not made of the tiles below it."""
    below, level = hashes, 1
    while complete := size >> (8 * level):
        above = b"".join(
            merkle.root_of([below[32 * i : 32 * i + 32] for i in range(n * TILE, (n + 1) * TILE)])
            for n in range(complete)
        )
        for number, start in enumerate(range(0, complete, TILE)):
            width = min(TILE, complete - start)
            if _tile(folder, level, number, width) != above[32 * start : 32 * (start + width)]:
                raise _damaged(folder / tile_path(level, number, width), "it is not made of the tiles below")
        below, level = above, level + 1


def _tile(folder: Path, level: int, number: int, width: int) -> bytes:
    path = folder / tile_path(level, number, width)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    if len(data) != 32 * width:
        raise _damaged(path, f"it has {len(data)} bytes and not {32 * width}")
    return data


def _damaged(path: Path, why: str) -> LedgerError:
    return LedgerError(f"the proofs are damaged at {path}", why, "get the release anew from whoever made it")
