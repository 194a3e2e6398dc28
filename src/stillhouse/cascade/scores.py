"""How likely a student's answer is to cost something: signals from what any OpenAI-compatible server tells,
and a small logistic model over them.

Nothing here needs the text to leave the machine. How far a prompt lies from the training prompts is read off
a sketch of them, which holds hashes of words and of pairs of words and no text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from stillhouse.stats import Floats
from stillhouse.text import tokens as pieces_of

TOP = 5  # likeliest tokens that a student is asked to tell
FAINTEST = -50.0  # nats; servers write -9999 for "very unlikely"
_ROOM = 16  # bits of a sketch for each hash in it: about 6 % of unknown ones seem known
_STEPS = 50

RIDGE: Mapping[str, float] = MappingProxyType(
    {
        "mean surprise": 1.0,
        "greatest surprise": 1.0,
        "mean entropy": 1.0,
        "greatest entropy": 1.0,
        "least margin": 1.0,
        "length": 1.0,
        "cut short": 10.0,
        "broken form": 10.0,
        "unfamiliar words": 10.0,
        "unfamiliar pairs": 10.0,
        "draws that differ": 1.0,
    }
)
"""The signals in the order of `signals_of`, each with the penalty on its standardised weight, in rows: those
that are the same for most answers are told from chance by few rows.

Surprise is -log of a token's probability; surprise and entropy enter by their logarithms (nats), since they
span decades, margins in nats as they are."""
SIGNALS = tuple(RIDGE)


class Token(NamedTuple):
    """A token that a student wrote: the log of its probability and of the likeliest ones at its place."""

    logprob: float
    top: tuple[float, ...]


def tokens_told(choice: Mapping[str, Any]) -> tuple[Token, ...] | None:
    """The tokens of one choice of a chat completion; None where it tells no probabilities to read."""
    told = choice.get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, list):
        return None
    tokens = []
    for entry in content:
        own = _logprob(entry)
        if own is None:
            return None
        rivals = entry.get("top_logprobs")
        top = [_logprob(each) for each in rivals] if isinstance(rivals, list) else []
        tokens.append(Token(own, tuple(value for value in top if value is not None)))
    return tuple(tokens)


def _logprob(entry: object) -> float | None:
    value = entry.get("logprob") if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 1e-3:
        return None
    return min(0.0, max(FAINTEST, float(value)))


def entropy(token: Token) -> float:
    """Of the told tokens with all others as one: at most the true entropy, in nats."""
    chances = [math.exp(value) for value in token.top] or [math.exp(token.logprob)]
    chances.append(max(0.0, 1.0 - sum(chances)))
    return -sum(chance * math.log(chance) for chance in chances if chance > 0)


def margin(token: Token) -> float:
    """How far the likeliest token lies above the second, in nats; below 0 where another one was written."""
    if not token.top:
        return 0.0
    first, second = [*sorted(token.top, reverse=True), FAINTEST][:2]
    return first - second if token.logprob >= first - 1e-6 else token.logprob - first


def is_broken(text: str) -> bool:
    """An answer that is no answer whatever was asked: empty, JSON that does not end, or one phrase over and
    over."""
    bare = text.strip()
    if not bare:
        return True
    if bare[0] in "{[":
        try:
            json.loads(bare)
        except ValueError:
            return True
    words = bare.split()
    return len(words) >= 24 and len(set(zip(words, words[1:], words[2:], strict=False))) < len(words) // 4


@dataclass(frozen=True, slots=True)
class Sketch:
    """Hashes of the words and pairs of words of the training prompts: one bit for each."""

    bits: bytes

    def lacks(self, hashes: Sequence[int]) -> float:
        """The share that was not there; 0 without any."""
        size = 8 * len(self.bits)
        lacking = sum(not self.bits[at >> 3] >> (at & 7) & 1 for at in (each % size for each in hashes))
        return lacking / len(hashes) if hashes else 0.0


def sketch_of(texts: Iterable[str]) -> Sketch:
    hashes = {each for text in texts for part in _hashes(text) for each in part}
    size = 1 << max(10, math.ceil(math.log2(_ROOM * max(1, len(hashes)))))
    bits = bytearray(size // 8)
    for each in hashes:
        at = each % size
        bits[at >> 3] |= 1 << (at & 7)
    return Sketch(bytes(bits))


def unfamiliar(sketch: Sketch, prompt: str) -> tuple[float, float]:
    """The share of a prompt's words, and of its pairs of words, that no training prompt has."""
    words, pairs = _hashes(prompt)
    return sketch.lacks(words), sketch.lacks(pairs)


def _hashes(text: str) -> tuple[list[int], list[int]]:
    """All numbers are one word: which one it is says nothing about the kind of question."""
    parts = ["0" if each.isdigit() else each for each in pieces_of(text)]
    words = [crc32(part.encode("utf-8", "replace")) for part in parts]
    return words, [crc32(f"{a} {b}".encode("utf-8", "replace")) for a, b in pairwise(parts)]


def signals_of(
    tokens: Sequence[Token],
    text: str,
    finish_reason: str,
    strange: tuple[float, float],
    differing: float | None = None,
) -> Floats:
    """The signals of one answer, [len(SIGNALS)].

    `strange` is what `unfamiliar` says of the prompt, `differing` the share of further draws that answer
    otherwise, None where none were made: it is then not known, and NaN.
    """
    own = [token.logprob for token in tokens] or [0.0]
    spread = [entropy(token) for token in tokens] or [0.0]
    return np.array(
        [
            _log(-sum(own) / len(own)),
            _log(-min(own)),
            _log(sum(spread) / len(spread)),
            _log(max(spread)),
            min((margin(token) for token in tokens), default=0.0),
            math.log1p(len(tokens)),
            float(finish_reason != "stop"),
            float(is_broken(text)),
            *strange,
            math.nan if differing is None else differing,
        ]
    )


def _log(nats: float) -> float:
    return math.log(1e-4 + max(0.0, nats))


@dataclass(frozen=True, slots=True)
class Scale:
    """What turns signals into a risk: the chance that the answer costs something. A signal that was not known
    when it was fitted has the weight 0; one that is not known of an answer counts as the mean one."""

    mean: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float


def fit(signals: Floats, costs: Floats, caution: float = 1.0) -> Scale:
    """Logistic regression with a ridge penalty on standardised signals, by Newton's method; no chance in it.

    signals [N, len(SIGNALS)]; costs [N] in [0, 1]: 1 where the teacher was right and the student was not.
    The penalties of RIDGE are taken `caution` times.
    Half a row of either outcome is added, so that the risk of rows without a cost is not said to be 0.
    Raises ValueError without rows.
    """
    if not len(signals):
        raise ValueError("there are no rows to fit a deferral score on")
    known = np.isfinite(signals)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, signals, 0.0).sum(axis=0) / counts
    filled = np.where(known, signals, mean) - mean
    spread = np.sqrt((filled**2).mean(axis=0))
    inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-9)
    design = np.column_stack([np.ones(len(filled)), filled * inverse])
    design = np.vstack([design, np.eye(1, design.shape[1])])  # the half rows, at the mean
    target, rows = np.append(costs, 0.5), np.append(np.ones(len(costs)), 1.0)
    penalty = caution * np.diag([0.0, *RIDGE.values()])
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (rows * (chance - target)) + penalty @ weights
        curve = (design * (rows * chance * (1 - chance))[:, None]).T @ design + penalty
        step = np.linalg.solve(curve + 1e-9 * np.eye(len(curve)), slope)
        step *= min(1.0, 4.0 / max(1e-12, float(np.abs(step).max())))  # Newton runs away where data separate
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    scaled = weights[1:] * inverse
    return Scale(tuple(map(float, mean)), tuple(map(float, scaled)), float(weights[0]))


def risks(scale: Scale, signals: Floats) -> Floats:
    """The chance that each answer costs something; signals [N, len(SIGNALS)], or [len(SIGNALS)] of one."""
    mean, weight = np.array(scale.mean), np.array(scale.weight)
    away = np.where(np.isfinite(signals), signals - mean, 0.0) @ weight + scale.bias
    found: Floats = 1 / (1 + np.exp(-np.clip(away, -30, 30)))
    return found
