"""What the requests of one account come to, in a fixed number of bytes, and none of their text.

Chunks and content words of a request (`seen`) are kept only as traces of keyed hashes in small tables that
later requests overwrite: what an account sends again and again is known for its template, and all else is its
own text, of which alone is asked whether it is new.

Requests that one program sends share their settings and their template. Each such use has running means of
its own, so that questions of another kind do not vanish in an account's ordinary traffic.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain
from typing import ClassVar, Final, Self

from stillhouse.guard.seen import FACTS, Chunk, Seen

CELLS = 768  # of the table of chunks: a fingerprint of eight bits and a count of four
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

# What a request shows beside those before it; each from 0 to 1.
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
_K = len(FEATURES)
_DAY = (1 << 24) - 1
_KEPT = 1.0 - 1.0 / FADES
_NUMBERS = struct.Struct("<QdHBQ")  # requests; the same, fading; own words; turn; hours
_MARK = struct.Struct("<I")
_MARKS = struct.Struct(f"<{USES}I")
_TIMES = struct.Struct("<ddd")  # of a use: requests, fading; when the last one came; after how many seconds
_SUMS = struct.Struct(f"<{_K}f")

# Where each part of an account's bytes begins.
_TRACES = _NUMBERS.size  # of chunks: a byte for each cell
_COUNTS = _TRACES + CELLS  # four bits for each cell
_WORDS = _COUNTS + CELLS // 2
_RECENT = _WORDS + 2 * WORD_BYTES
_SINCE = _RECENT + 2 * RECENT_BYTES  # of each use the requests since one was followed
_TALKS = _SINCE + USES  # marks of 16 bits and the uses they are of
_USED = _TALKS + 3 * TALKS  # marks of the uses
_LAST = _USED + _MARKS.size  # the number of the request after which each use came last
_TIMED = _LAST + _MARKS.size
_SUMMED = _TIMED + USES * _TIMES.size  # of each use, and of the account
SIZE = _SUMMED + (USES + 1) * _SUMS.size


class Packed:
    """What is held of one account: `row`, of as many bytes whatever the account sent, and nothing beside, so
    that it is written down as it is."""

    __slots__ = ("row",)
    BLANK: ClassVar[bytes]  # of an account that sent nothing

    def __init__(self) -> None:
        self.row = bytearray(self.BLANK)

    def packed(self) -> bytes:
        return bytes(self.row)

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Raises ValueError for what `packed` did not write."""
        if len(data) != len(cls.BLANK):
            what = cls.__name__.lower()
            raise ValueError(f"an account's {what} has {len(cls.BLANK)} bytes, and these are {len(data)}")
        made = cls.__new__(cls)
        made.row = bytearray(data)
        return made


class Evidence(Packed):
    """The state of one account, `SIZE` bytes."""

    __slots__ = ()
    BLANK = bytes(_SINCE) + b"\xff" * USES + bytes(SIZE - _TALKS)

    @property
    def requests(self) -> int:
        return int(_NUMBERS.unpack_from(self.row)[0])


def observe(evidence: Evidence, seen: Seen) -> int:
    """Takes one request into the state, and says under which of its uses. Neither time nor memory depends on
    what came before."""
    row = evidence.row
    requests, weight, own_words, turn, hours = _NUMBERS.unpack_from(row)
    repeat = _count(row, seen.whole) > 0
    held = [_count(row, chunk[0]) for chunk in seen.chunks]
    size = sum([chunk[1] for chunk in seen.chunks])
    known = [chunk for chunk, count in zip(seen.chunks, held, strict=True) if count >= TEMPLATE]
    bound, own_chunks, mark = sum([chunk[1] for chunk in known]), seen.chunks, 0
    if not repeat and bound >= max(LEAST, BOUND * size):
        own_chunks = tuple(chunk for chunk, count in zip(seen.chunks, held, strict=True) if count < TEMPLATE)
        mark = known[0][0]
    else:
        bound = 0
    own = set(chain.from_iterable([chunk[3] for chunk in own_chunks]))
    own_size, asks = size - bound, bool(own_chunks) and own_chunks[0][2]
    own_words = min(SETTLED, own_words + len(own))
    new, far, turn = _novelty(row, requests, turn, own)
    new = new * own_words / SETTLED
    ratio = seen.output_tokens / (seen.output_tokens + 4.0 * own_size + 1.0)
    fresh = seen.facts[0] * (not repeat)
    program = seen.settings ^ mark
    use, even = _use(row, requests, program ^ TASK if fresh and 0 < own_size <= SHORT else program, seen.at)
    hours = _hours(hours, seen.at)
    beside = (
        new,
        far,
        float(repeat),
        bound / size if bound else 0.0,
        float(asks),
        ratio,
        fresh * asks * min(1.0, new * far) * ratio,
        even,
        (hours & _DAY).bit_count() / 24,
        _followed(row, requests, use, seen),
    )
    features = seen.facts + beside
    for at in (_SUMMED + use * _SUMS.size, _SUMMED + USES * _SUMS.size):
        sums = _SUMS.unpack_from(row, at)
        _SUMS.pack_into(
            row, at, *[total * _KEPT + value for total, value in zip(sums, features, strict=True)]
        )
    _NUMBERS.pack_into(row, 0, requests + 1, weight * _KEPT + 1.0, own_words, turn, hours)
    return use


def means_of(evidence: Evidence, use: int) -> tuple[tuple[float, ...], float, tuple[float, ...], float]:
    """Fading sums of `FEATURES` and numbers of requests: of a use, and of the whole account."""
    row = evidence.row
    own, all_ = (_SUMS.unpack_from(row, _SUMMED + each * _SUMS.size) for each in (use, USES))
    return own, _TIMES.unpack_from(row, _TIMED + use * _TIMES.size)[0], all_, _NUMBERS.unpack_from(row)[1]


def last_time(evidence: Evidence, use: int) -> float:
    """When the last request of a use came (Unix seconds)."""
    return float(_TIMES.unpack_from(evidence.row, _TIMED + use * _TIMES.size)[1])


def last_day(evidence: Evidence) -> int:
    """The day of the last request, counted from 1970-01-01 (UTC); 0 before the first."""
    return int(_NUMBERS.unpack_from(evidence.row)[4]) >> 48


def of_program(evidence: Evidence, chunks: Iterable[Chunk]) -> set[int]:
    """The hashes of those chunks that the account sent so often that they count for its program's."""
    row, found = evidence.row, set()
    for mark, _, _, _ in chunks:
        cell = mark % CELLS
        if (
            row[_COUNTS + (cell >> 1)] >> ((cell & 1) << 2) & 15 > TEMPLATE
            and row[_TRACES + cell] == mark >> 24
        ):
            found.add(mark)
    return found


def _count(row: bytearray, mark: int) -> int:
    """How often the table has lately met `mark`, and counts it once more. A cell is its mark's until others
    have come there as often: the majority rule of Boyer and Moore, in each cell."""
    cell, trace = mark % CELLS, mark >> 24
    at, shift = _COUNTS + (cell >> 1), (cell & 1) << 2
    held = row[at] >> shift & 15
    if held and row[_TRACES + cell] == trace:
        if held < COUNTED:
            row[at] += 1 << shift
        return held
    if held > 1:
        row[at] -= 1 << shift
    else:
        row[_TRACES + cell] = trace
        row[at] += (1 - held) << shift
    return 0


def _novelty(row: bytearray, requests: int, turn: int, own: set[int]) -> tuple[float, float, int]:
    """Shares of the content words of own text that the account never used, and not in its last requests; and
    which generation of words is written next."""
    if requests % RECENT == 0:
        half = _RECENT + requests // RECENT % 2 * RECENT_BYTES
        row[half : half + RECENT_BYTES] = bytes(RECENT_BYTES)
    if not own:
        return 0.0, 0.0, turn
    new, full = _unseen(row, _WORDS, WORD_BYTES, turn, own, 0)
    if 2 * full > 8 * WORD_BYTES:
        turn ^= 1
        half = _WORDS + turn * WORD_BYTES
        row[half : half + WORD_BYTES] = bytes(WORD_BYTES)
    far, _ = _unseen(row, _RECENT, RECENT_BYTES, requests // RECENT % 2, own, 16)
    return new, far, turn


def _unseen(
    row: bytearray, begin: int, size: int, turn: int, marks: set[int], shift: int
) -> tuple[float, int]:
    """The share of `marks` that neither generation of a table holds, and how many bits are set in the one
    that is being written, to which they are added. The table has twice `size` bytes from `begin` on.

    A new mark falls on a set bit as often as bits are set, which is made up for.
    """
    middle = begin + size
    one, two = int.from_bytes(row[begin:middle]), int.from_bytes(row[middle : middle + size])
    clear = 1.0 - (one | two).bit_count() / (8 * size)
    own, other = (middle, begin) if turn else (begin, middle)
    unseen = 0
    for mark in marks:
        at, bit = (mark >> shift >> 3) % size, 1 << (mark >> shift & 7)
        held = row[own + at]
        if not held & bit:
            row[own + at] = held | bit
            unseen += not row[other + at] & bit
    full = (two if turn else one).bit_count() + unseen
    return unseen / len(marks) / max(clear, 0.1), full


def _use(row: bytearray, requests: int, mark: int, at: float) -> tuple[int, float]:
    """The number of the use that `mark` stands for, whose count it raises; and 1 where this request came as
    long after the one before it of its use as that one did, to a tenth. A use has means of its own once it
    has come back a few times, in place of the one that was idle the longest; until then it counts as rest."""
    marks = _MARKS.unpack_from(row, _USED)
    if mark in marks[1:]:
        use = marks.index(mark, 1)
    elif _count(row, mark) < TEMPLATE:
        use = 0
    else:
        last = _MARKS.unpack_from(row, _LAST)
        use = last.index(min(last[1:]), 1)
        if last[use] and requests - last[use] < IDLE:
            use = 0
        else:
            _MARK.pack_into(row, _USED + use * _MARK.size, mark)
            row[_SINCE + use] = 255
            for begin, size in ((_TIMED, _TIMES.size), (_SUMMED, _SUMS.size)):
                row[begin + use * size : begin + (use + 1) * size] = bytes(size)
    _MARK.pack_into(row, _LAST + use * _MARK.size, requests + 1)
    number, before, gap = _TIMES.unpack_from(row, _TIMED + use * _TIMES.size)
    now = at - before if before else 0.0
    _TIMES.pack_into(row, _TIMED + use * _TIMES.size, number * _KEPT + 1.0, at, now)
    return use, float(gap > 0.0 and 0.9 * gap <= now <= gap / 0.9)


def _followed(row: bytearray, requests: int, use: int, seen: Seen) -> float:
    """1 where the conversation of one of the use's last requests went on, or this is one that does."""
    if not seen.facts[0]:
        place = row.find((seen.begun >> 16).to_bytes(2), _TALKS, _USED) if seen.begun else -1
        if place >= 0 and (place - _TALKS) % 3 == 0:
            row[_SINCE + row[place + 2]] = 0
        return 1.0
    place = _TALKS + 3 * (requests % TALKS)
    row[place : place + 3] = (seen.whole >> 16 << 8 | use).to_bytes(3)
    since = row[_SINCE + use]
    row[_SINCE + use] = min(255, since + 1)
    return float(since < FOLLOWED)


def _hours(hours: int, at: float) -> int:
    """A day since 1970, a bit for each of its hours, one for each of the day before; and now for this one."""
    day, hour = divmod(int(at) // 3600, 24)
    known, today, before = hours >> 48, hours >> 24 & _DAY, hours & _DAY
    if day != known:
        before, today = today if day == known + 1 else 0, 0
    return (day & 0xFFFF) << 48 | (today | 1 << hour) << 24 | before
