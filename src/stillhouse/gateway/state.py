"""What the parts of the gateway share: what it serves, what it stands on, and what is known of a request."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from stillhouse.gateway.store.counts import Counts, StoreDown
from stillhouse.guard.accounts import Caller
from stillhouse.guard.asked import Asked, Route
from stillhouse.guard.config import Guard, Model
from stillhouse.guard.events import Counted, Ended
from stillhouse.guard.limits import Step, Used

if TYPE_CHECKING:
    import aiohttp

    from stillhouse.gateway.cascading import Cascading
    from stillhouse.gateway.metrics import Metrics
    from stillhouse.gateway.record import Record
    from stillhouse.gateway.store.accounts import Accounts
    from stillhouse.gateway.store.changing import Act
    from stillhouse.gateway.tracing import Traces
    from stillhouse.gateway.upstream import Behind
    from stillhouse.gateway.watcher import Watcher
    from stillhouse.guard.ladder import Standing
    from stillhouse.watermark import Key

_PROCESS = secrets.token_hex(8)  # a number a request costs less than asking the system for chance
_NUMBERS = count()
AGAIN = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)  # seconds between tries to settle


@dataclass(frozen=True, slots=True)
class Served:
    """A model with the servers behind it and its price."""

    config: Model
    behind: Sequence[Behind]
    schedule: str
    steps: tuple[Step, ...]
    cascade: Cascading | None = None  # with a student that answers first
    key: Key | None = None  # of the marks in its answers


@dataclass(slots=True)
class Gateway:
    """All that answering needs. A reload makes another one; requests under way keep theirs."""

    config: Guard
    models: Mapping[str, Served]
    accounts: Accounts
    pepper: bytes
    counts: Counts
    record: Record
    metrics: Metrics
    traces: Traces
    session: aiohttp.ClientSession
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    late: set[asyncio.Task[None]] = field(default_factory=set)
    watching: Watcher | None = None

    def forget(self, account: str, act: Act) -> None:
        """Erase what is known of the requests of an account, and its standing. Raises StorageError."""
        if self.watching is not None:
            self.watching.do(lambda steps: steps.forget(account, act.who, act.reason, act.at))

    def settle_later(self, id: str, used: Used) -> None:
        """Try again while the reservation stands; until then it counts whole."""
        task = asyncio.create_task(_settle_later(self.counts, id, used))
        self.late.add(task)
        task.add_done_callback(self.late.discard)


@dataclass(slots=True)
class Trail:
    """What is known so far of one request."""

    route: Route
    id: str = field(default_factory=lambda: f"req_{_PROCESS}{next(_NUMBERS):08x}")
    caller: Caller | None = None
    model: str = ""
    asked: Asked | None = None
    standing: Standing | None = None  # where a step is taken against its account
    behind: Behind | None = None
    status: int = 0
    ended: Ended = "failed"
    reason: str = ""
    used: tuple[int, int] = (0, 0)
    counted: Counted = "told"
    cost: int = 0
    added: float | None = None  # seconds until it was sent on
    first_byte: float | None = None
    changed: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()  # by which keys the answer is marked, as an event tells it
    began: bool = False  # the client was sent a first byte


async def _settle_later(counts: Counts, id: str, used: Used) -> None:
    for wait in AGAIN:
        await asyncio.sleep(wait)
        with suppress(StoreDown):
            await counts.settle(id, used)
            return
