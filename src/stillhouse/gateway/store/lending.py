"""How far the counts on disk run ahead of what is granted, so that a grant need not wait for the disk.

What is on disk of a counter's newest slot is a bound: it is raised by a block before it is reached. All that
is older is written as it was used. Bounds end where the limit does: beyond it nothing is granted.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from stillhouse.guard.windows import KEPT, MOST, WIDTH, Code, Counters

REQUESTS = 16  # of the size of the one that found the bound too near
UNLIMITED = 256  # where there is no limit that what is lent could be lost of
PART = 64  # of the limit of a sliding window that a block is, where that is more
LASTING = 100  # and that it is at most, where the window does not pass soon

Block = tuple[int, int | None]  # how much to lend beyond what is used, and the limit if there is one


class Lent:
    """Of one subject: `bounds` are the numbers on disk; while others are being written, or when it is unknown
    whether they were, the lower of both. Beyond `enough` of a cell, more is to be lent."""

    __slots__ = ("blocks", "bounds", "enough")

    def __init__(self, bounds: array[int]) -> None:
        self.bounds = self.enough = bounds
        self.blocks: dict[Code, Block] = {}

    def covers(self, numbers: array[int], begin: int, where: int) -> bool:
        bounds = self.bounds
        return where < len(bounds) and bounds[begin] == numbers[begin] and numbers[where] <= bounds[where]

    def ahead(self, counters: Counters, at: Mapping[str, int]) -> tuple[array[int], array[int], bool]:
        """Bounds a block beyond what is used; how far they are enough: to the half of the block, or to the
        limit if they reach it; and whether they are as near as that. What lay farther beyond, since more was
        in flight a moment ago, is halved from write to write: as much may come again."""
        numbers, old = counters.numbers, self.bounds
        bounds, enough, near = numbers[:], numbers[:], True
        for code, (block, limit) in self.blocks.items():
            begin, slot, kept = counters.layout[code], at[code[1]], KEPT[code[1]]
            if numbers[begin] != slot:
                continue
            where = begin + 1 + slot % kept
            used = sum(numbers[begin + 1 : begin + 1 + kept]) if code[1] in WIDTH else numbers[where]
            left = max(0, (MOST if limit is None else min(limit, MOST)) - used)
            more = block
            if where < len(old) and old[begin] == slot and old[where] - numbers[where] >= 2 * block:
                more += (old[where] - numbers[where] - block) // 2
                near = False
            bounds[where] += min(more, left)
            enough[where] += left if left <= more else more - block // 2
        return bounds, enough, near

    def written(self, bounds: array[int], enough: array[int]) -> None:
        self.bounds, self.enough = bounds, enough

    def in_doubt(self, bounds: array[int], enough: array[int]) -> None:
        """These are on disk, or what was there before."""
        self.bounds = array("q", map(min, self.bounds, bounds))
        self.enough = array("q", map(min, self.enough, enough))


def block(charge: int, limit: int | None, window: str) -> int:
    """How much to lend at once. What a crash leaves lent in a month, or for ever, is lost to the customer for
    that long, so there it is at most a hundredth of the limit, or one request."""
    if limit is None:
        return UNLIMITED * charge
    most = REQUESTS * charge
    return max(most, limit // PART) if window in WIDTH else min(most, max(charge, limit // LASTING))
