"""Sketches of texts that two houses can compare, and neither can read.

A sketch is a MinHash with one permutation (Li, Owen and Zhang 2012, https://arxiv.org/abs/1208.1259): every
run of `RUN` words has a hash of 64 bits, which names one of `SLOTS` slots and a value, and a slot keeps the
least value. Equal slots estimate the Jaccard similarity of two sets of runs. It stays in the house.

What travels is a copy of it under one recipient's salt: each slot becomes 16 bits of HMAC-SHA256 over the
slot's number and value. Whoever has the salt can key sketches of its own and compare, and can test guesses:
so few bits (b-bit minwise hashing, Li and König 2010, https://arxiv.org/abs/0910.3349) make one wrong guess
of a run in 65,536 look right. Copies under different salts have no more in common than chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from hmac import digest as hmac_digest

from stillhouse.text import words

SLOTS = 128
RUN = 5  # words
FEWEST = 96  # filled slots of a sketch that may travel: of some 180 runs or more
EMPTY = -1

Sketch = tuple[int, ...]  # SLOTS values below 2**57, EMPTY where no run fell
Keyed = tuple[int, ...]  # SLOTS values below 2**16, EMPTY likewise

_LABEL = b"signal sketch 1"  # sets these hashes apart from all others


def sketch_of(texts: Iterable[str]) -> Sketch:
    """The sketch of all runs of words in these texts, each read alone."""
    return joined(_of(text) for text in texts)


def joined(sketches: Iterable[Sequence[int]]) -> Sketch:
    """The sketch of all texts that these are of."""
    slots = [EMPTY] * SLOTS
    for sketch in sketches:
        for n, value in enumerate(sketch):
            if value != EMPTY and (slots[n] == EMPTY or value < slots[n]):
                slots[n] = value
    return tuple(slots)


def keyed(salt: bytes, sketch: Sequence[int]) -> Keyed:
    """What a sketch comes to under a recipient's salt."""
    return tuple(
        EMPTY if value == EMPTY else int.from_bytes(hmac_digest(salt, b"%d %d" % (n, value), "sha256")[:2])
        for n, value in enumerate(sketch)
    )


def filled(sketch: Sequence[int]) -> int:
    return sum(value != EMPTY for value in sketch)


def equal(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """How many slots hold the same, of how many that are filled in either."""
    same = sum(a == b != EMPTY for a, b in zip(one, other, strict=True))
    either = sum(not a == b == EMPTY for a, b in zip(one, other, strict=True))
    return same, either


def _of(text: str) -> Sketch:
    found = words(text)
    slots = [EMPTY] * SLOTS
    for start in range(len(found) - RUN + 1):
        run = " ".join(found[start : start + RUN]).encode(errors="surrogatepass")
        value, n = divmod(int.from_bytes(blake2b(run, digest_size=8, person=_LABEL).digest()), SLOTS)
        if slots[n] == EMPTY or value < slots[n]:
            slots[n] = value
    return tuple(slots)
