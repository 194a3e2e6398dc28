"""Contamination: words in a row that a text has in common with a set of texts (the evaluation prompts).

Words are compared without case, white space and punctuation, as in GPT-3's decontamination (Brown et al.
2020, arXiv:2005.14165, appendix C), where 13 words in a row are held to be no accident; the share of a
text's 8-grams that the set holds catches texts that were edited here and there. A paraphrase passes both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.similar.hashes import Hashes, Offsets, Texts, batches, hashed, ngrams
from stillhouse.text import placed_words, words

LONG = 13  # words in a row that are held to be copied
SHORT = 8  # words in a row of which the share is measured
_AT_ONCE = 1 << 20  # n-grams of texts of the set that are counted together, but for those of a single row

Places = NDArray[np.int64]
Run = tuple[int, int, int]  # its first word in the text, its number of words, its first word in the set


@dataclass(frozen=True, slots=True)
class Span:
    """`words` words in a row, which text `reference` of the set has too; [start, end) are characters."""

    start: int
    end: int
    words: int
    reference: int
    reference_start: int
    reference_end: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """What row `row` has in common with the set.

    `ratio` is the share of its 8-grams that the set holds, None where it has fewer than 8 words: nothing
    can be said then. `spans`, by start, hold each of these 8-grams and each 13-gram that the set has too;
    they may overlap where the row follows first one text of the set and then another.
    """

    row: int
    ratio: float | None
    spans: tuple[Span, ...] = ()

    @property
    def copied(self) -> bool:
        """13 words in a row or more stand in one text of the set."""
        return any(span.words >= LONG for span in self.spans)


class NgramIndex:
    """The 8-grams and 13-grams of a set of texts. It keeps the texts and about 40 bytes for each word.

    `too_short` names the texts with fewer than 8 words, which no n-gram finds (a duplicate check does). With
    `common`, 8-grams that stand in more than this share of the texts (and in more than 2) do not count in any
    ratio: what a template says in all of them shows nothing about one.
    """

    def __init__(self, texts: Iterable[str], common: float | None = None) -> None:
        self._texts = list(texts)
        self._words, self._offsets = hashed(self._texts, words)
        self._long = _Ngrams(self._words, self._offsets, LONG)
        self._short = _Ngrams(self._words, self._offsets, SHORT)
        self.too_short = tuple(np.flatnonzero(np.diff(self._offsets) < SHORT).tolist())
        self._wording = np.empty(0, dtype=np.uint64)
        grams, starts = ngrams(self._words, self._offsets, SHORT)
        if common is not None:
            self._wording = _common(grams, starts, max(2.0, common * len(self._texts)))
        self._totals = _sums(np.isin(grams, self._wording, invert=True), starts)

    def __len__(self) -> int:
        return len(self._texts)

    def overlaps(self, rows: Iterable[str]) -> Iterator[Overlap]:
        """One for each row, in order. Where several texts of the set hold a stretch the first is named."""
        row = 0
        for batch in batches(rows):
            own, offsets = hashed(batch, words)
            grams, starts = ngrams(own, offsets, SHORT)
            bounds = offsets.tolist()
            known = self._short.find(grams) >= 0
            for place, (ratio, hits) in enumerate(self._shares(known, grams, starts)):
                spans: tuple[Span, ...] = ()
                if hits:
                    spans = self._spans(batch[place], own[bounds[place] : bounds[place + 1]])
                yield Overlap(row, ratio, spans)
                row += 1

    def ratios(self, rows: Texts) -> list[float | None]:
        """For each row the greater of two shares: of its 8-grams those that the set holds, and of the 8-grams
        of one text of the set those that it holds. So a text is seen in a longer row, and a part of it too.

        None where the row has fewer than 8 words, or none but common ones.
        """
        grams, starts = ngrams(*hashed(rows, words), SHORT)
        places = self._short.find(grams)
        own = [ratio for ratio, _ in self._shares(places >= 0, grams, starts)]
        hit = (places >= 0) & np.isin(grams, self._wording, invert=True)
        row_of = np.repeat(np.arange(len(own), dtype=np.uint64), np.diff(starts))[hit]
        said = np.unique(np.stack((row_of, grams[hit])), axis=1)  # a row may say one 8-gram twice
        best = np.zeros(len(own))
        for row, text, times in self._short.in_texts(*said):
            np.maximum.at(best, row, times / np.array(self._totals)[text])
        return [
            None if ratio is None else max(ratio, theirs)
            for ratio, theirs in zip(own, best.tolist(), strict=True)
        ]

    def _shares(
        self, known: NDArray[np.bool_], grams: Hashes, starts: Offsets
    ) -> Iterator[tuple[float | None, int]]:
        """Of each text the share of its 8-grams that are known, common ones aside, and how many are known."""
        counted = np.isin(grams, self._wording, invert=True)
        hits, all_hits, totals = (_sums(flags, starts) for flags in (known & counted, known, counted))
        for hit, every, total in zip(hits, all_hits, totals, strict=True):
            yield (hit / total if total else None), every

    def covered(self, rows: Iterable[str]) -> list[float | None]:
        """For each text of the set the share of its 8-grams that the rows hold; None if it is too short."""
        coverage = Coverage(self)
        for batch in batches(rows):
            coverage.add(batch)
        return coverage.shares()

    def _spans(self, text: str, own: Hashes) -> tuple[Span, ...]:
        long = self._runs(own, self._long, [])
        runs = sorted(long + self._runs(own, self._short, long))
        texts = np.searchsorted(self._offsets, [at for _, _, at in runs], side="right") - 1
        here = list(placed_words(text))
        there = {of: list(placed_words(self._texts[of])) for of in set(texts.tolist())}
        return tuple(
            Span(
                start=here[first][0],
                end=here[first + length - 1][1],
                words=length,
                reference=of,
                reference_start=there[of][at][0],
                reference_end=there[of][at + length - 1][1],
            )
            for (first, length, place), of in zip(runs, texts.tolist(), strict=True)
            for at in (place - int(self._offsets[of]),)
        )

    def _runs(self, own: Hashes, known: _Ngrams, held: list[Run]) -> list[Run]:
        """Common stretches, as long as they go: a known n-gram of the text is in one of them or of `held`."""
        reach = np.zeros(len(own) + 1, dtype=np.int64)
        for first, length, _ in held:
            reach[first] = first + length
        reach = np.maximum.accumulate(reach)
        places = known.find(ngrams(own, np.array([0, len(own)]), known.n)[0])
        runs: list[Run] = []
        todo = 0
        for first in np.flatnonzero(places >= 0).tolist():
            if first >= todo and reach[first] < first + known.n:
                at = int(places[first])
                length = self._common(own, first, at)
                if length >= known.n:  # or two n-grams share a hash
                    runs.append((first, length, at))
                    todo = first + length - known.n + 1
        return runs

    def _common(self, own: Hashes, first: int, at: int) -> int:
        """How many words from own[first] on equal those of the set from its word `at` on, within one text."""
        end = int(self._offsets[np.searchsorted(self._offsets, at, side="right")])
        limit = min(len(own) - first, end - at)
        length, step = 0, 64
        while length < limit:
            stop = min(length + step, limit)
            differ = np.flatnonzero(
                own[first + length : first + stop] != self._words[at + length : at + stop]
            )
            if differ.size:
                return length + int(differ[0])
            length, step = stop, 2 * step
        return length


class Coverage:
    """The other direction: how much of a set rows hold that come little by little."""

    def __init__(self, index: NgramIndex) -> None:
        self._index = index
        self._seen = np.zeros(len(index._words), dtype=np.bool_)  # by the first place of an 8-gram in the set

    def add(self, rows: Texts) -> None:
        places = self._index._short.find(ngrams(*hashed(rows, words), SHORT)[0])
        self._seen[places[places >= 0]] = True

    def shares(self) -> list[float | None]:
        """For each text of the set the share of its 8-grams that the rows hold; None if it is too short."""
        index = self._index
        grams, starts = ngrams(index._words, index._offsets, SHORT)
        seen = self._seen[index._short.find(grams)]
        return [ratio for ratio, _ in index._shares(seen, grams, starts)]

    def words(self) -> tuple[int, int]:
        """How many words of the set stand in an 8-gram that the rows hold, and how many it has."""
        index = self._index
        grams, starts = ngrams(index._words, index._offsets, SHORT)
        hit = self._seen[index._short.find(grams)] & np.isin(grams, index._wording, invert=True)
        firsts = (np.arange(len(grams)) + np.repeat(index._offsets[:-1] - starts[:-1], np.diff(starts)))[hit]
        covered = np.zeros(len(index._words), dtype=np.bool_)
        for place in range(SHORT):
            covered[firsts + place] = True
        return int(covered.sum()), len(covered)


def _common(grams: Hashes, starts: Offsets, most: float) -> Hashes:
    """The n-grams that stand in more than so many texts, sorted."""
    texts = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((texts, grams))
    grams, texts = grams[order], texts[order]
    fresh = np.ones(len(grams), dtype=np.bool_)
    fresh[1:] = (grams[1:] != grams[:-1]) | (texts[1:] != texts[:-1])
    distinct, counts = np.unique(grams[fresh], return_counts=True)
    return distinct[counts > most]


class _Ngrams:
    """Where each n-gram stands."""

    def __init__(self, pieces: Hashes, offsets: Offsets, n: int) -> None:
        self.n = n
        grams, starts = ngrams(pieces, offsets, n)
        places = np.arange(len(grams)) + np.repeat(offsets[:-1] - starts[:-1], np.diff(starts))
        self._grams, first = np.unique(grams, return_index=True)
        self._places: Places = places[first]
        texts = np.repeat(np.arange(len(offsets) - 1), np.diff(starts))
        order = np.argsort(grams, kind="stable")
        grams, texts = grams[order], texts[order]
        new = np.ones(len(grams), dtype=np.bool_)
        new[1:] = (grams[1:] != grams[:-1]) | (texts[1:] != texts[:-1])
        fresh = np.flatnonzero(new)
        self._texts = texts[fresh]  # that have an n-gram, for each in turn,
        self._times = np.diff(np.append(fresh, len(grams)))  # and how often
        self._bounds = np.append(np.searchsorted(grams[fresh], self._grams), len(fresh))

    def find(self, grams: Hashes) -> Places:
        """The first place of each n-gram, as the number of its first word; -1 where there is none."""
        if not len(self._grams):
            return np.full(len(grams), -1)
        at = np.minimum(np.searchsorted(self._grams, grams), len(self._grams) - 1)
        return np.where(self._grams[at] == grams, self._places[at], -1)

    def in_texts(self, rows: Places, grams: Hashes) -> Iterator[tuple[Places, Places, Places]]:
        """For rows[i] that says grams[i], each once and all of them there, rows in order: arrays of row, text
        of the set and how many n-grams of that text the row says. A row comes with all its texts at once."""
        at = np.searchsorted(self._grams, grams)
        firsts, counts = self._bounds[at], np.diff(self._bounds)[at]
        ends = np.cumsum(counts)
        start = 0
        while start < len(rows):
            stop = int(np.searchsorted(ends, ends[start] + _AT_ONCE, side="right"))
            stop = int(np.searchsorted(rows, rows[max(stop, start + 1) - 1], side="right"))
            part = slice(start, stop)
            which = np.repeat(np.arange(start, stop), counts[part])
            before = ends[part] - counts[part] - (ends[start] - counts[start])
            place = np.repeat(firsts[part] - before, counts[part]) + np.arange(len(which))
            pairs = np.stack((rows[which].astype(np.int64), self._texts[place]))
            distinct, code = np.unique(pairs, axis=1, return_inverse=True)
            yield distinct[0], distinct[1], np.bincount(code.ravel(), self._times[place]).astype(np.int64)
            start = stop


def _sums(flags: NDArray[np.bool_], starts: Offsets) -> list[int]:
    """For each text how many of its flags are set."""
    found: list[int] = np.diff(np.concatenate(([0], np.cumsum(flags)))[starts]).tolist()
    return found
