"""Two tokenisations of one text, cut where both end a word: the stretches by whose likelihood two models can
be compared whatever their tokenizers.

A token says more than its bytes: of the piece "the" a tokenizer of pieces knows that "them" does not follow,
and one of letters does not. So a chunk's likelihood is that of its tokens and of a border after them, white
space or the end, which each model holds likely in its own tokens. Without the border a student of pieces is
taught to expect "the" as often as all that begins so. White space is the border that all tokenizers share;
where a language writes none, an answer is one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from stillhouse.models.logprobs import TeacherToken
from stillhouse.models.vocabulary import Vocabulary

UNKNOWN = -math.inf  # a chunk of which the teacher's likelihood is not known
WHITE = (b" ", b"\n", b"\t", b"\r")


class Spoken(NamedTuple):
    """A token of a text as a teacher reads it: what it spells, its log-probability, and that of a border in
    its place, both in nats and None where not known."""

    raw: bytes
    logprob: float | None
    border: float | None = None


def borders(vocabulary: Vocabulary, ends: Sequence[int]) -> list[int]:
    """The ids that begin with white space, and those of `ends`, at which the model stops."""
    specials = set(vocabulary.specials.values()).difference(ends)
    white = (at for at, raw in enumerate(vocabulary.raw) if raw.startswith(WHITE) and at not in specials)
    return sorted({*white, *ends})


def shared_ends(one: Sequence[bytes], other: Sequence[bytes]) -> list[tuple[int, int]]:
    """How many tokens of each lie before every place where a token of both ends, in rising order.

    Places are counted in bytes, so tokens may cut a character anywhere. Of tokens that spell nothing each
    belongs to what stands before it, and of the blank that SentencePiece puts before every text, which only
    one of the two may have, nothing is made. Empty where the two are not one text.
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
    ids: Sequence[int], student: Vocabulary, text: Sequence[Spoken], end: Spoken
) -> list[float | None]:
    """For each of the student's `ids` the log-probability (nats) that the teacher gave the chunk which ends
    with it and a border after it, None where no chunk does.

    `ids` are an answer and the student's end of it; `text` is the answer in the teacher's tokens, `end` its
    ending there. A chunk is the smallest stretch that both cut out and after which both go on with white
    space or end. The end is a chunk of its own; where it is not known, the one before it has no border. A
    chunk is UNKNOWN where something of it is not known of the teacher, and where the student reads a special
    token, which only looks like the text. All are None where the two are not one text.
    """
    specials, said = set(student.specials.values()), [*text, end]
    shared = shared_ends([student.raw[at] for at in ids[:-1]], [token.raw for token in text])
    found: list[float | None] = [None] * len(ids)
    if not shared or shared[-1] != (len(ids) - 1, len(text)):
        return found
    closing = [
        (mine, its)
        for mine, its in shared
        if its == len(text) or (student.raw[ids[mine]].startswith(WHITE) and said[its].raw.startswith(WHITE))
    ]
    for (begin, first), (until, last) in pairwise([(0, 0), *closing]):
        values = [token.logprob for token in text[first:last]]
        if last < len(text) or end.logprob is not None:
            values.append(said[last].border)
        known = None not in values and specials.isdisjoint(ids[begin:until])
        found[until - 1] = math.fsum(value for value in values if value is not None) if known else UNKNOWN
    found[-1] = UNKNOWN if end.logprob is None else end.logprob
    return found


def spoken(tokens: Sequence[TeacherToken], text: bytes) -> tuple[list[Spoken], Spoken]:
    """The tokens of a served answer that spell `text`, and the one that follows and ends the answer; nothing
    is known of that where the server does not show it. A border is as likely as the alternatives together
    that are named and begin with white space."""
    own = [Spoken(token.raw, token.logprob, _named(token)) for token in tokens]
    for count, length in enumerate(accumulate(len(token.raw) for token in tokens), 1):
        if length in (len(text) - 1, len(text), len(text) + 1):
            said = b"".join(token.raw for token in own[:count])
            if said in (text, b" " + text) or b" " + said == text:
                shown = len(own) == count + 1
                ending = own[count].logprob if shown else None
                return own[:count], Spoken(b"", ending, ending)
    return [], Spoken(b"", None)


def _named(token: TeacherToken) -> float | None:
    mass = math.fsum(math.exp(each.logprob) for each in token.likely if each.raw.startswith(WHITE))
    return math.log(mass) if mass else None
