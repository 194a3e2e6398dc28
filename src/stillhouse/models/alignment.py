"""From a teacher's tokens to a student's: where both cut a text in the same two places, the teacher's
alternatives become the student's ids by their bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from stillhouse.models.logprobs import Likely, TeacherToken
from stillhouse.models.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Aligned:
    """For each of the student's tokens the ids that the teacher held likely, with their log-probabilities
    (nats), likeliest first; nothing where there is no target. What they lack of a mass of 1 is the tail.

    `given` is the probability that the teacher named at the positions with targets, summed over them, and
    `mapped` the part of it that became ids of the student. `reason` says why no position has a target.
    """

    entries: tuple[tuple[tuple[int, float], ...], ...]
    given: float = 0.0
    mapped: float = 0.0
    reason: str = ""


def align(
    tokens: Sequence[TeacherToken], ids: Sequence[int], vocabulary: Vocabulary, same: bool = False
) -> Aligned:
    """The teacher's probabilities for the student's tokens `ids`, which write the same text.

    A position gets a target where a token of the teacher begins and ends with the student's, so that both
    chose what comes next from the same place. An alternative becomes the student's token of exactly its
    bytes. A special token has no bytes, only a name, which means nothing to another tokenizer: with `same`,
    which says that both have one `Vocabulary.digest`, names count as well, and so do the teacher's ids.
    """
    specials = set(vocabulary.specials.values())
    own = [vocabulary.raw[at] for at in ids]
    text = b"".join(raw for raw, at in zip(own, ids, strict=True) if at not in specials)
    begin = _begin(b"".join(token.raw for token in tokens), text)
    if not text or begin is None:
        reason = "the sample is another text than the answer" if text else "no text"
        return Aligned(((),) * len(ids), reason=reason)
    ends = accumulate((len(token.raw) for token in tokens), initial=0)
    starting = {at: token for at, token in zip(ends, tokens, strict=False) if token.raw}
    entries, given, mapped = [], 0.0, 0.0
    for at, raw, place in zip(ids, own, accumulate(map(len, own), initial=begin), strict=False):
        token = starting.get(place)
        found: dict[int, float] = {}
        if token is not None and token.raw == raw and (same or at not in specials):
            for likely in token.likely:
                if (mine := _id(likely, token, at, vocabulary, same)) is not None:
                    found.setdefault(mine, likely.logprob)
        if found and token is not None:
            given += math.fsum(math.exp(likely.logprob) for likely in token.likely)
            mapped += math.fsum(map(math.exp, found.values()))
        entries.append(tuple(found.items()))
    return Aligned(tuple(entries), given, mapped)


def _begin(spelt: bytes, text: bytes) -> int | None:
    """Where the student's text begins in what the teacher's tokens spell, None where it does not.

    SentencePiece puts a blank before every text, which only one of the two may do.
    """
    if spelt.startswith(text):
        return 0
    if spelt.startswith(b" " + text):
        return 1
    return -1 if text.startswith(b" ") and spelt.startswith(text[1:]) else None


def _id(likely: Likely, token: TeacherToken, own: int, vocabulary: Vocabulary, same: bool) -> int | None:
    """The student's id of an alternative to `token`, which is the student's token `own`."""
    by_id = likely.id is not None and token.id is not None
    if likely.id == token.id if by_id else likely.raw == token.raw:
        return own
    if same and likely.id is not None:
        return likely.id if likely.id < len(vocabulary.raw) else None
    found = vocabulary.ids.get(likely.raw)
    return vocabulary.specials.get(likely.raw) if found is None and same else found
