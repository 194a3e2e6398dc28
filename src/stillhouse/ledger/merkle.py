"""The Merkle tree of RFC 6962 section 2.1 (unchanged in RFC 9162): pure functions over hashes.

A tree of n leaves is never held whole. Functions that need inner nodes take a `Node`, a callable that
gives the root over the complete subtree of leaves [index * 2**level, (index + 1) * 2**level); where those
come from (a list, a database, tiles in a folder) is the caller's business. Hashes are 32 bytes, SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

Node = Callable[[int, int], bytes]

EMPTY = sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Root over leaf hashes that are all at hand; the hash of nothing when there are none."""
    if not hashes:
        return EMPTY
    level = list(hashes)
    while len(level) > 1:
        paired = [
            sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def push(frontier: list[bytes], size: int, leaf: bytes) -> None:
    """Add one leaf to a tree of `size` leaves that is kept as its frontier: the roots of its complete
    subtrees, largest first (a compact range). Costs one hash on average."""
    while size & 1:
        leaf = node_hash(frontier.pop(), leaf)
        size >>= 1
    frontier.append(leaf)


def fold(frontier: Sequence[bytes]) -> bytes:
    """Root of the tree whose frontier this is."""
    if not frontier:
        return EMPTY
    root = frontier[-1]
    for subtree in reversed(frontier[:-1]):
        root = node_hash(subtree, root)
    return root


def range_root(node: Node, start: int, end: int) -> bytes:
    """Root over leaves [start, end), where `start` is a multiple of a power of two >= end - start."""
    span = end - start
    if span == 0:
        return EMPTY
    level = span.bit_length() - 1
    if span == 1 << level:
        return node(level, start >> level)
    middle = start + _split(span)
    return node_hash(range_root(node, start, middle), range_root(node, middle, end))


def inclusion_proof(node: Node, index: int, size: int) -> list[bytes]:
    """Hashes, leaf upwards, that lead from leaf `index` to the root at `size` (RFC 6962, 2.1.1).

    Raises ValueError when the leaf is not in a tree of that size.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(range_root(node, middle, end))
            end = middle
        else:
            path.append(range_root(node, start, middle))
            start = middle
    return path[::-1]


def verify_inclusion(proof: Sequence[bytes], index: int, size: int, leaf: bytes, root: bytes) -> bool:
    """Whether the leaf with hash `leaf` is number `index` under `root` at `size` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    first, last, found = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if first & 1 or first == last:
            found = node_hash(step, found)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            found = node_hash(found, step)
        first, last = first >> 1, last >> 1
    return last == 0 and found == root


def consistency_proof(node: Node, first: int, second: int) -> list[bytes]:
    """Hashes that show the tree at `first` to be the beginning of the tree at `second` (RFC 6962, 2.1.2).

    Raises ValueError unless 0 <= first <= second.
    """
    if not 0 <= first <= second:
        raise ValueError(f"a tree of {first} is not the beginning of a tree of {second}")
    if first in (0, second):
        return []
    path: list[bytes] = []
    start, end, whole = 0, second, True
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            path.append(range_root(node, middle, end))
            end = middle
        else:
            path.append(range_root(node, start, middle))
            start, whole = middle, False
    if not whole:
        path.append(range_root(node, start, end))
    return path[::-1]


def verify_consistency(
    proof: Sequence[bytes], first: int, second: int, first_root: bytes, second_root: bytes
) -> bool:
    """Whether the tree of `first` leaves is the beginning of the other (RFC 9162, 2.1.4.2)."""
    if not 0 <= first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    if first == 0:
        return not proof and first_root == EMPTY
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, first_root)
    if not path:
        return False
    left, right = first - 1, second - 1
    while left & 1:
        left, right = left >> 1, right >> 1
    old = new = path[0]
    for step in path[1:]:
        if right == 0:
            return False
        if left & 1 or left == right:
            old, new = node_hash(step, old), node_hash(step, new)
            while not left & 1 and left:
                left, right = left >> 1, right >> 1
        else:
            new = node_hash(new, step)
        left, right = left >> 1, right >> 1
    return right == 0 and old == first_root and new == second_root


def _split(span: int) -> int:
    """The largest power of two smaller than span (> 1)."""
    return 1 << ((span - 1).bit_length() - 1)
