"""How often text without a mark is called marked, over windows and keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from rows import Row
from transformers import WatermarkDetector, WatermarkingConfig
from watermark_texts import DESK, KINDS, WINDOW, windows, word_windows

from stillhouse.watermark import Gumbel, Key, Kgw, Scheme, Selection, Tournament
from stillhouse.watermark.hashing import Hashes, Ids

LEVELS = (1e-2, 1e-3, 1e-4)
SCHEMES: tuple[Scheme, ...] = (Kgw(), Kgw(self_hash=True), Gumbel(), Tournament(), Selection())
THEIR_WINDOWS, THEIR_KEYS = 100, 40  # transformers' detector goes through a text token by token

Marks = NDArray[np.bool_]


def rows(count: int, keys: Sequence[Key]) -> list[Row]:
    """Rates for every kind of text and scheme, at each level."""
    found = []
    for kind in KINDS:
        texts, words = windows(kind, count), word_windows(kind, count)
        for scheme in SCHEMES:
            tested = Tested(scheme, words if isinstance(scheme, Selection) else texts)
            totals = [tested.totals(key) for key in keys]
            name = f"{label(scheme)} on {kind} text"
            for level in LEVELS:
                calls = np.array([tested.calls(*each, level) for each in totals])
                found.append(rate(f"false positives of {name} at p <= {level:g}", calls, level))
                if isinstance(scheme, Kgw):
                    size = np.mean([tested.size(counts, level) for _, counts in totals[:20]])
                    found.append(
                        Row(f"  what its whole counts allow at {level:g}", float(size), "of windows")
                    )
            if isinstance(scheme, Gumbel):
                at = np.array([tested.calls(*each, LEVELS[0]) for each in totals])
                found += [
                    Row(
                        f"  the worst of {len(keys)} keys at {LEVELS[0]:g}",
                        float(at.mean(axis=1).max()),
                        "of windows",
                    ),
                    repeated(f"  with every repetition counted at {LEVELS[0]:g}", tested, keys),
                ]
    return found


def label(scheme: Scheme) -> str:
    return "kgw, self-hashed" if isinstance(scheme, Kgw) and scheme.self_hash else scheme.name


class Tested:
    """Windows under one scheme: their scores' sums and how many distinct pairs they are of, for any key."""

    def __init__(self, scheme: Scheme, texts: Sequence[Ids]) -> None:
        self.scheme, self.count, self.ids = scheme, len(texts), np.concatenate(texts)
        places = np.arange(scheme.width, len(self.ids))
        self.within = places % WINDOW >= scheme.width  # the context lies in the same window
        self.window = (places // WINDOW)[self.within]
        self.lasting = isinstance(scheme, Kgw) and scheme.self_hash
        self.kept: Marks | None = None

    def bits(self, key: Key) -> Hashes:
        return self.scheme.bits(key.sip, self.ids, self.ids[self.scheme.width :])[self.within]

    def totals(self, key: Key) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        bits = self.bits(key)
        if self.kept is None or self.lasting:  # which pairs are equal depends on the key only if self-hashed
            self.kept = firsts(self.window, bits)
        window, scores = self.window[self.kept], self.scheme.scores(bits[self.kept])
        return np.bincount(window, scores, self.count), np.bincount(window, minlength=self.count)

    def calls(self, totals: NDArray[np.float64], counts: NDArray[np.intp], level: float) -> Marks:
        least = np.array([critical(self.scheme, int(count), level) for count in counts])
        found: Marks = totals >= least
        return found

    def size(self, counts: NDArray[np.intp], level: float) -> float:
        """The chance that a window's p-value is at or below the level: the mean over windows."""
        return float(np.mean([exact(self.scheme, int(count), level) for count in counts]))


def firsts(window: NDArray[np.intp], bits: Hashes) -> Marks:
    """One of each set of equal bits in a window."""
    order = np.lexsort((bits, window))
    same = (bits[order][1:] == bits[order][:-1]) & (window[order][1:] == window[order][:-1])
    found = np.ones(len(bits), dtype=bool)
    found[order[1:][same]] = False
    return found


@cache
def critical(scheme: Scheme, count: int, level: float) -> float:
    """The least sum whose p-value is at or below the level; whole but for Gumbel's scores."""
    whole = isinstance(scheme, Kgw | Tournament)
    low, high = 0.0, float(math.ceil(max(4.0, scheme.expected() * count)))
    while scheme.log_p(high, count) > math.log(level):
        low, high = high, 2 * high
    while high - low > (1 if whole else 1e-6):
        middle = (low + high) // 2 if whole else (low + high) / 2
        low, high = (low, middle) if scheme.log_p(middle, count) <= math.log(level) else (middle, high)
    return high


@cache
def exact(scheme: Scheme, count: int, level: float) -> float:
    """The chance of a p-value at or below the level."""
    return math.exp(scheme.log_p(critical(scheme, count, level), count))


def rate(what: str, calls: Marks, level: float) -> Row:
    """The share of (key, window) pairs; errors clustered by both (Cameron, Gelbach and Miller 2011)."""
    value = float(calls.mean())
    off = calls - value
    by_key = _clustered(off.sum(axis=1), calls.size)
    by_window = _clustered(off.sum(axis=0), calls.size)
    alone = float((off**2).sum()) / calls.size**2
    error = math.sqrt(max(by_key + by_window - alone, by_key, by_window, alone))
    high = value + 1.96 * error
    enough = level * calls.size >= 20
    return Row(
        what,
        value,
        "of windows x keys",
        max(0.0, value - 1.96 * error),
        high,
        target=f"upper end <= {2 * level:g}" if enough else None,
        holds=high <= 2 * level if enough else None,
    )


def _clustered(sums: NDArray[np.float64], cells: int) -> float:
    return len(sums) / (len(sums) - 1) * float(sums @ sums) / cells**2


def repeated(what: str, tested: Tested, keys: Sequence[Key]) -> Row:
    """What the same test gives where a pair counts as often as it occurs."""
    counts = np.bincount(tested.window, minlength=tested.count)
    sums = [np.bincount(tested.window, tested.scheme.scores(tested.bits(key)), tested.count) for key in keys]
    return rate(what, np.array([tested.calls(total, counts, LEVELS[0]) for total in sums]), 0.0)


def described(vocabulary: int) -> SimpleNamespace:
    """A model's configuration as their detector reads it: no text begins with such an opening token, which
    would be left out."""
    return SimpleNamespace(vocab_size=vocabulary, bos_token_id=-1, is_encoder_decoder=False)


def theirs(count: int, keys: Sequence[Key]) -> list[Row]:
    """transformers' detector for KGW and ours, one token of context, on the same templated windows."""
    texts, level = windows("templated", min(count, THEIR_WINDOWS), DESK), LEVELS[0]
    keys = keys[:THEIR_KEYS]
    config = described(768)
    batch = torch.from_numpy(np.stack(texts))
    ours = Tested(Kgw(width=1), texts)
    own = np.array([ours.calls(*ours.totals(key), level) for key in keys])
    found = []
    for once in (False, True):
        called = []
        for key in keys:
            marking = WatermarkingConfig(greenlist_ratio=0.25, hashing_key=key.sip[0] >> 32)
            detector = WatermarkDetector(config, "cpu", marking, once, max_cache_size=100_000)
            called.append(detector(batch, return_dict=True).p_value <= level)
        row = rate("", own, level)
        peer = float(np.mean(called))
        how = "each pair once" if once else "its default"
        what = f"kgw with one token of context, templated text at p <= {level:g}"
        found.append(
            Row(
                what,
                row.value,
                row.unit,
                row.low,
                row.high,
                f"transformers, {how}",
                peer,
                (row.value or 0) / peer,
            )
        )
    return found
