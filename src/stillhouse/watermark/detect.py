"""Is a text marked with a key? Pure functions from ids and a key to evidence.

The p-value says how often a key drawn at random would score this text as high, if the text was written
without it. It is not the chance that the text is unmarked, and a large one is no proof of anything: a short,
edited or translated text loses its mark.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.stats import holm
from stillhouse.text import words
from stillhouse.watermark.hashing import Hashes, Ids, SipKey, seeds
from stillhouse.watermark.keys import Key
from stillhouse.watermark.schemes import Scheme


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of `tokens` read, `scored` distinct pairs of context and token had this mean score; `expected` is the
    mean without the key. `log_p` is the natural logarithm of the p-value."""

    tokens: int
    scored: int
    mean: float | None
    expected: float
    log_p: float

    @property
    def p(self) -> float:
        """0.0 below the smallest float."""
        return math.exp(self.log_p)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a text, ids [start, end); `adjusted` is its p-value as one of several (Holm)."""

    start: int
    end: int
    evidence: Evidence
    adjusted: float


def evidence(scheme: Scheme, key: SipKey, texts: Sequence[Ids], served: Hashes | None = None) -> Evidence:
    """What all texts together say; a pair that occurs in several of them counts once.

    With `served`, from `contexts` of answers that were marked with the key, only tokens after these contexts
    are scored: that leaves out what cannot bear the mark. It keeps the p-value right, as which contexts are
    looked at does not depend on what follows them. With `Selection` it does: an answer was given because of
    what follows its contexts, and whoever says the same there would seem to bear the mark.

    Raises ValueError for `served` with that scheme.
    """
    refuse_selected(scheme, served)
    ids, kept = _joined(texts, scheme.width)
    if served is not None:
        kept &= np.isin(seeds(key, ids, scheme.width), served)
    return judged(scheme, scheme.bits(key, ids, ids[scheme.width :])[kept], len(ids))


def refuse_selected(scheme: Scheme, served: Hashes | None) -> None:
    """Raises ValueError where what was served would make p-values too small."""
    if served is not None and scheme.name == "selection":
        raise ValueError("which answers were selected depends on what follows their contexts")


def contexts(scheme: Scheme, key: SipKey, texts: Sequence[Ids]) -> Hashes:
    """The contexts of the texts, as hashes under the key: (distinct contexts,)."""
    ids, kept = _joined(texts, scheme.width)
    return np.unique(seeds(key, ids, scheme.width)[kept])


def judged(scheme: Scheme, bits: Hashes, tokens: int) -> Evidence:
    """The evidence of these bits, equal ones counted once, out of so many tokens."""
    scores = scheme.scores(np.unique(bits))
    count, total = len(scores), float(scores.sum())
    log_p = scheme.log_p(total, count) if count else 0.0
    return Evidence(tokens, count, total / count if count else None, scheme.expected(), log_p)


def parts(scheme: Scheme, key: SipKey, ids: Ids, size: int) -> list[Part]:
    """Stretches of `size` ids, each half over the one before, to tell where a mark is."""
    starts = range(0, max(len(ids) - size // 2, 1), max(size // 2, 1))
    found = [(start, evidence(scheme, key, [ids[start : start + size]])) for start in starts]
    adjusted = holm([one.p for _, one in found])
    return [
        Part(start, min(start + size, len(ids)), one, p if p is not None else 1.0)
        for (start, one), p in zip(found, adjusted, strict=True)
    ]


def among_keys(keys: Sequence[Key], texts: Sequence[Sequence[Ids]]) -> list[tuple[Key, Evidence, float]]:
    """Evidence for each of several keys, with p-values that bear having tried them all (Holm); the strongest
    first. `texts` holds for each key the texts as ids of its scheme."""
    found = [(key, evidence(key.scheme, key.sip, some)) for key, some in zip(keys, texts, strict=True)]
    adjusted = holm([one.p for _, one in found])
    rows = [(key, one, p if p is not None else 1.0) for (key, one), p in zip(found, adjusted, strict=True)]
    return sorted(rows, key=lambda row: row[1].log_p)


def _joined(texts: Sequence[Ids], width: int) -> tuple[Ids, NDArray[np.bool_]]:
    """All texts as one, since many short arrays take long to hash, and for each place from `width` on whether
    its context lies in its own text."""
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *texts])
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return ids, (np.arange(len(ids)) - starts >= width)[width:]


def word_ids(text: str) -> Ids:
    """An id for each of the text's words, the same one everywhere; case and punctuation do not matter."""
    hashed = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words(text)]
    found: NDArray[np.int64] = np.frombuffer(b"".join(hashed), dtype="<i8").astype(np.int64)
    return found
