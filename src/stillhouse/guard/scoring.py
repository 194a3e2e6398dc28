"""From an account's evidence to a score, and from the score to reasons that a person can read.

What a use of an account shows on average, and what the account shows as a whole, is set beside what ordinary
accounts show, and drawn towards it while there are few requests. The score is the largest of a few weighted
sums of these differences, one for each way of copying a model. It is a rank and no probability: from where on
it is alarming is for `calibrating` to say, of the highest score that each account reaches.

The weights lie in `weights.toml`; `benchmarks/detection_fit.py` fitted them on simulated accounts.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from operator import mul

from stillhouse.guard.evidence import FEATURES, Evidence, means_of

WORDS: Mapping[str, str] = {
    "single": "questions that stand alone, with no conversation before them",
    "tidy": "texts that begin and end as written sentences do",
    "length": "long messages",
    "answer": "long answers",
    "label": "answers of a few tokens, as labels are",
    "logprobs": "probabilities of tokens asked for",
    "choices": "several answers asked for to one question",
    "room": "long answers allowed",
    "cold": "temperature 0",
    "hot": "a high temperature",
    "reasoning": "hidden reasoning asked for",
    "steps": "reasoning asked for in words",
    "grades": "answers to be judged or graded",
    "preamble": "a long system message",
    "new": "words that the account never used before",
    "far": "questions that do not take up the words of those just before them",
    "repeat": "texts sent before",
    "templated": "text that the program sends each time",
    "asks": "texts that begin by naming a task",
    "ratio": "answers longer than the text that asked for them",
    "harvest": "short new tasks that stand alone, each on another subject, with long answers",
    "even": "requests at even distances",
    "clock": "requests at all hours of the day",
    "followed": "questions whose conversation goes on",
}


@dataclass(frozen=True, slots=True)
class Pattern:
    """One way of copying a model: weights in the order of `FEATURES`, for the use and for the whole account,
    and what an ordinary request adds to either sum."""

    name: str
    words: str
    of_use: tuple[float, ...]
    of_account: tuple[float, ...]
    use_base: float
    account_base: float


@dataclass(frozen=True, slots=True)
class Weights:
    """`ordinary` are the means of ordinary accounts, which count as `prior` requests of any account."""

    prior: float
    ordinary: tuple[float, ...]
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """What the `use` or the whole `account` shows more or less of than ordinary accounts, both as means, and
    what that adds to the score."""

    feature: str
    words: str
    where: str
    found: float
    ordinary: float
    adds: float


@dataclass(frozen=True, slots=True)
class Reading:
    """A score and all that it is the sum of, what adds most first. `requests` of the use were counted, those
    long ago less."""

    score: float
    pattern: Pattern
    requests: float
    reasons: tuple[Reason, ...]


def score(evidence: Evidence, use: int, weights: Weights) -> float:
    """What the use of that number comes to, as `observe` returned it; 0 for an account of which nothing is
    known, and for one that is as ordinary as can be."""
    own, requests, all_, weight = means_of(evidence, use)
    drawn, all_drawn = requests + weights.prior, weight + weights.prior
    found: float = max(
        (sum(map(mul, pattern.of_use, own)) - requests * pattern.use_base) / drawn
        + (sum(map(mul, pattern.of_account, all_)) - weight * pattern.account_base) / all_drawn
        for pattern in weights.patterns
    )
    return found


def reading(evidence: Evidence, use: int, weights: Weights) -> Reading:
    """The same score with its reasons."""
    own, requests, all_, weight = means_of(evidence, use)
    best, best_score = weights.patterns[0], float("-inf")
    best_reasons: tuple[Reason, ...] = ()
    for pattern in weights.patterns:
        reasons = (
            *_reasons("use", own, requests, pattern.of_use, weights),
            *_reasons("account", all_, weight, pattern.of_account, weights),
        )
        total = sum(reason.adds for reason in reasons)
        if total > best_score:
            best, best_score, best_reasons = pattern, total, reasons
    return Reading(
        best_score, best, requests, tuple(sorted(best_reasons, key=lambda reason: reason.adds, reverse=True))
    )


def in_words(reading: Reading, most: int = 3) -> str:
    """The pattern and what speaks for it most, for the account's owner to read."""
    told = [
        f"{reason.words} ({reason.found:.2f}, in ordinary accounts {reason.ordinary:.2f}"
        f"{'' if reason.where == 'use' else ', over the whole account'})"
        for reason in reading.reasons[:most]
        if reason.adds > 0.0
    ]
    return f"{reading.pattern.words}: " + ("; ".join(told) or "nothing out of the ordinary")


@cache
def shipped() -> Weights:
    return read_weights(files("stillhouse.guard").joinpath("weights.toml").read_text())


def read_weights(text: str) -> Weights:
    """Raises ValueError for a name that is no feature's."""
    data = tomllib.loads(text)
    ordinary = _ordered(data["ordinary"])
    patterns = []
    for each in data["patterns"]:
        of_use, of_account = _ordered(each["use"]), _ordered(each["account"])
        bases = (sum(map(mul, side, ordinary)) for side in (of_use, of_account))
        patterns.append(Pattern(each["name"], each["words"], of_use, of_account, *bases))
    return Weights(data["prior"], ordinary, tuple(patterns))


def _ordered(table: Mapping[str, float]) -> tuple[float, ...]:
    if unknown := set(table) - set(FEATURES):
        raise ValueError(f"no such feature: {', '.join(sorted(unknown))}")
    return tuple(float(table.get(feature, 0.0)) for feature in FEATURES)


def _reasons(
    where: str, sums: Sequence[float], requests: float, weights_: tuple[float, ...], weights: Weights
) -> list[Reason]:
    drawn = requests + weights.prior
    return [
        Reason(
            feature,
            WORDS[feature],
            where,
            total / requests if requests else ordinary,
            ordinary,
            weight * (total - requests * ordinary) / drawn,
        )
        for feature, total, weight, ordinary in zip(FEATURES, sums, weights_, weights.ordinary, strict=True)
    ]
