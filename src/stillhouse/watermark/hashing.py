"""The keyed function under every scheme: a context and a token to 64 bits that look drawn at random.

A context is hashed with SipHash-2-4 (Aumasson and Bernstein 2012), which nobody can tell from random without
the key; what it gives is the seed of a SplitMix64 stream (Steele, Lea and Flood 2014), of which a token takes
the value at its own place. So a whole vocabulary costs one keyed hash and a few cheap steps a token. All
arithmetic is modulo 2^64, over arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ids = NDArray[np.int64]
SipKey = tuple[int, int]

GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's steps: 2^64 over the golden ratio
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # and the factors of its finaliser
_SIP = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_BLOCK = 1 << 14  # values worked on at once: they and the four words of state stay in the cache


def siphash(key: SipKey, words: Sequence[Hashes]) -> Hashes:
    """SipHash-2-4 of each row of 64-bit words, little-endian: W arrays of (N,) -> (N,)."""
    rows = len(words[0])
    found = np.empty(rows, dtype=np.uint64)
    for start in range(0, rows, _BLOCK):
        found[start : start + _BLOCK] = _siphash(key, [word[start : start + _BLOCK] for word in words])
    return found


def seeds(key: SipKey, ids: Ids, width: int) -> Hashes:
    """The seed at each place that has `width` ids before it: (T,) -> (T - width,)."""
    found = ids.astype(np.uint64)
    places = max(len(found) - width, 0)
    return siphash(key, [found[start : start + places] for start in range(width)])


def values(seed: Hashes, tokens: Hashes) -> Hashes:
    """The value of each token in the stream of its seed; the arrays are broadcast."""
    z = seed + (tokens + np.uint64(1)) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    found: Hashes = z ^ (z >> np.uint64(31))
    return found


def uniform(hashes: Hashes) -> NDArray[np.float64]:
    """Numbers in (0, 1), of the upper 52 bits: all of them and their complements are exact."""
    return ((hashes >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _siphash(key: SipKey, words: Sequence[Hashes]) -> Hashes:
    halves = [np.uint64(half) for half in key]
    state = [np.full(len(words[0]), np.uint64(_SIP[at]) ^ halves[at % 2]) for at in range(4)]
    length = np.full(len(words[0]), np.uint64((8 * len(words) % 256) << 56))
    for word in (*words, length):
        state[3] ^= word
        _rounds(state, 2)
        state[0] ^= word
    state[2] ^= np.uint64(0xFF)
    _rounds(state, 4)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def _rounds(state: list[Hashes], count: int) -> None:
    v0, v1, v2, v3 = state
    for _ in range(count):
        v0 += v1
        v2 += v3
        v1 = _rotated(v1, 13) ^ v0
        v3 = _rotated(v3, 16) ^ v2
        v0 = _rotated(v0, 32)
        v2 += v1
        v0 += v3
        v1 = _rotated(v1, 17) ^ v2
        v3 = _rotated(v3, 21) ^ v0
        v2 = _rotated(v2, 32)
    state[:] = v0, v1, v2, v3


def _rotated(word: Hashes, by: int) -> Hashes:
    found: Hashes = (word << np.uint64(by)) | (word >> np.uint64(64 - by))
    return found
