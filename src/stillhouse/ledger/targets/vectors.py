"""Shards of vectors: what enters a teacher's head at each position, from which that head makes the whole
distribution, at every temperature. A row's block is one column of numbers, position after position:
little-endian float32, or bfloat16, the upper half of one.

Shapes: N positions, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.ledger.targets.layout import NUMBERS, Binding


def encode_vectors(binding: Binding, vectors_ND: NDArray[np.float32]) -> bytes:
    """The block of one row. bfloat16 rounds to the nearest, of two to the even one, and so keeps what came
    from it. Raises ValueError for vectors that are none under this binding."""
    if (
        not binding.width
        or vectors_ND.ndim != 2
        or vectors_ND.shape[1] != binding.width
        or not len(vectors_ND)
    ):
        raise ValueError("the arrays of the vectors do not fit together")
    values_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    if binding.dtype == "bfloat16":
        with np.errstate(over="ignore"):
            bits_ND = values_ND.view(np.uint32)
            kept_ND = ((bits_ND + 0x7FFF + ((bits_ND >> 16) & 1)) >> 16).astype("<u2")
        values_ND = _widened(kept_ND)
        data = kept_ND.tobytes()
    else:
        data = values_ND.astype("<f4").tobytes()
    _check(values_ND)
    return data


def decode_vectors(
    binding: Binding, blocks: Sequence[NDArray[np.uint8]], positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The vectors (N, D) of the rows whose blocks these are, one row after the other.

    `positions` is how many each row has. Raises ValueError for a block that does not end where its row does,
    or holds what no shard holds.
    """
    if not binding.width:
        raise ValueError("the shard holds distributions and no vectors")
    size = NUMBERS[binding.dtype] * binding.width
    if [len(block) for block in blocks] != (size * positions).tolist():
        raise ValueError("a row does not end where its block does")
    data = np.concatenate([*blocks, np.zeros(0, dtype=np.uint8)])
    if binding.dtype == "bfloat16":
        values = _widened(data.view("<u2"))
    else:
        values = data.view("<f4").astype(np.float32, copy=False)
    _check(values)
    return values.reshape(-1, binding.width)


def _widened(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _check(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise ValueError("a number of a vector is none")
