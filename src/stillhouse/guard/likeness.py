"""What is kept of an account for a month to tell whether others act as it does: how it asks (settings, the
words that its program sends each time), what it asks (smallest hashes of runs of its own words: MinHash with
one permutation, Li, Owen and Zhang 2012), and when. A fixed number of bytes, and no text.

Hashes are those of the guard's evidence, under its key; what the evidence knows for a program's template
never counts for the account's own words.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from datetime import UTC, datetime
from functools import lru_cache
from operator import or_
from zlib import crc32

from stillhouse.guard.evidence import Evidence, Packed, of_program
from stillhouse.guard.seen import Seen

REQUESTS = 128  # of a month's first: of later ones only the times count
SLOT, DAYS = 1800, 32  # seconds of a slot of time; days of slots, more than a month has
SETTINGS = 6  # that an account used most
WORDING, ASKED = 16, 64  # smallest hashes of a program's runs of words, and of own ones

EMPTY = 0xFFFF_FFFF
_SPREAD = 0x9E37_79B1  # odd, so that it is one to one on 32 bits
_SLOTS = DAYS * 86_400 // SLOT
_MARK = struct.Struct("=I")
_NUMBERS = struct.Struct("<HdddI")  # requests; the first, the last, the turn to another model; the model

# Where each part of a sketch's bytes begins.
_TIMES = _NUMBERS.size
_SETTINGS = _TIMES + _SLOTS // 8
_COUNTS = _SETTINGS + 4 * SETTINGS
_WORDING = _COUNTS + SETTINGS
_ASKED = _WORDING + 4 * WORDING
SIZE = _ASKED + 4 * ASKED


class Sketch(Packed):
    """What is kept of one account for a month, `SIZE` bytes and no text. Moments are in Unix seconds,
    `turned` is when a second model was first asked, 0 if never."""

    __slots__ = ()
    BLANK = bytes(_WORDING) + b"\xff" * (SIZE - _WORDING)

    @property
    def numbers(self) -> tuple[int, float, float, float, int]:
        """Requests, the first and the last, the turn, and the first model."""
        return _NUMBERS.unpack_from(self.row)

    @property
    def requests(self) -> int:
        return self.numbers[0]

    @property
    def slots(self) -> bytes:
        """A bit for each with a request."""
        return bytes(self.row[_TIMES:_SETTINGS])

    @property
    def settings(self) -> dict[int, int]:
        """Those used most, and how often."""
        marks = array("I", self.row[_SETTINGS:_COUNTS])
        return {mark: count for mark, count in zip(marks, self.row[_COUNTS:_WORDING], strict=True) if count}

    @property
    def wording(self) -> array[int]:
        return array("I", self.row[_WORDING:_ASKED])

    @property
    def asked(self) -> array[int]:
        return array("I", self.row[_ASKED:])


def note(sketch: Sketch, evidence: Evidence, seen: Seen, model: str) -> None:
    """Takes one request into the sketch, after `observe` took it into the evidence, which knows by then which
    runs of words the account's program sends each time. Time and memory do not depend on what came before."""
    if came(sketch, seen.at, model) > REQUESTS:
        return
    _count(sketch.row, seen.settings)
    hashes = memoryview(sketch.row)
    wording, asked = hashes[_WORDING:_ASKED].cast("I"), hashes[_ASKED:].cast("I")
    programs = of_program(evidence, seen.chunks)
    for mark, _, _, _ in seen.chunks:
        mixed = mark * _SPREAD & EMPTY
        if mark in programs:
            wording[mark % WORDING] = min(wording[mark % WORDING], mixed)
            if asked[mark % ASKED] == mixed:  # came before it was known for the program's
                asked[mark % ASKED] = EMPTY
        elif mixed < asked[mark % ASKED]:
            asked[mark % ASKED] = mixed


def came(sketch: Sketch, at: float, model: str) -> int:
    """That a request came, and when: all that counts of those after the first `REQUESTS`. How many came."""
    requests, first, _, turned, known = sketch.numbers
    requests, name = min(0xFFFF, requests + 1), crc32(model.encode(errors="surrogatepass"))
    if known and name != known and not turned:
        turned = at
    _NUMBERS.pack_into(sketch.row, 0, requests, first or at, at, turned, known or name)
    slot = int(at) // SLOT % _SLOTS
    sketch.row[_TIMES + (slot >> 3)] |= 1 << (slot & 7)
    return requests


def joined(one: Sketch, two: Sketch) -> Sketch:
    """What two replicas saw of one account in a month, each a part of its requests: as if one had seen all,
    but that either took its own first `REQUESTS`, and told the program's words by its own part."""
    if two.numbers[1] < one.numbers[1]:
        one, two = two, one
    requests, first, last, turned, model = one.numbers
    more, begun, ended, other, second = two.numbers
    turns = [moment for moment in (turned, begun if second != model else other) if moment]
    made = Sketch()
    _NUMBERS.pack_into(
        made.row, 0, min(0xFFFF, requests + more), first, max(last, ended), min(turns, default=0.0), model
    )
    made.row[_TIMES:_SETTINGS] = bytes(map(or_, one.slots, two.slots))
    used = Counter(one.settings) + Counter(two.settings)
    for place, (mark, count) in enumerate(used.most_common(SETTINGS)):
        _MARK.pack_into(made.row, _SETTINGS + 4 * place, mark)
        made.row[_COUNTS + place] = min(255, count)
    made.row[_WORDING:_ASKED] = array("I", map(min, one.wording, two.wording)).tobytes()
    made.row[_ASKED:] = array("I", map(min, one.asked, two.asked)).tobytes()
    return made


def _count(row: bytearray, settings: int) -> None:
    """A new one takes the place of the rarest, and begins at 1: counts are never too high."""
    marks, counts = memoryview(row)[_SETTINGS:_COUNTS].cast("I"), row[_COUNTS:_WORDING]
    for place, mark in enumerate(marks):
        if mark == settings and counts[place]:
            row[_COUNTS + place] = min(255, counts[place] + 1)
            return
    place = counts.index(min(counts))
    marks[place], row[_COUNTS + place] = settings, 1


@lru_cache(8)
def month_of(day: int) -> int:
    """Months since January 1970 (UTC), of a day counted from there."""
    when = datetime.fromtimestamp(day * 86_400, UTC)
    return 12 * (when.year - 1970) + when.month - 1
