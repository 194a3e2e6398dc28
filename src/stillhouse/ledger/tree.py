"""The Merkle tree as it is stored: leaf hashes, and the roots of every 256, 65,536, ... leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from stillhouse.errors import LedgerError
from stillhouse.ledger import merkle
from stillhouse.ledger.database import Connection

_TILE_BITS = 8
TILE = 1 << _TILE_BITS
_TILES_KEPT, _NODES_KEPT = 64, 4096


def stored_nodes(run: Callable[..., Iterable[tuple[Any, ...]]]) -> merkle.Node:
    """Inner nodes of the tree, made from stored hashes, which are read a tile of 256 at a time.

    What is complete in an append-only log stays as it is, so the last nodes and tiles are kept for the next
    proof, however much the log has grown.
    """
    tiles: dict[tuple[int, int], list[bytes]] = {}

    def tile(level: int, number: int) -> list[bytes]:
        if (level, number) in tiles:
            return tiles[level, number]
        span = (number * TILE, (number + 1) * TILE)
        if level == 0:
            rows = run("SELECT hash FROM leaf WHERE idx >= ? AND idx < ? ORDER BY idx", span)
        else:
            query = "SELECT hash FROM subtree WHERE level = ? AND n >= ? AND n < ? ORDER BY n"
            rows = run(query, (level, *span))
        hashes = [digest for (digest,) in rows]
        if len(hashes) == TILE:
            if len(tiles) >= _TILES_KEPT:
                tiles.clear()
            tiles[level, number] = hashes
        return hashes

    @lru_cache(maxsize=_NODES_KEPT)
    def node(level: int, index: int) -> bytes:
        base = level - level % _TILE_BITS
        width = 1 << (level - base)
        number, start = divmod(index * width, TILE)
        hashes = tile(base, number)[start : start + width]
        if len(hashes) != width:
            raise LedgerError(
                "the ledger's tree is damaged",
                f"{width - len(hashes)} hashes are missing at level {base}",
                "see what is wrong with `stillhouse ledger verify`, and restore the ledger from a backup",
            )
        return merkle.root_of(hashes)

    return node


def seal(db: Connection, size: int) -> None:
    """Store the roots of the subtrees of 256, 65,536, ... leaves that are complete at `size`."""
    level = _TILE_BITS
    while size % (1 << level) == 0:
        number = (size >> level) - 1
        # Halves are one level down, so they are made of the level that is stored already.
        node = stored_nodes(db.execute)
        left, right = (node(level - 1, 2 * number + side) for side in (0, 1))
        db.execute("INSERT INTO subtree VALUES (?, ?, ?)", (level, number, merkle.node_hash(left, right)))
        level += _TILE_BITS
