"""Two tokenisations of one text, cut where both end a token: the stretches by whose likelihood two models can
be compared whatever their tokenizers.

It needs of a teacher only the log-probability of each token of the text, in its own tokens and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from stillhouse.models.logprobs import TeacherToken
from stillhouse.models.vocabulary import Vocabulary

UNKNOWN = -math.inf  # a chunk of which the teacher's likelihood is not known


class Spoken(NamedTuple):
    """A token of a text as a teacher reads it: what it spells, and its log-probability (nats), None where
    that is not known."""

    raw: bytes
    logprob: float | None


def shared_ends(one: Sequence[bytes], other: Sequence[bytes]) -> list[tuple[int, int]]:
    """How many tokens of each lie before every place where a token of both ends, in rising order.

    Between two such places lies a chunk, and none is smaller. Places are counted in bytes, so tokens may cut
    a character anywhere. Of tokens that spell nothing each belongs to what stands before it, and of the blank
    that SentencePiece puts before every text, which only one of the two may have, nothing is made. Empty
    where the two are not one text.
    """
    spelt, said, lead, its = b"".join(one), b"".join(other), 0, 0
    if spelt == b" " + said:
        lead = 1
    elif said == b" " + spelt:
        its = 1
    elif spelt != said:
        return []
    places = {end - its: count for count, end in enumerate(accumulate(map(len, other)), 1)}
    ends = {end - lead: count for count, end in enumerate(accumulate(map(len, one)), 1)}
    return [(count, places[end]) for end, count in ends.items() if end > 0 and end in places]


def likelihoods(
    ids: Sequence[int], student: Vocabulary, text: Sequence[Spoken], end: float | None
) -> list[float | None]:
    """For each of the student's `ids` the log-probability (nats) that the teacher gave the chunk which ends
    with it, None where no chunk does.

    `ids` are an answer and the student's end of it; `text` is the answer in the teacher's tokens. The end is
    a chunk of its own, as its token has no bytes and only a meaning: `end` is the log-probability that the
    teacher gave to ending there. A chunk is UNKNOWN where a token of the teacher's is not known, and where
    the student reads a special token, which only looks like the text. All are None where the two are not one
    text.
    """
    specials = set(student.specials.values())
    shared = shared_ends([student.raw[at] for at in ids[:-1]], [token.raw for token in text])
    found: list[float | None] = [None] * len(ids)
    if not shared or shared[-1] != (len(ids) - 1, len(text)):
        return found
    for (begin, said), (until, told) in pairwise([(0, 0), *shared]):
        values = [token.logprob for token in text[said:told]]
        known = None not in values and specials.isdisjoint(ids[begin:until])
        found[until - 1] = math.fsum(value for value in values if value is not None) if known else UNKNOWN
    found[-1] = UNKNOWN if end is None else end
    return found


def spoken(tokens: Sequence[TeacherToken], text: bytes) -> tuple[list[Spoken], float | None]:
    """The tokens of a served answer that spell `text`, and the log-probability of the one that follows and
    ends the answer, None where the server does not show it."""
    own = [Spoken(token.raw, token.logprob) for token in tokens]
    for count, length in enumerate(accumulate(len(token.raw) for token in tokens), 1):
        if length in (len(text) - 1, len(text), len(text) + 1):
            said = b"".join(token.raw for token in own[:count])
            if said in (text, b" " + text) or b" " + said == text:
                return own[:count], own[count].logprob if len(own) == count + 1 else None
    return [], None
