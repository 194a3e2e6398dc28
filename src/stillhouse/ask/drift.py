"""Is it still the same teacher? The rule by which the answers to canaries tell, round after round.

While nothing changes, the answers to one question are exchangeable over the rounds, whatever noise the server
has (even at temperature 0 hardly one answers the same to the bit). So nothing is assumed about that noise:
how much the answers of the first rounds differ from one another is what it is measured by. A change is what
makes the rounds before some moment differ more from those after it than they do among themselves.

What is assumed: within a round, questions are answered independently of one another. A provider that sends
whole rounds now to one deployment and then to another that answers otherwise is not one teacher, and is told
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Literal

import numpy as np

from stillhouse.stats import energy_test

ALPHA = 0.01
FIRST, LAST = 4, 4  # rounds that a look compares; with 8, the exact test goes through 70 ways at most
TOLD = 3  # ids or fingerprints that are named


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer to a canary: all of its text, the model's id as returned ("" where it was not), and the
    fingerprint."""

    text: str
    model: str
    fingerprint: str | None


Rounds = Sequence[Sequence[Heard | None]]  # for each round an answer to each question, None where none came


@dataclass(frozen=True, slots=True)
class Change:
    """What was found: in which round, from which round on the teacher is likeliest another one (both counted
    from 0), by which sign, with what p-value (None where none is needed), and in words."""

    found: int
    since: int
    sign: Literal["model id", "fingerprint", "answers"]
    p: float | None
    words: str


def first_change(rounds: Rounds, alpha: float = ALPHA) -> Change | None:
    """The first change that a look after each round would have found, looking from the third round on.

    Without a change, the chance of finding one is at most `alpha` however many rounds there are.
    """
    return next(filter(None, (look(rounds[: n + 1], alpha) for n in range(2, len(rounds)))), None)


def look(rounds: Rounds, alpha: float = ALPHA) -> Change | None:
    """What the newest of at least three rounds adds. The first two are the start.

    A model id that the start did not return is a change by itself. Fingerprints, of which a provider may run
    several side by side, and answers are tested: look number k spends alpha / (k (k + 1)), which sums to
    alpha, divided by the number of signs that can be tested and of moments at which the change may lie.
    """
    start, newest = {h.model for h in _heard(rounds[:2]) if h.model}, len(rounds) - 1
    other = {h.model for h in _heard(rounds[-1:]) if h.model} - start
    if start and other:
        since = next(i for i, each in enumerate(rounds) if any(h.model in other for h in _heard([each])))
        return Change(
            newest, since, "model id", None, f"answers by {_named(other)} instead of {_named(start)}"
        )
    level = alpha / ((newest - 1) * newest)
    said = any(h.fingerprint for h in _heard(rounds))
    if said:
        p, since = _likeliest(rounds, lambda h: h.fingerprint, lambda a, b: 10 * (a != b))
        if 2 * p <= level:
            before, after = (
                {h.fingerprint for h in _heard(part) if h.fingerprint}
                for part in (rounds[:since], rounds[since:])
            )
            words = f"fingerprint {_named(after - before or after)} instead of {_named(before)}"
            return Change(newest, since, "fingerprint", p, words)
    p, since = _likeliest(rounds, lambda h: h.text, distance)
    if (1 + said) * p <= level:
        words = f"answers differ more than the same teacher's would (p = {p:.1g})"
        return Change(newest, since, "answers", p, words)
    return None


def distance(first: str, second: str) -> int:
    """How far apart two answers are, in tenths: 0 for equal ones, else from 1 to 10 by the Jaccard distance
    of their words and pairs of words."""
    if first == second:
        return 0
    a, b = _shingles(first), _shingles(second)
    return 1 + round(9 * (1 - len(a & b) / max(1, len(a | b))))


@lru_cache(maxsize=256)  # each answer is compared with several others, look after look
def _shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {(word,) for word in words} | set(pairwise(words))


def _likeliest(
    rounds: Rounds, part: Callable[[Heard], str | None], apart: Callable[[str, str], int]
) -> tuple[float, int]:
    """The p-value of a change at some moment, and the first round after the likeliest moment.

    Of many rounds only the first and the last few are compared. Each moment that leaves two of them before it
    has its own exact test; the least p-value is multiplied by their number (Bonferroni).
    """
    count = len(rounds)
    kept = sorted({*range(min(FIRST, count)), *range(max(0, count - LAST), count)})
    strata = []
    for question in range(len(rounds[0])):
        heard = [(n, h) for n in kept if (h := rounds[n][question]) is not None]
        values = [(n, value) for n, h in heard if (value := part(h)) is not None]
        distances = np.zeros((len(values), len(values)), dtype=np.int64)
        for (i, (_, a)), (j, (_, b)) in combinations(enumerate(values), 2):
            distances[i, j] = distances[j, i] = apart(a, b)
        if distances.any():
            strata.append((np.array([n for n, _ in values]), distances))
    moments = kept[2:]
    tested = [(energy_test([(d, when >= moment) for when, d in strata]), moment) for moment in moments]
    p, moment = min(tested)
    return min(1.0, p * len(moments)), moment


def _heard(rounds: Rounds) -> list[Heard]:
    return [heard for each in rounds for heard in each if heard is not None]


def _named(names: set[str | None] | set[str]) -> str:
    shown = sorted(str(name)[:60] for name in names)
    return ", ".join(shown[:TOLD]) + (f" and {len(shown) - TOLD} more" if len(shown) > TOLD else "")
