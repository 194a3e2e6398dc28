"""What is kept of an account for a month to tell whether others act as it does: how it asks (settings, the
words that its program sends each time), what it asks (smallest hashes of runs of its own words: MinHash with
one permutation, Li, Owen and Zhang 2012), and when. A fixed number of bytes, and no text.

Hashes are those of the guard's evidence, under its key; what the evidence knows for a program's template
never counts for the account's own words.
"""

from __future__ import annotations

import struct
from array import array
from zlib import crc32

from stillhouse.guard.evidence import CELLS, TEMPLATE, Evidence, Seen

REQUESTS = 128  # of a month's first: of later ones only the times count
SLOT, DAYS = 1800, 32  # seconds of a slot of time; days of slots, more than a month has
SETTINGS = 6  # that an account used most
WORDING, ASKED = 16, 64  # smallest hashes of a program's runs of words, and of own ones

EMPTY = 0xFFFF_FFFF
_SPREAD = 0x9E37_79B1  # odd, so that it is one to one on 32 bits
_SLOTS = DAYS * 86_400 // SLOT
_NUMBERS = struct.Struct("<HdddI")


class Sketch:
    """What is kept of one account for a month: `SIZE` bytes packed, and no text."""

    __slots__ = (
        "asked",
        "counts",
        "first",
        "last",
        "model",
        "requests",
        "settings",
        "slots",
        "turned",
        "wording",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.first = self.last = 0.0  # Unix seconds
        self.turned = 0.0  # when a second model was first asked, 0 if never
        self.model = 0
        self.slots = bytearray(_SLOTS // 8)
        self.settings = array("I", bytes(4 * SETTINGS))
        self.counts = bytearray(SETTINGS)
        self.wording = array("I", [EMPTY]) * WORDING
        self.asked = array("I", [EMPTY]) * ASKED

    def packed(self) -> bytes:
        return b"".join(
            (
                _NUMBERS.pack(self.requests, self.first, self.last, self.turned, self.model),
                self.slots,
                self.settings.tobytes(),
                self.counts,
                self.wording.tobytes(),
                self.asked.tobytes(),
            )
        )

    @classmethod
    def unpacked(cls, data: bytes) -> Sketch:
        """Raises ValueError for what `packed` did not write."""
        if len(data) != SIZE:
            raise ValueError(f"an account's sketch has {SIZE} bytes, and these are {len(data)}")
        made, at = cls(), _NUMBERS.size
        made.requests, made.first, made.last, made.turned, made.model = _NUMBERS.unpack(data[:at])
        for name in ("slots", "settings", "counts", "wording", "asked"):
            held = getattr(made, name)
            size = len(held) * getattr(held, "itemsize", 1)
            part = data[at : at + size]
            setattr(made, name, bytearray(part) if isinstance(held, bytearray) else array("I", part))
            at += size
        return made


SIZE = _NUMBERS.size + _SLOTS // 8 + 5 * SETTINGS + 4 * (WORDING + ASKED)


def note(sketch: Sketch, evidence: Evidence, seen: Seen, model: str) -> None:
    """Takes one request into the sketch, after `observe` took it into the evidence, which knows by then which
    runs of words the account's program sends each time. Time and memory do not depend on what came before."""
    came(sketch, seen.at, model)
    if sketch.requests > REQUESTS:
        return
    _count(sketch, seen.settings)
    cells, wording, asked = evidence.chunks, sketch.wording, sketch.asked
    for chunk in seen.chunks:
        mark = chunk.hash
        at = 2 * (mark % CELLS)
        mixed = mark * _SPREAD & EMPTY
        if cells[at] == mark >> 24 and cells[at + 1] > TEMPLATE:
            wording[mark % WORDING] = min(wording[mark % WORDING], mixed)
            if asked[mark % ASKED] == mixed:  # came before it was known for the program's
                asked[mark % ASKED] = EMPTY
        elif mixed < asked[mark % ASKED]:
            asked[mark % ASKED] = mixed


def came(sketch: Sketch, at: float, model: str) -> None:
    """That a request came, and when: all that counts of those after the first `REQUESTS`."""
    sketch.requests = min(0xFFFF, sketch.requests + 1)
    sketch.first, sketch.last = sketch.first or at, at
    name = crc32(model.encode())
    if not sketch.model:
        sketch.model = name
    elif name != sketch.model and not sketch.turned:
        sketch.turned = at
    slot = int(at) // SLOT % _SLOTS
    sketch.slots[slot >> 3] |= 1 << (slot & 7)


def _count(sketch: Sketch, settings: int) -> None:
    """A new one takes the place of the rarest, and begins at 1: counts are never too high."""
    marks, counts = sketch.settings, sketch.counts
    for place, mark in enumerate(marks):
        if mark == settings and counts[place]:
            counts[place] = min(255, counts[place] + 1)
            return
    place = counts.index(min(counts))
    marks[place], counts[place] = settings, 1
