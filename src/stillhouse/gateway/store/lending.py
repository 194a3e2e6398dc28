"""How far the counts on disk run ahead of what is granted, so that a grant need not wait for the disk.

What is on disk of a counter's newest slot is a bound: it is raised by a block before it is reached. All that
is older is written as it was used. Bounds end where the limit does: beyond it nothing is granted.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from stillhouse.guard.windows import KEPT, MOST, WIDTH, Code, Counters, packed

REQUESTS = 16  # of the size of the one that found the bound too near
UNLIMITED = 256  # where there is no limit that what is lent could be lost of
PART = 64  # of the limit of a sliding window that a block is, where that is more
LASTING = 100  # and that it is at most, where the window does not pass soon
EMPTY = packed([])


class Lent(Counters):
    """What is counted for a subject, and what of it is on disk. In the order of `Layout.nth`, `edges` holds
    three numbers of each counter: the newest slot on disk, the bound of what is used in it, and beyond how
    much more is to be lent; while others are being written, or when it is unknown whether they were, the
    lower of both. `blocks` holds two: how much to lend beyond what is used, and the limit. `as_used` says
    that nothing is lent, nor was granted since."""

    __slots__ = ("as_used", "asked", "blocks", "edges")

    def __init__(self, asked: int, codes: tuple[Code, ...] = (), numbers: bytes = b"") -> None:
        super().__init__(codes, numbers)
        self.asked = asked  # when, the last time
        self.as_used = True
        self.edges = EMPTY
        self.blocks = EMPTY

    def lend(self, nth: int, block: int, limit: int | None) -> None:
        at, most = 2 * nth, MOST if limit is None else min(limit, MOST)
        blocks = self.blocks
        if at >= len(blocks) or blocks[at] != block or blocks[at + 1] != most:
            changed = [*blocks, *[0] * (at + 2 - len(blocks))]
            changed[at : at + 2] = block, most
            self.blocks = packed(changed)

    def covers(self, begin: int, where: int) -> bool:
        """Whether what is used in a cell is on disk. It is where the disk knows of a newer slot: with a bound
        all that is older is written as it was used."""
        numbers, edges, nth = self.numbers, self.edges, self.layout.nth[begin]
        if 3 * nth >= len(edges) or (slot := edges[3 * nth]) != numbers[begin]:
            return False
        newest = begin + 1 + slot % KEPT[self.layout.limited[nth][1]]
        return where != newest or numbers[where] <= edges[3 * nth + 1]

    def ahead(self, at: Mapping[str, int]) -> tuple[array[int], array[int], bool]:
        """Numbers to write, with bounds a block beyond what is used; their edges, of which the half of the
        block is enough, or all of it if that reaches the limit; and whether the bounds are as near as that.
        What lay farther beyond, since more was in flight a moment ago, is halved from write to write: as much
        may come again."""
        numbers, old, blocks = self.numbers, self.edges, self.blocks
        bounds, edges, near = array("q", numbers), list[int](), True
        self.as_used = True
        for nth, (begin, window) in enumerate(self.layout.limited):
            slot, kept = numbers[begin], KEPT[window]
            where = begin + 1 + slot % kept
            bound = enough = numbers[where]
            block = blocks[2 * nth] if 2 * nth < len(blocks) else 0
            if block and slot == at[window]:
                used = sum(numbers[begin + 1 : begin + 1 + kept]) if window in WIDTH else bound
                left, more = max(0, blocks[2 * nth + 1] - used), block
                if 3 * nth < len(old) and old[3 * nth] == slot and old[3 * nth + 1] - bound >= 2 * block:
                    more += (old[3 * nth + 1] - bound - block) // 2
                    near = False
                enough += left if left <= more else more - block // 2
                bound += min(more, left)
                bounds[where] = bound
                self.as_used = self.as_used and not left
            edges += slot, bound, enough
        return bounds, packed(edges), near

    def in_doubt(self, edges: array[int]) -> None:
        """These are on disk, or what was there before."""
        self.edges = packed(list(map(min, self.edges, edges)))


def block(charge: int, limit: int | None, window: str) -> int:
    """How much to lend at once. What a crash leaves lent in a month, or for ever, is lost to the customer for
    that long, so there it is at most a hundredth of the limit, or one request."""
    if limit is None:
        return UNLIMITED * charge
    most = REQUESTS * charge
    return max(most, limit // PART) if window in WIDTH else min(most, max(charge, limit // LASTING))
