"""Near duplicates: which text repeats an earlier one, by the exact Jaccard similarity of their shingles."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np

from stillhouse.similar.bands import Buckets, band_keys, band_length
from stillhouse.similar.hashes import Hashes, Texts, batches, hashed, ngrams, without
from stillhouse.text import normalise, tokens

THRESHOLD = 0.7
SHINGLE = 3  # tokens

_PACKED = np.dtype([("low", "<u4"), ("high", "<u2")])
_TELLING = 8  # texts of a kind from which its wording is known
_BLOCK = 1 << 22  # bytes of shingles that are kept together
_BUCKET = 64  # texts that one band key finds at most: the first that had it
_MEASURED = 64  # texts whose similarity to a new one is measured at most: those which share the most bands


@dataclass(frozen=True, slots=True)
class Repeat:
    """Row `row` repeats row `of`, counted from 0; row `of` of the reference set where `reference`."""

    row: int
    of: int
    jaccard: float
    reference: bool = False


def exact_repeats(texts: Iterable[str]) -> Iterator[Repeat]:
    """Every text that equals an earlier one once both are normalised; it names the first of them.

    About 170 bytes are kept of each distinct text, whatever its length.
    """
    first: dict[bytes, int] = {}
    for row, text in enumerate(texts):
        mark = blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        of = first.setdefault(mark, row)
        if of != row:
            yield Repeat(row, of, 1.0)


def near_repeats(
    texts: Iterable[str], threshold: float = THRESHOLD, reference: Iterable[str] = ()
) -> Iterator[Repeat]:
    """Every text that repeats an earlier kept one or one of the reference set, in order; see `NearIndex`."""
    return (found for found in NearIndex(threshold, reference).add_all(texts) if found is not None)


class NearIndex:
    """Texts that do not repeat one another, and the question whether a further one does.

    A text repeats another if the sets of their shingles (3 tokens in a row; a shorter text is one shingle)
    have a Jaccard similarity of at least `threshold`: at 0.7 about one word in nineteen may differ. Each
    text is compared with those that were kept before it and with the reference set; of those it repeats,
    the most similar is named, of equals the earliest. A text that repeats none is kept. So every dropped
    text is at least this similar to the kept text that it names, and no chain of small changes joins texts
    that differ. What is found depends on the order of the texts, but not on how they are cut into calls.

    Which pairs are compared is chosen by MinHash in 16 bands: a pair of similarity s with the chance
    1 - (1 - s^r)^16, r = 4 for the threshold 0.7 (0.988 there, 0.9998 at 0.8), see `bands.band_length`.
    That chance falls only for a text that shares bands with more than 64 kept ones, as in a long template.

    `wording` are shingles that do not count, because rows of a kind all have them (see `shared_wording`); a
    text that has no others keeps them.

    Memory: of each kept text 6 bytes a token and 350 to 600 bytes, nothing of a dropped one. Shingles are
    compared by 48 bits: in a pair of texts of 75 words two others pass for one with a chance of 2e-11.
    """

    def __init__(
        self,
        threshold: float = THRESHOLD,
        reference: Iterable[str] = (),
        wording: Hashes | None = None,
    ) -> None:
        self._threshold = threshold
        self._wording = np.empty(0, dtype=np.uint64) if wording is None else np.unique(wording)
        self._band_length = band_length(threshold)
        self._buckets = Buckets()
        self._kept = _Kept()
        self._rows = array("q")  # the number of each kept text; ~number for a text of the reference set
        self._given = 0
        read = 0
        for batch in batches(reference):
            # Of the reference set only what says the very same is left out: a text may repeat either of two.
            self._compare(batch, None, [~row for row in range(read, read + len(batch))], 1.0)
            read += len(batch)

    def __len__(self) -> int:
        """Texts that were kept, those of the reference set among them."""
        return len(self._rows)

    def add(self, text: str) -> Repeat | None:
        """What this text repeats; None if nothing, and then it is kept."""
        return self.add_batch([text])[0]

    def add_all(self, texts: Iterable[str]) -> Iterator[Repeat | None]:
        """The same as `add` for each text in turn, many times faster; takes some thousands of texts ahead."""
        for batch in batches(texts):
            yield from self.add_batch(batch)

    def add_batch(self, texts: Texts, answers: Texts | None = None) -> list[Repeat | None]:
        """The same for texts at hand: a list, or an Arrow array of strings, which costs least.

        Where `answers` are given, texts[i] ends with answers[i], after white space, and only repeats a text
        whose answer has at least the same similarity with its own: two answers to one long question differ.
        """
        rows = list(range(self._given, self._given + len(texts)))
        self._given += len(texts)
        return self._compare(texts, answers, rows, self._threshold)

    def _compare(
        self, texts: Texts, answers: Texts | None, rows: list[int], least: float
    ) -> list[Repeat | None]:
        """What each text repeats at this similarity or more; what repeats nothing is kept under its row."""
        shingles, offsets = ngrams(*hashed(texts, tokens, least=SHINGLE), SHINGLE)
        ends = np.zeros(len(texts), dtype=np.int64)
        if answers is not None:
            tokens_of = np.diff(hashed(answers, tokens)[1])
            ends = np.minimum(np.maximum(tokens_of - (SHINGLE - 1), 1), np.diff(offsets))
        shingles, offsets, ends = without(self._wording, shingles, offsets, ends)
        sizes = (ends * _PACKED.itemsize).tolist()
        keys = band_keys(shingles, offsets, self._band_length)
        kept = np.full(len(texts), -1, dtype=np.int32)
        filed = np.ones(keys.shape, dtype=np.bool_)  # the bands by which a kept text can be found
        results: list[Repeat | None] = []
        flat, bounds = _packed(shingles), (offsets * _PACKED.itemsize).tolist()
        for place, (row, meetings) in enumerate(zip(rows, self._buckets.meet(keys), strict=True)):
            own = flat[bounds[place] : bounds[place + 1]]
            sharing = [text for _, bucket in meetings for text in bucket]
            repeat = self._nearest(row, own, sizes[place], sharing, least)
            results.append(repeat)
            if repeat is None:
                number = len(self._kept)
                kept[place] = number
                self._kept.append(own, sizes[place])
                self._rows.append(row)
                for band, bucket in meetings:
                    if len(bucket) < _BUCKET:
                        bucket.append(number)
                    else:
                        filed[place, band] = False
        filed[kept < 0] = False
        self._buckets.insert(keys[filed], np.broadcast_to(kept[:, None], keys.shape)[filed])
        return results

    def _nearest(
        self, row: int, shingles: bytes, answer: int, sharing: list[int], least: float
    ) -> Repeat | None:
        """`sharing` names a kept text once for each band that it shares; the last `answer` bytes of the
        shingles must be alike by themselves, if there are any."""
        if not sharing:
            return None
        own = _as_set(shingles)
        best, nearest = 0.0, -1
        for text in _most_named(sharing):
            other = _as_set(self._kept.whole(text))
            common = len(own & other)
            jaccard = common / (len(own) + len(other) - common)
            if jaccard >= least and (-jaccard, text) < (-best, nearest):
                if answer and not _alike(shingles[-answer:], self._kept.answer(text), least):
                    continue
                best, nearest = jaccard, text
        if nearest < 0:
            return None
        of = self._rows[nearest]
        return Repeat(row, of, best) if of >= 0 else Repeat(row, ~of, best, reference=True)


def shared_wording(texts: Iterable[tuple[str, str]]) -> Hashes:
    """Shingles that over half of the texts of a kind have, from (kind, text) pairs: what a template says.

    A kind with fewer than 8 texts tells nothing. For `NearIndex(wording=...)`.
    """
    kinds: dict[str, list[str]] = {}
    for kind, text in texts:
        kinds.setdefault(kind, []).append(text)
    found = [np.empty(0, dtype=np.uint64)]
    for own in kinds.values():
        if len(own) < _TELLING:
            continue
        shingles, offsets = ngrams(*hashed(own, tokens, least=SHINGLE), SHINGLE)
        each = [np.unique(shingles[a:b]) for a, b in pairwise(offsets.tolist())]
        distinct, counts = np.unique(np.concatenate(each), return_counts=True)
        found.append(distinct[counts > len(own) / 2])
    return np.unique(np.concatenate(found))


class _Kept:
    """The shingles of the kept texts, in blocks: as a million objects of their own they would lie scattered
    among all that comes and goes, and that memory could not be used again."""

    def __init__(self) -> None:
        self._blocks: list[bytearray | bytes] = [bytearray()]
        self._block, self._start, self._end, self._answer = (array("i") for _ in range(4))

    def __len__(self) -> int:
        return len(self._block)

    def append(self, shingles: bytes, answer: int) -> None:
        """The last `answer` bytes are those of the text's answer."""
        block = self._blocks[-1]
        if len(block) >= _BLOCK or isinstance(block, bytes):
            self._blocks[-1] = bytes(block)
            block = bytearray()
            self._blocks.append(block)
        self._block.append(len(self._blocks) - 1)
        self._start.append(len(block))
        block += shingles
        self._end.append(len(block))
        self._answer.append(len(block) - answer)

    def whole(self, text: int) -> bytes:
        return bytes(self._blocks[self._block[text]][self._start[text] : self._end[text]])

    def answer(self, text: int) -> bytes:
        return bytes(self._blocks[self._block[text]][self._answer[text] : self._end[text]])


def _alike(one: bytes, other: bytes, least: float) -> bool:
    own, its = _as_set(one), _as_set(other)
    return len(own & its) >= least * len(own | its)


def _packed(shingles: Hashes) -> bytes:
    """48 bits of each, as they are kept and compared."""
    packed = np.empty(len(shingles), dtype=_PACKED)
    packed["low"], packed["high"] = shingles, shingles >> np.uint64(32)
    return packed.tobytes()


def _as_set(shingles: bytes) -> frozenset[bytes]:
    return frozenset(np.frombuffer(shingles, dtype=f"V{_PACKED.itemsize}").tolist())


def _most_named(sharing: list[int]) -> Iterable[int]:
    distinct = set(sharing)
    if len(distinct) <= _MEASURED:
        return distinct
    named = Counter(sharing)
    return sorted(distinct, key=lambda text: (-named[text], text))[:_MEASURED]
