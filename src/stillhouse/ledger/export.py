"""The log in files for others: C2SP tlog-tiles, the same leaves as lines, checkpoint and public key.

FOLDER/checkpoint             signed note
FOLDER/public-key.pem         Ed25519
FOLDER/leaves.jsonl           one leaf a line, canonical bytes
FOLDER/tile/LEVEL/000         hashes, 256 a tile; 000.p/W while it has only W of them
FOLDER/tile/entries/000       leaves, each after its length in two bytes
FOLDER/contents.jsonl         only when asked for: salts and texts
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from stillhouse.errors import UsageError, storage
from stillhouse.ledger.checkpoint import Checkpoint
from stillhouse.ledger.keys import public_bytes, public_pem, read_signing_key
from stillhouse.ledger.tree import TILE, stored_nodes
from stillhouse.workspace import write_atomic

if TYPE_CHECKING:
    from stillhouse.ledger.leaves import Leaf
    from stillhouse.ledger.store import Ledger


def export(ledger: Ledger, folder: Path, contents: bool = False) -> Checkpoint:
    """Make a checkpoint and write the log up to it. The checkpoint is written last.

    Without `contents` the folder holds no text and no salt. Raises UsageError unless the folder is new or
    empty, since what lay there before would pass for a part of this log, and StorageError when it cannot be
    written.
    """
    with storage("export the ledger to", folder):
        if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
            raise UsageError(
                f"cannot export the ledger to {folder}",
                "the folder is not empty" if folder.is_dir() else "it is a file",
                "give a new or an empty folder",
            )
    checkpoint = ledger.checkpoint()
    with storage("export the ledger to", folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write_leaves(ledger, folder, checkpoint.size)
        write_hashes(ledger, folder, checkpoint.size)
        if contents:
            _write_contents(ledger, folder, checkpoint.size)
        (folder / "public-key.pem").write_bytes(public_pem(public_bytes(read_signing_key(ledger.workspace))))
    write_atomic(folder / "checkpoint", checkpoint.note)
    return checkpoint


def tile_path(level: int | str, number: int, width: int) -> Path:
    """Path by tlog-tiles: digits in groups of three, an x before all but the last; partial tiles in .p/."""
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.insert(0, f"x{number % 1000:03d}")
    if width < TILE:
        groups[-1] += ".p"
        groups.append(str(width))
    return Path("tile", str(level), *groups)


def _write_leaves(ledger: Ledger, folder: Path, size: int) -> None:
    leaves = islice(ledger.leaves(), size)
    with (folder / "leaves.jsonl").open("wb") as lines:
        for number, tile in enumerate(_tiles(leaves)):
            lines.writelines(leaf.data + b"\n" for leaf in tile)
            entries = b"".join(len(leaf.data).to_bytes(2, "big") + leaf.data for leaf in tile)
            _write(folder / tile_path("entries", number, len(tile)), entries)


def write_hashes(ledger: Ledger, folder: Path, size: int) -> None:
    """Tiles of hashes: one at level L stands for 256**L leaves, complete ones only."""
    node, level = stored_nodes(ledger.read), 0
    while complete := size >> (8 * level):
        for number, start in enumerate(range(0, complete, TILE)):
            width = min(TILE, complete - start)
            hashes = b"".join(node(8 * level, start + i) for i in range(width))
            _write(folder / tile_path(level, number, width), hashes)
        level += 1


def _write_contents(ledger: Ledger, folder: Path, size: int) -> None:
    with (folder / "contents.jsonl").open("wb") as lines:
        for start in range(0, size, TILE):
            for leaf, name, salt, text in ledger.salted_contents(start, min(start + TILE, size)):
                row = {
                    "leaf": leaf,
                    "name": name,
                    "salt": salt.hex(),
                    "base64": base64.b64encode(text).decode(),
                }
                lines.write(orjson.dumps(row) + b"\n")


def _tiles(leaves: Iterator[Leaf]) -> Iterator[list[Leaf]]:
    while tile := list(islice(leaves, TILE)):
        yield tile


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
