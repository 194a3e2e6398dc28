"""What the requests of one account come to, in a fixed number of bytes, and none of their text.

A message is cut into chunks, runs of a few words that end where their content says, so that a preamble falls
into the same chunks whatever stands behind it. Chunks and content words are kept only as traces of keyed
hashes (BLAKE2b) in small tables that later requests overwrite: what an account sends again and again is known
for its template, and all else is its own text, of which alone is asked whether it is new.

Requests that one program sends share their settings and their template. Each such use has running means of
its own, so that questions of another kind do not vanish in an account's ordinary traffic.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from stillhouse import text as texts
from stillhouse.guard.asked import Route

# How much of a message is read, from either end: what bounds the time that a request takes.
HEAD, TAIL = 600, 200
SYSTEM_HEAD = 256  # further in, system messages tell the time or the user's name
CONTENT = 24  # content words hashed of a message, at most
FEWEST, CHUNK = 3, 8  # words of a chunk

CELLS = 768  # of the table of chunks: a fingerprint and a count each
COUNTED = 12  # the highest count of a cell
TEMPLATE = 3  # earlier requests with a chunk, from which on it is held for the program's
SHORT = 100  # words of own text, up to which a message that stands alone is a task of its own
TASK = 0x5BD1E995  # sets the tasks that a program sends apart from all else that it does
BOUND, LEAST = 0.25, 8  # share and words of a message that must be known before it is held for a template
WORD_BYTES = 384  # of each of two generations of words ever used, a bit each
RECENT_BYTES = 32  # the same for words used just before
RECENT = 8  # requests to such a generation
SETTLED = 400  # own words after which a new one says that the subject is new, and not the account
USES = 6  # with running means of their own; the first takes in all that are too rare
IDLE = 64  # requests after which a use may lose its place to another
FADES = 256  # requests of a use after which what was seen counts 1 / e
TALKS = 16  # requests that stood alone, whose conversation may go on; what goes on is followed
FOLLOWED = 8  # such requests of a use, one of which was followed: more tell no more

# What a request shows by itself, and what it shows beside those before it; each from 0 to 1.
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
BESIDE: Final = (
    "new",
    "far",
    "repeat",
    "templated",
    "asks",
    "ratio",
    "harvest",
    "even",
    "clock",
    "followed",
)
FEATURES: Final = FACTS + BESIDE
_K, _USE = len(FEATURES), 5
_DAY = (1 << 24) - 1
_KEPT = 1.0 - 1.0 / FADES

TASKS = frozenset(
    "add analyse analyze answer arrange brainstorm calculate categorize change choose classify combine come "
    "compare complete compose compute construct convert correct create define delete derive describe design "
    "detect determine develop devise discuss draft edit estimate evaluate explain extract fill find fix "
    "formulate generate give given how identify imagine implement improve infer insert list make match name "
    "order outline paraphrase pick plan point predict prepare produce propose prove provide rank recommend "
    "rephrase replace rewrite select simplify solve sort state suggest summarize tell translate turn use "
    "what which who why when where write".split()
)
# Typographic marks, which make text of English letters half as fast to read.
PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00a0", "''\"\"--. ")
STEPS = (
    "step by step",
    "step-by-step",
    "your reasoning",
    "show your work",
    "chain of thought",
    "chain-of-thought",
    "let's think",
    "think through",
    "thought process",
    "reasoning process",
    "explain why",
    "<think>",
    "rationale",
    "show all",
    "each step",
    "derivation",
)
GRADES = (
    "rubric",
    "on a scale",
    "score from",
    "which response",
    "which answer",
    "which of the two",
    "rate the",
    "grade the",
    "grade this",
    "helpfulness",
    "criteria",
    "judge",
)


class Chunk(NamedTuple):
    """`words` are the hashes of its content words, `size` counts all of them; `asks`: it names a task."""

    hash: int
    size: int
    asks: bool
    words: tuple[int, ...]


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


class Evidence:
    """The state of one account: `packed` is `SIZE` bytes, whatever the account sent."""

    __slots__ = (
        "chunks",
        "hours",
        "own_words",
        "recent",
        "requests",
        "sums",
        "talks",
        "turn",
        "uses",
        "weight",
        "words",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.weight = 0.0  # requests, fading
        self.own_words = 0  # content words of own text, counted up to SETTLED
        self.turn = 0  # which generation of `words` is being written
        self.hours = 0  # day since 1970, a bit for each of its hours, one for each of the day before
        self.chunks = bytearray(2 * CELLS)
        self.words = bytearray(2 * WORD_BYTES)
        self.recent = bytearray(2 * RECENT_BYTES)
        # Of each use the requests since one was followed, then marks of 16 bits and the uses they are of.
        self.talks = bytearray(b"\xff" * USES + bytes(3 * TALKS))
        self.uses = array("d", bytes(8 * _USE * USES))
        self.sums = array("f", bytes(4 * _K * (USES + 1)))  # of each use, and of the account

    def packed(self) -> bytes:
        return b"".join(
            (
                _NUMBERS.pack(self.requests, self.weight, self.own_words, self.turn, self.hours),
                self.chunks,
                self.words,
                self.recent,
                self.talks,
                _FLOATS.pack(*self.uses, *self.sums),
            )
        )

    @classmethod
    def unpacked(cls, data: bytes) -> Evidence:
        """Raises ValueError for what `packed` did not write."""
        if len(data) != SIZE:
            raise ValueError(f"an account's evidence has {SIZE} bytes, and these are {len(data)}")
        made, at = cls(), _NUMBERS.size
        made.requests, made.weight, made.own_words, made.turn, made.hours = _NUMBERS.unpack(data[:at])
        for table in (made.chunks, made.words, made.recent, made.talks):
            table[:] = data[at : at + len(table)]
            at += len(table)
        floats = _FLOATS.unpack(data[at:])
        made.uses = array("d", floats[: _USE * USES])
        made.sums = array("f", floats[_USE * USES :])
        return made


_NUMBERS = struct.Struct("<QdHBQ")
_FLOATS = struct.Struct(f"<{_USE * USES}d{_K * (USES + 1)}f")
SIZE = _NUMBERS.size + 2 * (CELLS + WORD_BYTES + RECENT_BYTES) + USES + 3 * TALKS + _FLOATS.size


def seen_of(key: bytes, body: Mapping[str, Any], route: Route, output_tokens: int, at: float) -> Seen:
    """The facts and hashes of one answered request. `key` (16 to 64 bytes) is the guard's and secret; bodies
    of any shape are read, and what is not understood counts as absent."""
    system, message, fresh, first = _said(body, route)
    read = message if len(message) <= HEAD + TAIL else f"{message[:HEAD]}\n{message[-TAIL:]}"
    if not read.isascii():
        read = read.translate(PLAIN)
    low, head = read.lower(), system[:SYSTEM_HEAD].lower()
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
        float(any(phrase in low or phrase in head for phrase in STEPS)),
        float(any(phrase in low or phrase in head for phrase in GRADES)),
        min(1.0, len(system) / 512),
    )
    begun = _hash(start, first) if first else 0
    return Seen(at, _hash(start, settings), _hash(start, message), begun, chunks, facts, output_tokens)


def observe(evidence: Evidence, seen: Seen) -> int:
    """Takes one request into the state, and says under which of its uses. Neither time nor memory depends on
    what came before."""
    repeat = _count(evidence.chunks, seen.whole) > 0
    held = [_count(evidence.chunks, chunk.hash) for chunk in seen.chunks]
    size = sum(chunk.size for chunk in seen.chunks)
    known = [chunk for chunk, count in zip(seen.chunks, held, strict=True) if count >= TEMPLATE]
    bound, own_chunks, mark = sum(chunk.size for chunk in known), seen.chunks, 0
    if not repeat and bound >= max(LEAST, BOUND * size):
        own_chunks = tuple(chunk for chunk, count in zip(seen.chunks, held, strict=True) if count < TEMPLATE)
        mark = known[0].hash
    else:
        bound = 0
    own = {word for chunk in own_chunks for word in chunk.words}
    own_size, asks = size - bound, bool(own_chunks) and own_chunks[0].asks
    new, far = _novelty(evidence, own)
    ratio = seen.output_tokens / (seen.output_tokens + 4.0 * own_size + 1.0)
    fresh = seen.facts[0] * (not repeat)
    program = seen.settings ^ mark
    use = _use(evidence, program ^ TASK if fresh and 0 < own_size <= SHORT else program)
    beside = (
        new,
        far,
        float(repeat),
        bound / size if bound else 0.0,
        float(asks),
        ratio,
        fresh * asks * min(1.0, new * far) * ratio,
        _even(evidence, use, seen.at),
        _clock(evidence, seen.at),
        _followed(evidence, use, seen),
    )
    sums, features = evidence.sums, seen.facts + beside
    for place, value in enumerate(features, use * _K):
        sums[place] = sums[place] * _KEPT + value
    for place, value in enumerate(features, USES * _K):
        sums[place] = sums[place] * _KEPT + value
    evidence.weight = evidence.weight * _KEPT + 1.0
    evidence.requests += 1
    return use


def means_of(evidence: Evidence, use: int) -> tuple[array[float], float, array[float], float]:
    """Fading sums of `FEATURES` and numbers of requests: of a use, and of the whole account."""
    sums = evidence.sums
    own = sums[use * _K : (use + 1) * _K]
    return own, evidence.uses[use * _USE + 1], sums[USES * _K :], evidence.weight


def last_time(evidence: Evidence, use: int) -> float:
    """When the last request of a use came (Unix seconds)."""
    return evidence.uses[use * _USE + 2]


def last_day(evidence: Evidence) -> int:
    """The day of the last request, counted from 1970-01-01 (UTC); 0 before the first."""
    return evidence.hours >> 48


def _count(cells: bytearray, mark: int) -> int:
    """How often the table has lately met `mark`, and counts it once more. A cell is its mark's until others
    have come there as often: the majority rule of Boyer and Moore, in each cell."""
    at = 2 * (mark % CELLS)
    trace, held = mark >> 24, cells[at + 1]
    if held and cells[at] == trace:
        if held < COUNTED:
            cells[at + 1] = held + 1
        return held
    if held > 1:
        cells[at + 1] = held - 1
    else:
        cells[at], cells[at + 1] = trace, 1
    return 0


def _novelty(evidence: Evidence, own: set[int]) -> tuple[float, float]:
    """Shares of the content words of own text that the account never used, and not in its last requests."""
    if evidence.requests % RECENT == 0:
        half = evidence.requests // RECENT % 2 * RECENT_BYTES
        evidence.recent[half : half + RECENT_BYTES] = bytes(RECENT_BYTES)
    if not own:
        return 0.0, 0.0
    new, full = _unseen(evidence.words, evidence.turn, own, 0)
    if 2 * full > 8 * WORD_BYTES:
        evidence.turn ^= 1
        half = evidence.turn * WORD_BYTES
        evidence.words[half : half + WORD_BYTES] = bytes(WORD_BYTES)
    far, _ = _unseen(evidence.recent, evidence.requests // RECENT % 2, own, 16)
    evidence.own_words = min(SETTLED, evidence.own_words + len(own))
    return new * evidence.own_words / SETTLED, far


def _unseen(table: bytearray, turn: int, marks: set[int], shift: int) -> tuple[float, int]:
    """The share of `marks` that neither generation of the table holds, and how many bits are set in the one
    that is being written, to which they are added.

    A new mark falls on a set bit as often as bits are set, which is made up for.
    """
    half = len(table) // 2
    one, two = int.from_bytes(table[:half]), int.from_bytes(table[half:])
    clear, own = 1.0 - (one | two).bit_count() / (8 * half), turn * half
    unseen = 0
    for mark in marks:
        at, bit = (mark >> shift >> 3) % half, 1 << (mark >> shift & 7)
        unseen += not (table[at] | table[half + at]) & bit
        table[own + at] |= bit
    full = (two if turn else one).bit_count() + unseen
    return unseen / len(marks) / max(clear, 0.1), full


def _use(evidence: Evidence, mark: int) -> int:
    """The number of the use that `mark` stands for, whose count it raises. A use has means of its own once it
    has come back a few times, in place of the one that was idle the longest; until then it counts as rest."""
    uses, now = evidence.uses, evidence.requests
    marks = uses[_USE::_USE]
    if mark in marks:
        use = 1 + marks.index(mark)
    elif _count(evidence.chunks, mark) < TEMPLATE:
        use = 0
    else:
        idle = uses[_USE + 4 :: _USE]
        use = 1 + idle.index(min(idle))
        if idle[use - 1] and now - idle[use - 1] < IDLE:
            use = 0
        else:
            uses[use * _USE : (use + 1) * _USE] = array("d", (mark, 0.0, 0.0, 0.0, 0.0))
            evidence.talks[use] = 255
            evidence.sums[use * _K : (use + 1) * _K] = array("f", bytes(4 * _K))
    uses[use * _USE + 1] = uses[use * _USE + 1] * _KEPT + 1.0
    uses[use * _USE + 4] = now + 1
    return use


def _even(evidence: Evidence, use: int, at: float) -> float:
    """1 where this request came as long after the one before it of its use as that one did, to a tenth."""
    uses, place = evidence.uses, use * _USE
    last, gap = uses[place + 2], uses[place + 3]
    now = at - last if last else 0.0
    uses[place + 2], uses[place + 3] = at, now
    return float(gap > 0.0 and 0.9 * gap <= now <= gap / 0.9)


def _followed(evidence: Evidence, use: int, seen: Seen) -> float:
    """1 where the conversation of one of the use's last requests went on, or this is one that does."""
    talks = evidence.talks
    if not seen.facts[0]:
        place = talks.find((seen.begun >> 16).to_bytes(2), USES) if seen.begun else -1
        if place >= 0 and (place - USES) % 3 == 0:
            talks[talks[place + 2]] = 0
        return 1.0
    place = USES + 3 * (evidence.requests % TALKS)
    talks[place : place + 3] = (seen.whole >> 16 << 8 | use).to_bytes(3)
    since = talks[use]
    talks[use] = min(255, since + 1)
    return float(since < FOLLOWED)


def _clock(evidence: Evidence, at: float) -> float:
    """In how many hours of the day before this one the account asked for something, as a share."""
    day, hour = divmod(int(at) // 3600, 24)
    known, today, before = evidence.hours >> 48, evidence.hours >> 24 & _DAY, evidence.hours & _DAY
    if day != known:
        before, today = today if day == known + 1 else 0, 0
    evidence.hours = (day & 0xFFFF) << 48 | (today | 1 << hour) << 24 | before
    return before.bit_count() / 24


def _chunks(start: blake2b, read: str) -> tuple[tuple[Chunk, ...], int]:
    """The chunks of a text, each once, and the number of its words. A chunk ends after a word whose last
    character has a code that 4 divides, or when it is full: so a change of one word moves few of its ends."""
    words = texts.words(read)
    found: dict[int, Chunk] = {}
    left, begin, last = CONTENT, 0, len(words)
    for end, word in enumerate(words, 1):
        if end < last and (end - begin < FEWEST or (ord(word[-1]) & 3 and end - begin < CHUNK)):
            continue
        run = words[begin:end]
        begin = end
        mark = _hash(start, " ".join(run))
        if mark not in found:
            content = [each for each in run if len(each) > 4 or each > "\u02ff"][:left] if left else ()
            left -= len(content)
            hashes = tuple([_hash(start, each) for each in content])
            found[mark] = Chunk(mark, len(run), not TASKS.isdisjoint(run[:3]), hashes)
    return tuple(found.values()), last


def _hash(start: blake2b, text: str) -> int:
    """32 bits. `start` has taken in the key alone: to copy it takes two thirds of the time of a new one."""
    hashed = start.copy()
    hashed.update(text.encode(errors="surrogatepass"))
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
