"""How alike answers to one prompt are, in each of several respects ("families"); all of it symmetric.

Everything is relative to the panel that answered the same prompt: what all of them say, or do, tells nobody
apart. N prompts, M models, F features.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stillhouse.refusals import declines, straight
from stillhouse.text import normalise, words

Floats = NDArray[np.float64]
Likeness = NDArray[np.float32]
Numbers = NDArray[np.int64]
Texts = Sequence[Sequence[str]]  # N prompts of M answers

FUNCTION_WORDS = (
    "a an the this that these those it its they their them he she his her we our you your i my me "
    "and or but so if because as than then while when which who what where how also however "
    "of to in for on with at by from about into over after before between through during "
    "is are was were be been being have has had do does did can could will would may might should must "
    "not no more most some any all each other such only very just there here"
).split()
_MARKS = ",.;:!?()\"'-\u2014\u2026*/"
_SENTENCE = re.compile(r"[.!?]+(?:\s|\Z)")
_LINES = {
    "bullet": re.compile(r"^\s*[-*\u2022+]\s", re.MULTILINE),
    "number": re.compile(r"^\s*\d+[.)]\s", re.MULTILINE),
    "heading": re.compile(r"^\s*#+\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "lead-in": re.compile(r":\s*$", re.MULTILINE),
    "paragraph": re.compile(r"\n\s*\n"),
    "line": re.compile(r"\n"),
    "fence": re.compile(r"^\s*```", re.MULTILINE),
    "table": re.compile(r"^\s*\|.*\|\s*$", re.MULTILINE),
    "indent": re.compile(r"^(?: {2,}|\t)\S", re.MULTILINE),
}
_NO_CAPITALS = bytes(range(128)).translate(None, string.ascii_uppercase.encode())
_OPENING = 8  # words
_CLOSING = 8


def content(texts: Texts) -> Likeness:
    """Cosine of runs of one to three words, each weighted by how few of the panel use it on that prompt.

    [N, M, M]. A run's weight is log((M + 1) / models that use it); how often one answer uses it counts not.
    """
    return np.stack([_cosine(len(row), *_runs([words(text) for text in row])) for row in texts])


def openings(texts: Texts) -> Likeness:
    """The same for the first and the last eight words, with the place of each run."""
    return np.stack([_cosine(len(row), *_ends([words(text) for text in row])) for row in texts])


def style(texts: Texts) -> Likeness:
    """Nearness in length, sentences, function words and punctuation: minus the mean distance, [N, M, M]."""
    return _near(np.array([[_style(text) for text in row] for row in texts]))


def formatting(texts: Texts) -> Likeness:
    """Nearness in lists, headings, bold, paragraphs, code and tables: minus the mean distance, [N, M, M]."""
    return _near(np.array([[_layout(text) for text in row] for row in texts]))


def refusals(texts: Texts) -> Likeness:
    """Whether two decline, or answer, what the panel is divided on: the product of the two departures from
    the panel's share, over its variance. 0 where all do the same."""
    done = np.array([[declines(text) for text in row] for row in texts], dtype=np.float64)
    return _agreement(done)


def errors(texts: Texts, expected: Sequence[str | None]) -> Likeness:
    """Whether two give the same wrong answer, weighted by how few of the panel give it, [N, M, M].

    log(M / models that give it) where both answers are wrong and, normalised, equal; else 0. A prompt
    without a right answer says nothing. Sharing what is right says nothing about a teacher.
    """
    models = len(texts[0]) if texts else 0
    found = np.zeros((len(texts), models, models), dtype=np.float32)
    for index, (row, right) in enumerate(zip(texts, expected, strict=True)):
        if right is None:
            continue
        given = [normalise(text) for text in row]
        counts = Counter(given)
        for a in range(models):
            for b in range(models):
                if given[a] == given[b] != normalise(right):
                    found[index, a, b] = math.log(models / counts[given[a]])
    return found


FAMILIES: dict[str, Callable[[Texts], Likeness]] = {
    "content": content,
    "openings": openings,
    "style": style,
    "formatting": formatting,
    "refusals": refusals,
}


def _runs(answers: Sequence[list[str]]) -> tuple[Numbers, Numbers]:
    """Each run of one to three words, as a number, beside the answer that it stands in: both [runs]."""
    places: dict[str, int] = {}
    word = np.array([places.setdefault(one, len(places)) for said in answers for one in said], dtype=np.int64)
    of = np.repeat(np.arange(len(answers)), [len(said) for said in answers])
    pair = _numbered(word[:-1] * len(places) + word[1:])
    three = _numbered(pair[:-1] * len(places) + word[2:])
    within, wholly = of[:-1] == of[1:], of[:-2] == of[2:]
    pair, three = pair[within] + len(word), three[wholly] + 2 * len(word)  # numbers that no other run has
    return np.concatenate([of, of[:-1][within], of[:-2][wholly]]), np.concatenate([word, pair, three])


def _ends(answers: Sequence[list[str]]) -> tuple[Numbers, Numbers]:
    """The same for what stands in the first and the last eight words."""
    numbers: dict[object, int] = {}
    of, found = [], []
    for answer, said in enumerate(answers):
        features = _openings_and_closings(said)
        of += [answer] * len(features)
        found += [numbers.setdefault(feature, len(numbers)) for feature in features]
    return np.array(of, dtype=np.int64), np.array(found, dtype=np.int64)


def _openings_and_closings(said: list[str]) -> set[object]:
    first, last = said[:_OPENING], said[-_CLOSING:]
    found: set[object] = {("first", tuple(first[:n])) for n in range(1, len(first) + 1)}
    found |= {("last", tuple(last[-n:])) for n in range(1, len(last) + 1)}
    return (
        found | {("in first", run) for run in pairwise(first)} | {("in last", run) for run in pairwise(last)}
    )


def _numbered(codes: Numbers) -> Numbers:
    found: Numbers = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    return found


def _cosine(models: int, of: Numbers, feature: Numbers) -> Likeness:
    """[M, M] from the features of each answer, `feature` [F] standing in the answer `of` [F]; one that an
    answer has twice counts once."""
    place, of = np.divmod(np.unique(_numbered(feature) * models + of), models)
    used = np.bincount(place)
    shared = used > 1  # what one answer has alone counts in its length only
    weights, column = np.log((models + 1) / np.maximum(used, 1)), np.cumsum(shared) - 1
    alone = np.bincount(of[~shared[place]], minlength=models) * math.log(models + 1) ** 2
    of, place = of[shared[place]], place[shared[place]]
    table = np.zeros((models, int(shared.sum())), dtype=np.float32)
    table[of, column[place]] = weights[place]
    norms = np.sqrt((table.astype(np.float64) ** 2).sum(axis=1) + alone)
    scaled = table / np.maximum(norms, 1e-9)[:, None]
    return np.asarray(scaled @ scaled.T, dtype=np.float32)


def _style(text: str) -> list[float]:
    said = words(straight(text))
    counts = Counter(said)
    n = max(1, len(said))
    sentences = max(1, len(_SENTENCE.findall(text)))
    return [
        math.log1p(len(said)),
        math.log1p(len(said) / sentences),
        sum(map(len, said)) / n,
        len(counts) / math.sqrt(n),
        math.sqrt(_capitals(text) / max(1, len(text))),
        *(math.sqrt(counts[word] / n) for word in FUNCTION_WORDS),
        *(math.sqrt(text.count(mark) / n) for mark in _MARKS),
    ]


def _capitals(text: str) -> int:
    if text.isascii():
        return len(text.encode().translate(None, _NO_CAPITALS))
    return sum(map(str.isupper, text))


def _layout(text: str) -> list[float]:
    return [math.log1p(len(pattern.findall(text))) for pattern in _LINES.values()]


def _near(features: Floats) -> Likeness:
    """Minus the mean absolute distance of features [N, M, F], each less the panel's mean on the prompt and
    over the spread that is left in it."""
    left = features - features.mean(axis=1, keepdims=True)
    spread = np.sqrt((left**2).mean(axis=(0, 1)))
    scaled = (left / np.where(spread > 0, spread, 1.0)).astype(np.float32)
    return np.stack([-np.abs(row[:, None, :] - row[None, :, :]).mean(axis=2) for row in scaled])


def _agreement(done: Floats) -> Likeness:
    share = done.mean(axis=1, keepdims=True)
    variance = share * (1 - share)
    scaled = (done - share) / np.sqrt(np.where(variance > 0, variance, 1.0))
    return np.asarray(scaled[:, :, None] * scaled[:, None, :], dtype=np.float32)
