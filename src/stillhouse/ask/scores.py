"""A teacher that reads: it is sent token ids, and tells how likely it held each of them, and which others.

Every reading is a question like any other: gate, cap, attempt, exchange. So one that was paid for is never
bought again, and what it said can be read from the ledger for another student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.ask import Limits, Part, Question, Sampling, Tally, Teacher, ask_all
from stillhouse.ask.questions import stored_answers
from stillhouse.ledger import Ledger
from stillhouse.records import Watch, unwatched

STAGE = "read"  # what the leaves of readings bear
ALL = -1  # how many likeliest tokens are told: every one


class Text(NamedTuple):
    """What is read: token ids, and how they are called here."""

    name: str
    ids: NDArray[np.int32]


class Said(NamedTuple):
    """The response to a text, None where there is none that may be used, and its leaf in the ledger."""

    text: Text
    response: bytes | None
    leaf: int | None
    recalled: bool = False


@dataclass(frozen=True, slots=True)
class Readings:
    """A teacher, ready to be sent texts to read. What was read under decisions in `recalled` is not used."""

    teacher: Teacher
    decision: int
    limits: Limits
    ledger: Ledger
    run: str
    recalled: frozenset[int] = frozenset()

    def ask(self, texts: Sequence[Text], told: int, watch: Watch = unwatched) -> Tally:
        """Have every text read that the ledger has no reading of, each token with the `told` likeliest in
        its place. Raises what `ask.ask` raises."""
        part = Part(self.teacher, self.decision, _Questions(texts))
        return ask_all([part], _asking(told), self.limits, self.ledger, self.run, watch, STAGE)

    def said(self, texts: Sequence[Text], told: int) -> Iterator[Said]:
        """What the ledger has of each text, in order."""
        stored = stored_answers(_Questions(texts), self.teacher, _asking(told), self.ledger)
        for text, (_, _, found) in zip(texts, stored, strict=True):
            if found is None:
                yield Said(text, None, None)
            elif found.body.get("decision") in self.recalled:
                yield Said(text, None, found.leaf, recalled=True)
            else:
                yield Said(text, found.response, found.leaf)


@dataclass(frozen=True, slots=True)
class _Questions:
    """Made as they are gone through: ids as Python numbers take ten times the room."""

    texts: Sequence[Text]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Question]:
        for text in self.texts:
            yield Question(text.name, (), ids=tuple(text.ids.tolist()))


def _asking(told: int) -> Sampling:
    return Sampling(temperature=0.0, top_p=1.0, max_tokens=1, top_logprobs=told)
