"""What one answered request shows by itself: facts, and hashes of its words.

A message is cut into chunks, runs of a few words that end where their content says, so that a preamble falls
into the same chunks whatever stands behind it. Words and chunks leave here as 32 bits of a keyed hash
(BLAKE2b) and in no other form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from stillhouse import text as texts
from stillhouse.guard.asked import Route

# How much of a message is read, from either end: what bounds the time that a request takes.
HEAD, TAIL = 600, 200
SYSTEM_HEAD = 256  # further in, system messages tell the time or the user's name
CONTENT = 24  # content words hashed of a message, at most
FEWEST, CHUNK = 3, 8  # words of a chunk

# Each from 0 to 1.
FACTS: Final = (
    "single",
    "tidy",
    "length",
    "answer",
    "label",
    "logprobs",
    "choices",
    "room",
    "cold",
    "hot",
    "reasoning",
    "steps",
    "grades",
    "preamble",
)
TASKS = frozenset(
    b"add analyse analyze answer arrange brainstorm calculate categorize change choose classify combine come "
    b"compare complete compose compute construct convert correct create define delete derive describe design "
    b"detect determine develop devise discuss draft edit estimate evaluate explain extract fill find fix "
    b"formulate generate give given how identify imagine implement improve infer insert list make match name "
    b"order outline paraphrase pick plan point predict prepare produce propose prove provide rank recommend "
    b"rephrase replace rewrite select simplify solve sort state suggest summarize tell translate turn use "
    b"what which who why when where write".split()
)
_LATIN = "\u02ff".encode()
# Letters, digits and _ in lower case, all else as a space: what `split` makes the words of ASCII text of.
_LETTERS = bytes(
    ord(each) if each.isalnum() or each == "_" else 32 for each in map(str.lower, map(chr, range(128)))
)
_LETTERS += bytes(128)
# Typographic marks, which make text of English letters half as fast to read.
PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00a0", "''\"\"--. ")
# Phrases by a part that they share: of most messages only the parts need to be looked for.
STEPS = {
    "step": ("step by step", "step-by-step", "each step"),
    "reasoning": ("your reasoning", "reasoning process"),
    "show ": ("show your work", "show all"),
    "thought": ("chain of thought", "chain-of-thought", "thought process"),
    "think": ("let's think", "think through", "<think>"),
    "explain why": ("",),
    "rationale": ("",),
    "derivation": ("",),
}
GRADES = {
    "which ": ("which response", "which answer", "which of the two"),
    "grade th": ("grade the", "grade this"),
    "rate the": ("",),
    "on a scale": ("",),
    "score from": ("",),
    "rubric": ("",),
    "helpfulness": ("",),
    "criteria": ("",),
    "judge": ("",),
}


# A chunk's hash, how many words it has, whether it names a task, and the hashes of its content words.
Chunk = tuple[int, int, bool, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as facts and hashes of 32 bits; it lives for the length of a call to `observe`.

    `settings` stands for model, system message and parameters, `whole` for the message, `begun` for the one
    that its conversation began with, 0 where there is none; `facts` are in the order of `FACTS`.
    """

    at: float
    settings: int
    whole: int
    begun: int
    chunks: tuple[Chunk, ...]
    facts: tuple[float, ...]
    output_tokens: int


def seen_of(key: bytes, body: Mapping[str, Any], route: Route, output_tokens: int, at: float) -> Seen:
    """The facts and hashes of one answered request. `key` (16 to 64 bytes) is the guard's and secret; bodies
    of any shape are read, and what is not understood counts as absent."""
    system, message, fresh, first = _said(body, route)
    read = message if len(message) <= HEAD + TAIL else f"{message[:HEAD]}\n{message[-TAIL:]}"
    if not read.isascii():
        read = read.translate(PLAIN)
    head = system[:SYSTEM_HEAD].lower()
    holds = f"{read.lower()}\0{head}".__contains__
    start = blake2b(key=key, digest_size=4)
    chunks, words = _chunks(start, read)
    room = max(_number(body, name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
    choices = _number(body, "n")
    logprobs = _number(body, "top_logprobs") or int(bool(body.get("logprobs")))
    heat = body.get("temperature")
    warm = float(heat) if isinstance(heat, int | float) else 0.5
    thinks = any(body.get(name) for name in ("reasoning_effort", "reasoning", "include_reasoning"))
    settings = (
        f"{body.get('model')}\0{heat}\0{body.get('top_p')}\0{room}\0{choices}\0{logprobs}\0{thinks}\0{head}"
    )
    facts = (
        float(fresh),
        float(_tidy(message)),
        min(1.0, words * max(1.0, len(message) / (HEAD + TAIL)) / 128),
        min(1.0, output_tokens / 512),
        float(output_tokens <= 8),
        float(logprobs > 0),
        float(choices > 1),
        float(not room or room >= 1000),
        float(warm == 0.0),
        float(warm >= 0.9),
        float(thinks),
        float(any(any(map(holds, STEPS[part])) for part in filter(holds, STEPS))),
        float(any(any(map(holds, GRADES[part])) for part in filter(holds, GRADES))),
        min(1.0, len(system) / 512),
    )
    begun = _hash(start, _utf8(first)) if first else 0
    return Seen(
        at, _hash(start, _utf8(settings)), _hash(start, _utf8(message)), begun, chunks, facts, output_tokens
    )


def _chunks(start: blake2b, read: str) -> tuple[tuple[Chunk, ...], int]:
    """The chunks of a text, each once, and the number of its words. A chunk ends after a word whose last
    character has a code that 4 divides, or when it is full: so a change of one word moves few of its ends."""
    words, copy, number = _words(read), start.copy, int.from_bytes
    found: dict[int, Chunk] = {}
    left, begin = CONTENT, 0
    while begin < len(words):
        end = begin + FEWEST
        for word in words[end - 1 : begin + CHUNK - 1]:
            if not word[-1] & 3:  # the last bits of its last character as well
                break
            end += 1
        run = words[begin:end]
        begin = end
        (hashed := copy()).update(b" ".join(run))  # as `_hash` does, which is called too often here
        mark = number(hashed.digest())
        if mark in found:
            continue
        hashes: list[int] = []
        for word in run if left else ():
            if len(word) > 4 if word.isascii() else _is_content(word):
                (hashed := copy()).update(word)
                hashes.append(number(hashed.digest()))
                left -= 1
                if not left:
                    break
        found[mark] = mark, len(run), not TASKS.isdisjoint(run[:3]), tuple(hashes)
    return tuple(found.values()), len(words)


def _words(read: str) -> list[bytes]:
    """As `text.words`, in UTF-8."""
    if read.isascii():
        return read.encode().translate(_LETTERS).split()
    return list(map(_utf8, texts.words(read)))


def _utf8(text: str) -> bytes:
    """Halves of characters included, which JSON can hold."""
    return text.encode(errors="surrogatepass")


def _is_content(word: bytes) -> bool:
    """Of a word with other letters than ASCII's: of more than four, or of no Latin script."""
    return word > _LATIN or len(word.decode(errors="surrogatepass")) > 4


def _hash(start: blake2b, text: bytes) -> int:
    """32 bits. `start` has taken in the key alone: to copy it takes two thirds of the time of a new one."""
    hashed = start.copy()
    hashed.update(text)
    return int.from_bytes(hashed.digest())


def _said(body: Mapping[str, Any], route: Route) -> tuple[str, str, bool, str]:
    """System message, last message of the user, whether no answer stands before it, and what the user said
    first, where one does."""
    if route == "completions":
        return "", _text(body.get("prompt")), True, ""
    messages = body.get("messages" if route == "chat/completions" else "input")
    system = [_text(body.get("instructions"))]
    if not isinstance(messages, list):
        return system[0], _text(messages), not body.get("previous_response_id"), ""
    message = first = ""
    fresh = True
    for each in messages:
        if not isinstance(each, Mapping):
            continue
        role = each.get("role")
        if role in ("system", "developer"):
            system.append(_text(each.get("content")))
        elif role == "user":
            message = _text(each.get("content"))
        else:
            first = first or message
            fresh = False
    return "\n".join(filter(None, system)), message, fresh, first


def _text(content: Any) -> str:
    """The text of a message's content: a string, or a list of strings and parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
    return "\n".join(part for part in parts if isinstance(part, str))


def _number(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    return value if isinstance(value, int) else 0


def _tidy(message: str) -> bool:
    """Whether it begins and ends as a written sentence does."""
    stripped = message.strip()
    return bool(stripped) and stripped[0].isupper() and stripped[-1] in ".?!:"
