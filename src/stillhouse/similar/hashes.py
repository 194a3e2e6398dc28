"""Texts as flat arrays of 64-bit hashes, a batch at a time: what makes comparing many of them cheap.

A hash stands for its word or n-gram. Two different ones of a pair of texts with n and m of them share a hash
with a chance of about n * m / 2^64 (3e-16 for texts of 75 words), which is what "exact" leaves open here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]
Texts: TypeAlias = "list[str] | pa.Array"

ROWS = 4096  # texts of a batch at most,
CHARACTERS = 1 << 22  # and their length together, but for a single longer text

_WIDTH = 8  # bytes of a hash
_STRETCH = 64  # characters of the longest stretch that is remembered
_REMEMBERED = 1 << 17  # stretches at once, and pieces: at most about 30 MB each
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_MIXER = np.uint64(0xD6E8FEB86659FD93)


@lru_cache(_REMEMBERED)
def _hash(piece: str) -> bytes:
    return blake2b(piece.encode(), digest_size=_WIDTH).digest()


class Remembered(dict[str, bytes]):
    """From a stretch without white space to the hashes of its pieces (words, tokens), one after another.

    Texts repeat their stretches so often that looking one up costs a tenth of taking it apart.
    """

    __slots__ = ("_pieces",)

    def __init__(self, pieces: Callable[[str], list[str]]) -> None:
        super().__init__()
        self._pieces = pieces

    def __missing__(self, stretch: str) -> bytes:
        found = b"".join(map(_hash, self._pieces(stretch)))
        if len(stretch) <= _STRETCH:
            if len(self) == _REMEMBERED:
                self.clear()
            self[stretch] = found
        return found


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of at most ROWS texts and CHARACTERS characters, so that memory does not follow the input."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == ROWS or size + len(text) > CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def hashed(texts: Texts, stretches: Remembered, least: int = 0) -> tuple[Hashes, Offsets]:
    """The pieces of all texts as one array of hashes; text i has those from offsets[i] to offsets[i + 1].

    A text with fewer than `least` pieces is filled up with zeros. A null of an Arrow array counts as the
    empty text, half a character as "?".
    """
    column = _as_column(texts) if isinstance(texts, list) else texts.fill_null("")
    # Arrow splits at ASCII white space, and Python sees each distinct stretch of the batch once.
    split = pc.ascii_split_whitespace(column)
    coded = split.values.dictionary_encode()
    found = list(map(stretches.__getitem__, coded.dictionary.to_pylist()))
    lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found)) // _WIDTH
    starts = np.cumsum(lengths) - lengths
    codes = coded.indices.to_numpy()
    ends = np.concatenate(([0], np.cumsum(lengths[codes])))
    known = np.frombuffer(b"".join(found), dtype="<u8").astype(np.uint64, copy=False)
    pieces = known[np.arange(ends[-1]) + np.repeat(starts[codes] - ends[:-1], lengths[codes])]
    return _filled(pieces, ends[split.offsets.to_numpy()], least)


def _as_column(texts: list[str]) -> pa.Array:
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        return pa.array([text.encode("utf-8", "replace").decode() for text in texts], pa.large_string())


def _filled(pieces: Hashes, offsets: Offsets, least: int) -> tuple[Hashes, Offsets]:
    counts = np.diff(offsets)
    lacking = np.maximum(least - counts, 0)
    if not lacking.any():
        return pieces, offsets
    wider = offsets + np.concatenate(([0], np.cumsum(lacking)))
    filled = np.zeros(wider[-1], dtype=np.uint64)
    filled[np.arange(len(pieces)) + np.repeat(wider[:-1] - offsets[:-1], counts)] = pieces
    return filled, wider


def ngrams(pieces: Hashes, offsets: Offsets, n: int) -> tuple[Hashes, Offsets]:
    """Hashes of every n pieces in a row of each text, in order, and their offsets; none spans two texts."""
    counts = np.maximum(np.diff(offsets) - (n - 1), 0)
    starts = np.concatenate(([0], np.cumsum(counts)))
    windows = max(len(pieces) - (n - 1), 0)
    grams = pieces[:windows].copy()
    for place in range(1, n):
        grams *= _MULTIPLIER
        grams += pieces[place : place + windows]
    grams ^= grams >> np.uint64(32)  # sums alone are linear, and a MinHash of linear values is not fair
    grams *= _MIXER
    grams ^= grams >> np.uint64(32)
    inside = np.arange(windows) + n <= np.repeat(offsets[1:], np.diff(offsets))[:windows]
    return grams[inside], starts


def without(
    unwanted: Hashes, pieces: Hashes, offsets: Offsets, ends: Offsets
) -> tuple[Hashes, Offsets, Offsets]:
    """The texts without the unwanted pieces (sorted), their offsets, and how many of the last ends[i] pieces
    of each are left. A text, or an end, of which nothing would be left stays as it is."""
    if not len(unwanted) or not len(pieces):
        return pieces, offsets, ends
    at = np.minimum(np.searchsorted(unwanted, pieces), len(unwanted) - 1)
    wanted = unwanted[at] != pieces
    counts = np.diff(offsets)
    place = np.arange(len(pieces))
    in_end = place >= np.repeat(offsets[1:] - ends, counts)
    for part in (np.ones(len(pieces), dtype=np.bool_), in_end):
        left = _sums(wanted & part, offsets)
        wanted |= part & np.repeat(left == 0, counts)
    return (
        pieces[wanted],
        np.concatenate(([0], np.cumsum(_sums(wanted, offsets)))),
        _sums(wanted & in_end, offsets),
    )


def _sums(flags: NDArray[np.bool_], offsets: Offsets) -> Offsets:
    """How many flags of each text are set."""
    return np.diff(np.concatenate(([0], np.cumsum(flags)))[offsets])
