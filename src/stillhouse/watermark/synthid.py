"""Marks that `transformers` made by SynthID (`SynthIDTextWatermarkLogitsProcessor`): found without torch,
and with an exact p-value, which its own detectors do not give.

Its hash takes from a stretch of `ngram_len` tokens no more than its place in a table of zeros and ones, to
which each key adds an offset. So over keys drawn at random the ones that a text finds at one depth are a
count in a shifted table, whose law is known for the text at hand: no two stretches need be independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.stats.tails import log_repeated_tail
from stillhouse.watermark.detect import Evidence
from stillhouse.watermark.hashing import Hashes, Ids

_FACTOR = np.uint64(6364136223846793005)  # of the linear congruence that `transformers` hashes by


@dataclass(frozen=True, slots=True)
class SynthId:
    """As `SynthIDTextWatermarkingConfig`, with a table made on a CPU, whose size is a power of two."""

    keys: tuple[int, ...]
    ngram_len: int = 5
    sampling_table_size: int = 1 << 16
    sampling_table_seed: int = 0

    def table(self) -> NDArray[np.int64]:
        """By place before the offset's last step of the hash: torch and numpy draw the same words."""
        size = self.sampling_table_size
        if size & (size - 1):
            raise ValueError(f"{size} is not a power of two")
        draw = np.random.RandomState(self.sampling_table_seed)
        drawn = draw.randint(0, 1 << 32, size, dtype=np.uint32) & 1
        places = (np.arange(size, dtype=np.uint64) * _FACTOR + np.uint64(1)) % np.uint64(size)
        return drawn[places.astype(np.intp)].astype(np.int64)


def places(mark: SynthId, texts: Sequence[Ids]) -> Hashes:
    """The place of each distinct stretch of the texts, before offsets: (distinct stretches,)."""
    width = mark.ngram_len
    found = [np.lib.stride_tricks.sliding_window_view(ids, width) for ids in texts if len(ids) >= width]
    stretches = np.unique(np.concatenate([np.zeros((0, width), dtype=np.int64), *found]), axis=0)
    hashed = np.ones(len(stretches), dtype=np.uint64)
    for column in stretches.T.astype(np.uint64):
        hashed = (hashed + column) * _FACTOR + np.uint64(1)
    found_places: Hashes = hashed % np.uint64(mark.sampling_table_size)
    return found_places


def heard(mark: SynthId, texts: Sequence[Ids]) -> Evidence:
    """What all texts together say: the mean of the ones found at every depth, as SynthID's mean score."""
    at, table, size = places(mark, texts), mark.table(), mark.sampling_table_size
    tokens, depth = sum(map(len, texts)), len(mark.keys)
    if not len(at):
        return Evidence(tokens, 0, None, float(table.mean()), 0.0)
    counts = np.bincount(at.astype(np.intp), minlength=size)
    # For every offset the ones that the stretches find: a circular correlation with the table.
    ones = np.fft.irfft(np.conj(np.fft.rfft(counts)) * np.fft.rfft(table), size)
    by_offset = np.rint(ones).astype(np.int64)
    total = int(sum(by_offset[key % size] for key in mark.keys))
    law = np.bincount(by_offset) / size
    log_p = log_repeated_tail(total, law, depth)
    return Evidence(tokens, len(at), total / (len(at) * depth), float(table.mean()), log_p)
