"""Refusals, of which an account can have as many as it likes: beyond some in a minute only sums are kept."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from stillhouse.guard.events import Event, Minute, Part, Rate, Traffic, Usage, by_minute, totals

OWN = 60  # refusals of an account in a minute that are events of their own


class Sums(NamedTuple):
    usage: dict[Part, Usage]
    traffic: dict[Minute, Traffic]


class Refusals:
    """Events come from any thread, and sums are written by one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._minute = 0
        self._own: Counter[str] = Counter()
        self._sums = Sums({}, {})
        self._writing = Sums({}, {})

    def take(self, event: Event, rates: Mapping[str, Rate]) -> bool:
        """Whether it was one too many, and has gone into the sums."""
        if event.ended != "refused":
            return False
        with self._lock:
            minute = int(event.at // 60)
            if minute > self._minute:  # what came before and was refused only now counts with the others
                self._minute = minute
                self._own.clear()
            self._own[event.account] += 1
            if self._own[event.account] <= OWN:
                return False
            usage, traffic = self._sums
            for part, used in totals([event], rates).items():
                usage[part] = usage.get(part, Usage()).plus(used)
            for key, more in by_minute([event], rates).items():
                traffic[key] = traffic.get(key, Traffic()).plus(more)
            return True

    def to_write(self) -> Sums:
        """The same until they are `written`, since the store may fail."""
        if not self._writing.usage:
            with self._lock:
                self._writing, self._sums = self._sums, Sums({}, {})
        return self._writing

    def written(self) -> None:
        self._writing = Sums({}, {})

    def left(self) -> int:
        """How many are in sums that are not written."""
        return sum(used.requests for sums in (self._writing, self._sums) for used in sums.usage.values())
