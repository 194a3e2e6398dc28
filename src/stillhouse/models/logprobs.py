"""What a chat completion says about the teacher's probabilities: its own tokens, in its own bytes.

Providers differ from one another and from their documents, so each oddity has a rule, and each use of a rule
is counted by its name:

    sentinel               -9999 says "very unlikely", not how unlikely: a part of the tail
    impossible             above 0, not a number, or a mass above 1 together: no probabilities here
    missing                neither a log-probability nor alternatives at this token
    fewer than asked       what was not given is a part of the tail
    duplicated             of alternatives that spell the same the likeliest stays
    sampled token added    it did not stand among its alternatives
    unknown bytes          half a character, shown as U+FFFD or as nothing: no probabilities here
    alternative unknown    the same of an alternative: a part of the tail
    token ids do not fit   not one for each token, or none that the vocabulary knows: they are not used

A row as a whole gets no targets, with the reason, where the tokens cannot be trusted to be those of the text.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from stillhouse.models.endpoint import message_text
from stillhouse.models.vocabulary import Vocabulary

SENTINEL = -9999.0
MASS_ERROR = 5e-4  # log-probabilities are rounded on the wire
_HALF_A_CHARACTER = "\ufffd".encode()


class Likely(NamedTuple):
    """A token that the teacher might have written, and the log of its probability (nats)."""

    raw: bytes
    logprob: float
    id: int | None = None


@dataclass(frozen=True, slots=True)
class TeacherToken:
    """A token that the teacher wrote or read. `raw` is b"" and `logprob` None where that is not known;
    `likely` has the likeliest first and the token itself among them, and is empty where the probabilities
    are not known."""

    raw: bytes
    logprob: float | None
    likely: tuple[Likely, ...]
    id: int | None = None


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
    """`tokens` spell `text`; more may follow, as the token that ended the answer. `prompt` is there where the
    server scored it. `reason` says why there are no tokens; `counts` how often each rule was used."""

    text: str
    tokens: tuple[TeacherToken, ...]
    prompt: tuple[TeacherToken, ...]
    reason: str
    counts: Mapping[str, int]


def read_answer(
    body: bytes, asked: int, vocabulary: Vocabulary | None = None, choice: int = 0
) -> TeacherAnswer:
    """The tokens of one choice of a chat completion that was asked for `asked` top_logprobs.

    `vocabulary` is the teacher's own, where it is known: token ids (vLLM's `return_token_ids` and
    `prompt_logprobs`) then say what the tokens spell, which the wire cannot for half a character. Nothing is
    raised for an answer that is not as it should be: it has a reason.
    """
    counts: Counter[str] = Counter()
    text, reason = "", ""
    tokens: list[TeacherToken] = []
    prompt: list[TeacherToken] = []
    try:
        said = _parse(body)
        found = _choice(said, choice)
        message, logprobs = found["message"], found.get("logprobs") or {}
        text = message_text(message.get("content"), choice)
        content = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
        if message.get("refusal") or (isinstance(logprobs, dict) and logprobs.get("refusal")):
            reason = "refusal"
        elif not isinstance(content, list) or not content:
            reason = "no logprobs"
        else:
            written = [_token(entry, asked, counts) for entry in content]
            tokens, reason = _with_ids(written, found.get("token_ids"), vocabulary, counts)
        prompt = _prompt(said, found, vocabulary, counts)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return TeacherAnswer(text, (), (), "not readable", counts)
    if not reason and not (text and _spell(tokens, text, vocabulary)):
        reason = "the tokens do not spell the text" if text else "no text"
    return TeacherAnswer(text, () if reason else tuple(tokens), tuple(prompt), reason, counts)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(body)
    except ValueError:
        said = json.loads(body)  # reads NaN and Infinity, which some servers write
    if not isinstance(said, dict):
        raise ValueError("the answer is not an object")
    return said


def _choice(said: Mapping[str, Any], index: int) -> dict[str, Any]:
    for place, found in enumerate(said["choices"]):
        if found.get("index", place) == index:
            return dict(found)
    raise ValueError(f"the answer has no choice {index}")


def _token(entry: Any, asked: int, counts: Counter[str]) -> TeacherToken:
    """One entry of `logprobs.content`."""
    if not isinstance(entry, dict):
        entry = {}
    top = entry.get("top_logprobs")
    rivals = [_rival(each) for each in top] if isinstance(top, list) else []
    if len(rivals) < asked:
        counts["fewer than asked"] += 1
    own = _number(entry.get("logprob"))
    return _judged(_raw(entry), own, None, rivals, counts)


def _rival(entry: Any) -> Likely:
    known = entry if isinstance(entry, dict) else {}
    value = _number(known.get("logprob"))
    return Likely(_raw(known), math.nan if value is None else value)


def _raw(entry: Mapping[str, Any]) -> bytes:
    spelt, token = entry.get("bytes"), entry.get("token")
    if isinstance(spelt, list):
        try:
            return bytes(spelt)
        except (ValueError, TypeError):  # numbers that are no bytes
            pass
    return token.encode("utf-8", "replace") if isinstance(token, str) else b""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) else None


def _is_whole(raw: bytes) -> bool:
    """Whether the wire shows what a token spells; servers show half a character as U+FFFD or as nothing."""
    return raw != b"" and _HALF_A_CHARACTER not in raw


def _judged(
    raw: bytes, logprob: float | None, at: int | None, rivals: Sequence[Likely], counts: Counter[str]
) -> TeacherToken:
    """The token `raw` with what is known of its position, by the rules above; it may stand among `rivals`.

    `logprob` is None where it was not given; a rival's is then NaN.
    """
    nothing = TeacherToken(raw, None, (), at)
    if logprob is None and not rivals:
        counts["missing"] += 1
        return nothing
    own_fits = logprob is None or logprob <= 0
    if not own_fits or not all(rival.logprob <= 0 for rival in rivals):  # a NaN is not <= 0
        counts["impossible"] += 1
        return nothing
    kept: dict[bytes | int, Likely] = {}
    for rival in sorted(rivals, key=_least_likely_last):
        name = rival.raw if rival.id is None else rival.id
        if rival.logprob <= SENTINEL:
            counts["sentinel"] += 1
        elif rival.id is None and not _is_whole(rival.raw):
            counts["alternative unknown"] += 1
        elif name in kept:
            counts["duplicated"] += 1
        else:
            kept[name] = rival
    own_name = raw if at is None else at
    if logprob is not None and logprob <= SENTINEL:
        logprob = None
        if not any(own_name == (rival.raw if at is None else rival.id) for rival in rivals):
            counts["sentinel"] += 1
    elif logprob is not None and own_name not in kept and (at is not None or _is_whole(raw)):
        kept[own_name] = Likely(raw, logprob, at)
        if rivals:
            counts["sampled token added"] += 1
    likely = tuple(sorted(kept.values(), key=_least_likely_last))
    if math.fsum([math.exp(each.logprob) for each in likely]) > 1.0 + MASS_ERROR:
        counts["impossible"] += 1
        return nothing
    return TeacherToken(raw, logprob, likely, at)


def _least_likely_last(likely: Likely) -> float:
    return -likely.logprob


def _with_ids(
    tokens: Sequence[TeacherToken], ids: Any, vocabulary: Vocabulary | None, counts: Counter[str]
) -> tuple[list[TeacherToken], str]:
    """The tokens with what they really spell, and a reason where ids and bytes contradict one another.

    Where the wire shows something else (half a character as nothing, then the whole of it at the token that
    ends it), it shows the alternatives in the same way, so nothing is known of that position.
    """
    whole = [_is_whole(token.raw) for token in tokens]
    hidden = [not fine or (at > 0 and not whole[at - 1]) for at, fine in enumerate(whole)]
    found = list(tokens)
    for place, at in enumerate(_ids(ids, len(tokens), vocabulary, counts)):
        received = tokens[place].raw
        own = vocabulary.raw[at] if vocabulary else received
        found[place] = replace(tokens[place], raw=own, id=at)
        if own != received and not hidden[place]:
            if place or own != b" " + received:  # the blank before a text is often taken away
                return [], "the ids of the tokens belong to another vocabulary than their bytes"
            hidden[place] = True
    for place in (at for at, lost in enumerate(hidden) if lost and found[at].likely):
        counts["unknown bytes"] += 1
        found[place] = replace(found[place], likely=())
    return found, ""


def _prompt(
    said: Mapping[str, Any],
    choice: Mapping[str, Any],
    vocabulary: Vocabulary | None,
    counts: Counter[str],
) -> list[TeacherToken]:
    """vLLM's `prompt_logprobs`: for each token a map from id to log-probability, null for the first.

    The token itself is the first of its map, if `prompt_token_ids` do not tell.
    """
    scored = said.get("prompt_logprobs") or choice.get("prompt_logprobs") or []
    ids = _ids(
        said.get("prompt_token_ids") or choice.get("prompt_token_ids"), len(scored), vocabulary, counts
    )

    size = _size(vocabulary)

    def told(at: int, entry: Mapping[str, Any]) -> Likely:
        if not 0 <= at < size:
            raise ValueError("an id lies outside the vocabulary")
        shown = _raw({"token": entry.get("decoded_token")})
        own = vocabulary.raw[at] if vocabulary else shown if _is_whole(shown) else b""
        value = _number(entry.get("logprob"))
        return Likely(own, math.nan if value is None else value, at)

    found = []
    for place, options in enumerate(scored):
        entries = [told(int(at), entry) for at, entry in (options or {}).items()]
        at = ids[place] if ids else entries[0].id if entries else None
        own = next((entry for entry in entries if entry.id == at), None)
        if own is None:
            raw = vocabulary.raw[at] if vocabulary and at is not None else b""
            found.append(TeacherToken(raw, None, (), at))
        else:
            found.append(_judged(own.raw, own.logprob, at, entries, counts))
    return found


def _ids(ids: Any, length: int, vocabulary: Vocabulary | None, counts: Counter[str]) -> list[int]:
    """The ids of `length` tokens; none where the server gave none, or such as cannot be right."""
    if ids is None:
        return []
    size = _size(vocabulary)
    right = isinstance(ids, list) and all(type(at) is int and 0 <= at < size for at in ids)
    if right and len(ids) == length:
        return list(ids)
    counts["token ids do not fit"] += 1
    return []


def _size(vocabulary: Vocabulary | None) -> int:
    return len(vocabulary.raw) if vocabulary else 2**31


def _spell(tokens: Sequence[TeacherToken], text: str, vocabulary: Vocabulary | None) -> bool:
    """Whether the text is what the tokens begin with, but for the blank that SentencePiece puts before it."""
    spelt = b"".join(token.raw for token in tokens)
    made = vocabulary.text(spelt) if vocabulary else spelt.decode("utf-8", "replace")
    return made.startswith(text) or made.removeprefix(" ").startswith(text)
