"""Marking while a model writes: what a key does to the logits of the next token.

A token is marked once its answer holds the scheme's whole context, so a mark depends on the answer alone and
is there to be found by whoever has nothing else. Gumbel and tournament leave a token to plain sampling where
the answer had the same context before: the same draw again would repeat itself, and with it the text would
drift from the model's own distribution (Dathathri et al. 2024, supplement G.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stillhouse.watermark.hashing import FIRST, GOLDEN, SECOND, siphash
from stillhouse.watermark.keys import Key
from stillhouse.watermark.schemes import Kgw, Tournament

_SIGN = -(1 << 63)


@dataclass(slots=True)
class Mark:
    """One answer under way that is marked with `key`; `seen` are the contexts that it had."""

    key: Key
    seen: set[tuple[int, ...]] = field(default_factory=set)

    def context(self, answer: Sequence[int]) -> tuple[int, ...] | None:
        """The last ids of the answer; None where the next token is not to be marked."""
        width = self.key.scheme.width
        if len(answer) < width:
            return None
        found = tuple(answer[-width:])
        if isinstance(self.key.scheme, Kgw):
            return found
        if found in self.seen:
            return None
        self.seen.add(found)
        return found


def marked(logits: Any, marks: Sequence[Mark], answers: Sequence[Sequence[int]]) -> Any:
    """The logits to sample from, (rows, vocabulary), given those after temperature and nucleus.

    What has no probability (minus infinity) gets none; under Gumbel one token has all of it. `answers` are
    the ids that each row has written.
    """
    found = [mark.context(answer) for mark, answer in zip(marks, answers, strict=True)]
    result = logits.clone()
    for key in {mark.key for mark in marks}:
        rows = [at for at, mark in enumerate(marks) if mark.key == key and found[at] is not None]
        if rows:
            contexts = np.array([found[at] for at in rows], dtype=np.int64)
            result[rows] = _marked(key, contexts, logits[rows])
    return result


def _marked(key: Key, contexts: Any, logits: Any) -> Any:
    scheme = key.scheme
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    if isinstance(scheme, Kgw):
        return torch.where(_green(scheme, key, contexts, tokens), logits + scheme.bias, logits)
    values = _values(_seeds(key, contexts.T, logits.device), tokens)
    if isinstance(scheme, Tournament):
        return _won(logits, values, scheme.depth)
    noise = -torch.log(-torch.log(_uniform(values)))
    best = (logits + noise.to(logits.dtype)).argmax(dim=-1, keepdim=True)
    return torch.full_like(logits, -torch.inf).scatter_(1, best, 0.0)


def _green(scheme: Kgw, key: Key, contexts: Any, tokens: Any) -> Any:
    """Which ids are green after each context: (rows, vocabulary)."""
    if not scheme.self_hash:
        return _uniform(_values(_seeds(key, contexts.T, tokens.device), tokens)) < scheme.share
    lowest = None
    for column in contexts.T:
        values = _values(_seeds(key, [column], tokens.device), tokens) ^ _SIGN  # to compare as unsigned
        lowest = values if lowest is None else torch.minimum(lowest, values)
    assert lowest is not None
    return _uniform(_mixed((lowest ^ _SIGN) + _signed(GOLDEN))) < scheme.share


def _won(logits: Any, values: Any, depth: int) -> Any:
    """Logits after a tournament of `depth` rounds between two draws each: who has the round's bit wins over
    who has not. A round turns p into p (1 + bit - chance of the bit)."""
    shares = torch.softmax(logits, dim=-1)
    for place in range(depth):
        bit = _shifted(values, 63 - place) & 1
        chance = (bit * shares).sum(dim=-1, keepdim=True)
        chance = chance.clamp(max=1)  # more by rounding, where all have the bit
        shares = shares * (1 + bit - chance)
    return torch.log(shares)


def _seeds(key: Key, words: Sequence[Any], device: Any) -> Any:
    """The keyed hash of each row's words, (rows,), in the bits of int64: torch cannot reckon in uint64."""
    hashed = siphash(key.sip, [np.asarray(word).astype(np.uint64) for word in words])
    return torch.from_numpy(hashed.view(np.int64)).to(device)


def _values(seeds: Any, tokens: Any) -> Any:
    """`hashing.values` in the bits of int64: (rows,), (vocabulary,) -> (rows, vocabulary)."""
    return _mixed(seeds[:, None] + (tokens + 1) * _signed(GOLDEN))


def _mixed(z: Any) -> Any:
    z = (z ^ _shifted(z, 30)) * _signed(FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND)
    return z ^ _shifted(z, 31)


def _uniform(values: Any) -> Any:
    """`hashing.uniform`, which MPS knows in single precision only."""
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    return (_shifted(values, 12).to(dtype) + 0.5) * 2.0**-52


def _shifted(z: Any, by: int) -> Any:
    """To the right, with zeros coming in."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


class Marking:
    """Marks what `transformers` generates: `model.generate(..., watermarking_config=Marking(key))`.

    Placed there it acts after temperature and nucleus, as it must. One object serves many calls.
    """

    def __init__(self, key: Key) -> None:
        self.key = key

    def validate(self) -> None:
        """Asked for by `transformers`; a key was checked when it was read."""

    def construct_processor(self, vocab_size: int, device: Any) -> Processor:
        """A processor for one call of `generate`."""
        return Processor(self.key)


class Processor:
    """A logits processor of `transformers` for one batch of answers, which begin where it is first called."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.marks: list[Mark] = []
        self.begin = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The scores to sample from: (rows, vocabulary)."""
        if not self.marks:
            self.begin = input_ids.shape[1]
            self.marks = [Mark(self.key) for _ in input_ids]
        return marked(scores, self.marks, input_ids[:, self.begin :].tolist())
