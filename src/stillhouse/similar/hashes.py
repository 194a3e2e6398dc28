"""Texts as flat arrays of 64-bit hashes, a batch at a time: what makes comparing many of them cheap.

A hash stands for its word or n-gram. Two different ones of a pair of texts with n and m of them share a hash
with a chance of about n * m / 2^64 (3e-16 for texts of 75 words), which is what "exact" leaves open here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]
Texts: TypeAlias = "list[str] | pa.Array"
Pieces = Callable[[str], list[str]]
"""`text.tokens` or `text.words`: a text taken apart, each stretch between white space by itself."""

ROWS = 4096  # texts of a batch at most,
CHARACTERS = 1 << 22  # and their length together, but for a single longer text

_TAKEN = 1 << 18  # bytes of text that are taken apart at once, so that it happens in the processor's cache
_WIDTH = 8  # bytes of a hash, and of a piece that are taken at once
_LONG = 64  # bytes of the longest piece that is taken in steps, characters of the longest stretch remembered
_REMEMBERED = 1 << 15  # stretches beyond ASCII at once: at most about 25 MB
_PART, _WHOLE = 1, 2  # what a byte is of a piece, if anything
_LOW = np.array([(1 << 8 * width) - 1 for width in range(_WIDTH + 1)], dtype=np.uint64)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_MIXER = np.uint64(0xD6E8FEB86659FD93)


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


def hashed(texts: Texts, pieces: Pieces, least: int = 0) -> tuple[Hashes, Offsets]:
    """The pieces of all texts as one array of hashes; text i has those from offsets[i] to offsets[i + 1].

    A text with fewer than `least` pieces is filled up with zeros. A null of an Arrow array counts as the
    empty text, half a character as "?".
    """
    data, bounds = _bytes(_apart(_column(texts), pieces))
    kinds = _kinds(pieces)
    cuts = np.searchsorted(bounds, np.arange(0, bounds[-1] + 1, _TAKEN))
    found, counts = [np.empty(0, dtype=np.uint64)], [np.zeros(1, dtype=np.int64)]
    for first, end in pairwise(np.unique([*cuts, len(bounds) - 1]).tolist()):
        part, own = data[bounds[first] : bounds[end]], bounds[first : end + 1] - bounds[first]
        starts, ends = _places(np.frombuffer(part.translate(kinds), dtype=np.uint8), own)
        found.append(_hashes(part.lower(), starts, ends - starts))
        counts.append(np.diff(np.searchsorted(starts, own)))
    return _filled(np.concatenate(found), np.cumsum(np.concatenate(counts)), least)


def _column(texts: Texts) -> pa.Array:
    if not isinstance(texts, list):
        return texts.fill_null("").cast(pa.large_string())
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        return pa.array([text.encode("utf-8", "replace").decode() for text in texts], pa.large_string())


def _apart(column: pa.Array, pieces: Pieces) -> pa.Array:
    """The texts, each stretch beyond ASCII replaced by its pieces with spaces between: what belongs to a
    piece can then be told from single bytes."""
    other = pc.invert(pc.string_is_ascii(column))
    if not other.true_count:
        return column
    anew = [
        " ".join(stretch if stretch.isascii() else _stretch(stretch, pieces) for stretch in text.split())
        for text in column.filter(other).to_pylist()
    ]
    return pc.replace_with_mask(column, other, pa.array(anew, column.type))


def _stretch(stretch: str, pieces: Pieces) -> str:
    if len(stretch) > _LONG:
        return " ".join(pieces(stretch))
    return _known_stretch(stretch, pieces)


@lru_cache(_REMEMBERED)
def _known_stretch(stretch: str, pieces: Pieces) -> str:
    return " ".join(pieces(stretch))


def _bytes(column: pa.Array) -> tuple[bytes, Offsets]:
    """The texts one after another, and where each begins, with the end of the last."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    first, end = bounds[[0, -1]].tolist()
    return data.slice(first, end - first).to_pybytes() if data else b"", bounds - first


@lru_cache
def _kinds(pieces: Pieces) -> bytes:
    """What each byte is, by how many pieces it makes when doubled: a letter one, a mark two, a blank none.
    Beyond ASCII every byte is of a letter."""
    return bytes([len(pieces(2 * chr(code))) for code in range(128)] + [_PART] * 128)


def _places(kinds: NDArray[np.uint8], bounds: Offsets) -> tuple[Offsets, Offsets]:
    """Where each piece starts and ends; none spans two texts."""
    part, whole = kinds == _PART, kinds == _WHOLE
    opens, closes = part.copy(), part.copy()
    opens[1:] &= ~part[:-1]
    closes[:-1] &= ~part[1:]
    texts = np.flatnonzero(np.diff(bounds))
    first, last = bounds[texts], bounds[texts + 1] - 1
    opens[first], closes[last] = part[first], part[last]
    return np.flatnonzero(opens | whole), np.flatnonzero(closes | whole) + 1


def _hashes(data: bytes, starts: Offsets, lengths: Offsets) -> Hashes:
    """One for each piece; two different ones of up to 8 bytes never share it."""
    at = np.ndarray((len(data) + 1,), dtype="<u8", buffer=data + bytes(_WIDTH), strides=(1,))
    hashes = _mixed(at[starts] & _LOW[np.minimum(lengths, _WIDTH)] ^ _MIXER)
    longer, done = np.flatnonzero(lengths > _WIDTH), _WIDTH
    while len(longer) and done < _LONG:
        left = lengths[longer] - done
        more = at[starts[longer] + done] & _LOW[np.minimum(left, _WIDTH)]
        hashes[longer] = _mixed(hashes[longer] * _MULTIPLIER ^ more)
        longer, done = longer[left > _WIDTH], done + _WIDTH
    for piece in longer.tolist():  # in steps a huge one would take minutes
        whole = data[starts[piece] : starts[piece] + lengths[piece]]
        hashes[piece] = int.from_bytes(blake2b(whole, digest_size=_WIDTH).digest(), "little")
    return hashes


def _mixed(values: Hashes) -> Hashes:
    """Each bit spread over all; different values stay different. Changes its argument."""
    values ^= values >> np.uint64(32)
    values *= _MIXER
    values ^= values >> np.uint64(32)
    values *= _MIXER
    values ^= values >> np.uint64(32)
    return values


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
    grams = _mixed(grams)  # sums alone are linear, and a MinHash of linear values is not fair
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
