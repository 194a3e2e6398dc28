"""MinHash signatures cut into bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3.4).

Two texts of Jaccard similarity s agree in one value of their signatures with chance s, in all r values of a
band with s^r, and in at least one of b bands with 1 - (1 - s^r)^b: an S-shaped curve over s.
"""

from __future__ import annotations

from array import array

import numpy as np
import rensa
from numpy.typing import NDArray

from stillhouse.errors import UsageError
from stillhouse.similar.hashes import Hashes, Offsets

Keys = NDArray[np.uint32]

BANDS = 16
RECALL = 0.98  # the least chance to be compared, at the threshold itself
_LONGEST = 8  # values of a band: above 0.9 a longer one would cost more than the comparisons it saves
_SEED = 20_11
_SIGNED = 256  # texts whose values are Python's numbers at once: more do not fit into the processor's cache
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xD6E8FEB86659FD93)
_LINKED = 1 << 20  # entries that are put in their chains at once; bounds what that takes to 30 MB


def chance(jaccard: float, length: int) -> float:
    """That two texts of this similarity share at least one of the 16 bands of `length` values."""
    return float(1 - (1 - jaccard**length) ** BANDS)


def band_length(threshold: float) -> int:
    """The longest band, up to 8 values, that compares pairs at the threshold with a chance of 0.98.

    0.5: 2 values (chance 0.990); 0.6: 2 (0.9992); 0.7: 4 (0.988); 0.8: 6 (0.992); 0.9: 8 (0.9999).
    Raises UsageError below 0.25, where 16 bands are too few, and above 1.
    """
    if not 0.25 <= threshold <= 1:
        raise UsageError(
            f"a threshold of {threshold:g} for near duplicates",
            "it is the least share of common shingles, and pairs below 0.25 are not found reliably",
            "choose one from 0.25 to 1; 0.7 is usual",
        )
    return max(length for length in range(1, _LONGEST + 1) if chance(threshold, length) >= RECALL)


def band_keys(shingles: Hashes, offsets: Offsets, length: int) -> Keys:
    """Keys of the bands of each text, [texts, 16]; equal keys are equal bands, but for a chance of 2^-32."""
    values = _minima(shingles, offsets, BANDS * length).astype(np.uint64).reshape(-1, BANDS, length)
    keys = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), values.shape[:2]).copy()
    for place in range(length):
        keys ^= values[:, :, place]
        keys *= _MULTIPLIER
        keys ^= keys >> np.uint64(29)
    keys *= _MIXER
    return (keys >> np.uint64(32)).astype(np.uint32)


def _minima(shingles: Hashes, offsets: Offsets, count: int) -> NDArray[np.uint32]:
    """So many MinHash values of each text, one text after another."""
    found = []
    for first in range(0, len(offsets) - 1, _SIGNED):
        bounds = offsets[first : first + _SIGNED + 1]
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            shingles[bounds[0] : bounds[-1]], (bounds - bounds[0]).astype(np.uint64), count, _SEED
        )
        found += [array("I", row) for row in matrix.to_rows()]
    return np.frombuffer(b"".join(found), dtype=np.uint32)


class Buckets:
    """Which texts hold which band key: chains in four flat arrays, 16 to 32 bytes an entry."""

    def __init__(self) -> None:
        self._size = 0
        self._keys = np.empty(0, dtype=np.uint32)
        self._texts = np.empty(0, dtype=np.int32)
        self._allot(1 << 10)

    def meet(self, keys: Keys) -> list[list[tuple[int, list[int]]]]:
        """For each text the bands whose key another text has, with the list of those inserted so far.

        keys is [texts, bands]; the other text may be inserted already or be one of these. A key has one list
        for all its texts: who decides to insert a text appends it to its lists, and the next ones see it.
        """
        distinct, codes, counts = np.unique(keys, return_inverse=True, return_counts=True)
        held = self._fetch(distinct)
        met = counts > 1
        met[list(held)] = True
        codes = codes.reshape(keys.shape)
        places, bands = np.nonzero(met[codes])
        meetings: list[list[tuple[int, list[int]]]] = [[] for _ in keys]
        for place, band, code in zip(
            places.tolist(), bands.tolist(), codes[places, bands].tolist(), strict=True
        ):
            meetings[place].append((band, held.setdefault(code, [])))
        return meetings

    def insert(self, keys: Keys, texts: NDArray[np.int32]) -> None:
        """Put texts[i] under keys[i]; both are flat."""
        first, size = self._size, self._size + len(keys)
        if size > len(self._heads):
            self._allot(1 << (size - 1).bit_length())
            first = 0  # the slots are others now
        self._keys[self._size : size] = keys
        self._texts[self._size : size] = texts
        self._size = size
        for start in range(first, size, _LINKED):
            self._link(np.arange(start, min(start + _LINKED, size), dtype=np.int32))

    def _fetch(self, keys: Keys) -> dict[int, list[int]]:
        """The texts of keys[i] under i, for every key that has any."""
        asked = np.arange(len(keys))
        at = self._heads[keys & self._mask]
        found: dict[int, list[int]] = {}
        while (more := at >= 0).any():
            at, asked = at[more], asked[more]
            hit = self._keys[at] == keys[asked]
            for code, text in zip(asked[hit].tolist(), self._texts[at[hit]].tolist(), strict=True):
                found.setdefault(code, []).append(text)
            at = self._before[at]
        return found

    def _allot(self, capacity: int) -> None:
        spare = capacity - len(self._keys)
        self._keys = np.concatenate((self._keys, np.empty(spare, dtype=np.uint32)))
        self._texts = np.concatenate((self._texts, np.empty(spare, dtype=np.int32)))
        self._heads = np.full(capacity, -1, dtype=np.int32)  # the last entry linked in each slot, or -1
        self._before = np.empty(capacity, dtype=np.int32)  # the one linked before it in its slot, or -1
        self._mask = np.uint32(capacity - 1)

    def _link(self, entries: NDArray[np.int32]) -> None:
        slots = self._keys[entries] & self._mask
        order = np.argsort(slots)
        slots, entries = slots[order], entries[order]
        opens = np.concatenate(([True], slots[1:] != slots[:-1]))  # the first of these entries in its slot
        before = np.roll(entries, 1)
        before[opens] = self._heads[slots[opens]]
        self._before[entries] = before
        closes = np.roll(opens, -1)
        self._heads[slots[closes]] = entries[closes]
