"""Where the limits are counted: `local.py` for one process, `redis.py` for replicas that share one Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from stillhouse.errors import StillhouseError
from stillhouse.guard.limits import Granted, Refused, Used, Wanted


class StoreDown(StillhouseError):
    """The counts cannot be read or kept now, so nothing may be granted."""


class CountsLost(StoreDown):
    """Redis answers, but was emptied or is new: what was used before has to be entered again by `rebuild`."""


class Counts(Protocol):
    """Every method raises StoreDown when the store cannot be reached or has lost its counts."""

    async def reserve(self, wanted: Wanted) -> Granted | Refused:
        """Charge the bounds of the request to all of its subjects, or to none. What is granted outlives the
        process and the store's."""
        ...

    async def full(self, wanted: Wanted) -> Refused | None:
        """Why `reserve` would refuse it for certain; None where it might not. Charges nothing."""
        ...

    async def settle(self, id: str, used: Used) -> int:
        """Give back what was not used; what it cost, in billionths of a dollar. Twice is as once. StoreDown
        also for a reservation that nobody knows any more: it stays charged whole."""
        ...

    async def standing(self, subject: str) -> Mapping[tuple[str, str], int]:
        """What counts now of a subject, by measure and window."""
        ...

    async def close(self) -> None: ...
