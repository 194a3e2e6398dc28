"""Counters that forget: a sliding minute and day, the calendar month, and one that never forgets.

A stretch of W seconds is counted in slots of W / 12. What counts at a moment is every slot that overlaps the
W seconds before it, the oldest one whole: 13 slots, so that no stretch of W seconds, wherever it begins,
holds more than the limit. Times are whole microseconds since 1970 in UTC.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache

SECOND = 1_000_000
DAY = 86_400 * SECOND
WIDTH = {"minute": 5 * SECOND, "day": 7_200 * SECOND}
KEPT = {"minute": 13, "day": 13, "month": 2, "ever": 1}  # slots; of months this one and the one before
MOST = 2**53 - 1  # whole numbers are exact up to here in Lua
SMALL = 2**32 - 1

Code = tuple[str, str]  # what is counted, and in which window
_LAYOUTS: dict[tuple[Code, ...], Layout] = {}


def slots(now: int) -> dict[str, int]:
    """The number of the slot of each window that `now` lies in."""
    return {
        "minute": now // WIDTH["minute"],
        "day": now // WIDTH["day"],
        "month": month(now // DAY),
        "ever": 0,
    }


@lru_cache(maxsize=64)
def month(day: int) -> int:
    """Months since the year 0, of a day since 1970."""
    date = datetime.fromtimestamp(day * 86_400, UTC)
    return date.year * 12 + date.month - 1


@lru_cache(maxsize=64)
def begin_of_month(number: int) -> int:
    return int(datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC).timestamp()) * SECOND


class Layout(dict[Code, int]):
    """Where each counter begins: with the number of its newest slot, and then come the slots. `limited` has
    the beginnings and windows of those that a limit may be on, and `nth` tells which of them begins there."""

    __slots__ = ("length", "limited", "nth")

    def __init__(self, codes: tuple[Code, ...]) -> None:
        super().__init__()
        self.length = 0
        limited = []
        for code in codes:
            self[code] = self.length
            if is_limited(code):
                limited.append((self.length, code[1]))
            self.length += 1 + KEPT[code[1]]
        self.limited = tuple(limited)
        self.nth = {begin: nth for nth, (begin, _) in enumerate(limited)}


class Counters:
    """All that is counted for one subject, in one array. Most numbers are small, so it is one of 4 bytes each
    until one is not."""

    __slots__ = ("layout", "numbers")

    def __init__(self, codes: tuple[Code, ...] = (), numbers: bytes = b"") -> None:
        self.layout = _layout(codes)
        self.numbers = packed(array("q", numbers or bytes(8 * self.layout.length)))

    def put(self, where: int, number: int) -> None:
        """A number of at least 0; of a larger one than can be counted, as much as can be."""
        if number > SMALL:
            number = min(number, MOST)
            if self.numbers.typecode == "I":
                self.numbers = array("q", self.numbers)
        self.numbers[where] = number

    def packed_apart(self) -> list[tuple[Code, array[int]]]:
        """Each counter that holds something."""
        apart = ((code, self.numbers[at : at + 1 + KEPT[code[1]]]) for code, at in self.layout.items())
        return [(code, numbers) for code, numbers in apart if any(numbers[1:])]

    def at(self, code: Code, slot: int) -> int:
        """Where the counter begins, moved on to `slot` if that is newer; a new one where there was none."""
        begin = self.layout.get(code)
        numbers = self.numbers
        if begin is None:
            begin = len(numbers)
            self.numbers = numbers + array(numbers.typecode, [slot, *[0] * KEPT[code[1]]])  # no room to spare
            self.layout = _layout((*self.layout, code))
        elif (newest := numbers[begin]) < slot:
            kept = KEPT[code[1]]
            for old in range(max(newest, slot - kept) + 1, slot + 1):
                numbers[begin + 1 + old % kept] = 0
            numbers[begin] = slot
        return begin

    def look(self, code: Code, slot: int) -> tuple[int, int]:
        """What counts now, and where in `numbers` more of it is to be added."""
        begin = self.layout.get(code)
        if begin is None or self.numbers[begin] < slot:
            begin = self.at(code, slot)
        numbers = self.numbers
        if code[1] in WIDTH:
            return sum(numbers[begin + 1 : begin + 14]), begin + 1 + slot % 13
        where = begin + 1 + slot % KEPT[code[1]]
        return numbers[where], where

    def change(self, code: Code, since: int, now: int, amount: int) -> None:
        """Give back (`amount` below 0) or charge, in the slot `since` if it still counts. What a slot of the
        past was overrun by is charged now, since it was used until now."""
        sliding = code[1] in WIDTH
        slot = now if sliding and amount > 0 else since
        begin = self.at(code, now)
        kept = KEPT[code[1]]
        if slot > now - kept:
            where = begin + 1 + slot % kept
            self.put(where, max(0, self.numbers[where] + amount))

    def of_month(self, code: Code, month: int) -> int:
        """Of this month or the one before."""
        begin = self.layout[code]
        kept = month > self.numbers[begin] - KEPT["month"]
        return self.numbers[begin + 1 + month % 2] if kept else 0

    def enter(self, code: Code, since: int, now: int, amount: int) -> None:
        """Charge what was used in the slot `since`, if that still counts."""
        kept = KEPT[code[1]]
        if since > now - kept:
            where = self.at(code, now) + 1 + since % kept
            self.put(where, self.numbers[where] + amount)

    def newest(self, code: Code, slot: int) -> int | None:
        """The newest slot that counts with something in it."""
        begin = self.at(code, slot)
        kept = KEPT[code[1]]
        counted = kept if code[1] in WIDTH else 1
        for old in range(slot, slot - counted, -1):
            if self.numbers[begin + 1 + old % kept]:
                return old
        return None

    def oldest_first(self, code: Code, slot: int) -> Iterator[tuple[int, int]]:
        """The slots of a sliding window with what they hold."""
        begin = self.at(code, slot)
        for old in range(slot - 12, slot + 1):
            yield old, self.numbers[begin + 1 + old % 13]


def is_limited(code: Code) -> bool:
    """Whether a limit may be on it; `counting.py` keeps account of more, whose names have a space."""
    return " " not in code[0]


def packed(numbers: Sequence[int]) -> array[int]:
    """In 4 bytes each where that is enough."""
    try:
        return array("I", numbers)
    except OverflowError:
        return array("q", numbers)


def gone_at(window: str, slot: int) -> float:
    """When the slot no longer counts, in microseconds."""
    if window in WIDTH:
        return (slot + 13) * WIDTH[window]
    return begin_of_month(slot + 1) if window == "month" else math.inf


def _layout(codes: tuple[Code, ...]) -> Layout:
    """One for all subjects that count the same."""
    if codes not in _LAYOUTS:
        _LAYOUTS[codes] = Layout(codes)
    return _LAYOUTS[codes]
