"""Whose key it is: what the register says, held in memory and never older than a second.

Every trip to the database reads first what changed since the one before, then the callers that somebody waits
for; so nothing that is held here outlives its change, and any number of unknown keys costs few queries.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.register import Look, Register
from stillhouse.guard import config
from stillhouse.guard.accounts import Caller

Answer = TypeVar("Answer")

REFRESH_SECONDS = 0.4  # older than this, what is held is looked at again beside the request
FRESH_SECONDS = 0.9  # older than this, the request waits for that
LOOK_SECONDS = 5.0  # a database that takes longer counts as down
AGAIN_SECONDS = 0.25  # between two attempts while it is down
HELD = 50_000  # callers in memory, the longest unused go first
UNKNOWN = 20_000  # digests that are nobody's, of which the database need not be asked again
WAITING = 2_000  # digests that wait for the database at once; a flood beyond them is refused
BATCH = 200  # digests in one query


class Accounts:
    """Belongs to one event loop. `find` is for each request, `ask` and `order` for the administration."""

    def __init__(
        self,
        store: config.Store,
        pepper: bytes,
        clock: Callable[[], float] = time.monotonic,
        held: int = HELD,
    ) -> None:
        """Raises StoreDown when the database cannot be opened, and UsageError for another pepper."""
        self._stale_seconds = store.stale_seconds
        self._clock = clock
        self._held = held
        self._reader = Register(store, pepper)
        self._writer = Register(store, pepper)
        self._reading = ThreadPoolExecutor(1, "accounts-read")
        self._writing = ThreadPoolExecutor(1, "accounts-write")
        self._callers: OrderedDict[bytes, Caller] = OrderedDict()
        self._unknown: set[bytes] = set()
        self._waiting: dict[bytes, asyncio.Future[Caller | None]] = {}
        self._revision = 0
        self._begun = self._learnt = 0  # trips, and which of them came back last
        self._seen = float("-inf")  # when the last trip that came back had begun
        self._tried = float("-inf")
        self._fault: StoreDown | None = None
        self._trip: asyncio.Task[None] | None = None

    async def find(self, digest: bytes, costs: bool = True) -> Caller | None:
        """Whose key has this digest; None: nobody's.

        While the database is down known callers are told for `stale_seconds` to requests that `costs` no
        money. Raises StoreDown for all others: they must not pass on what may have been blocked meanwhile.
        """
        age = self._clock() - self._seen
        if age > REFRESH_SECONDS:
            trip = self._look_again()
            if age > FRESH_SECONDS:
                if trip is not None:
                    await asyncio.shield(trip)
                if self._fault is not None:
                    return self._known_before(digest, costs)
        caller = self._callers.get(digest)
        if caller is not None:
            self._callers.move_to_end(digest)
            return caller
        if digest in self._unknown:
            return None
        return await self._looked_up(digest)

    async def ask(self, question: Callable[[Register], Answer]) -> Answer:
        """What the register answers, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, question, self._writer)

    async def order(self, act: Callable[[Register], Answer]) -> Answer:
        """An act of the administration, in a thread; when this returns it is on disk, and `find` knows it."""
        done = await self.ask(act)
        begun = self._begun
        while self._learnt <= begun and (trip := self._look_again()) is not None:
            await asyncio.shield(trip)
        return done

    async def close(self) -> None:
        if self._trip is not None:
            await asyncio.wait([self._trip])
        for pool, register in ((self._reading, self._reader), (self._writing, self._writer)):
            await asyncio.get_running_loop().run_in_executor(pool, register.close)
            pool.shutdown(wait=False)

    def _known_before(self, digest: bytes, costs: bool) -> Caller | None:
        caller = self._callers.get(digest)
        if caller is None or costs or self._clock() - self._seen > self._stale_seconds:
            raise self._down()
        return caller

    async def _looked_up(self, digest: bytes) -> Caller | None:
        future = self._waiting.get(digest)
        if future is None:
            if len(self._waiting) >= WAITING:
                raise StoreDown(
                    "too many unknown keys at once", "the database is asked for so many already", "try again"
                )
            future = self._waiting[digest] = asyncio.get_running_loop().create_future()
        if self._look_again() is None:
            self._waiting.pop(digest)
            raise self._down()
        return await asyncio.shield(future)

    def _down(self) -> StoreDown:
        fault = self._fault
        assert fault is not None
        return StoreDown(fault.what, fault.why, fault.mend)

    def _look_again(self) -> asyncio.Task[None] | None:
        """The trip that is under way, or a new one; None where the last one failed a moment ago."""
        if self._trip is None or self._trip.done():
            if self._fault is not None and self._clock() - self._tried < AGAIN_SECONDS:
                return None
            self._trip = asyncio.get_running_loop().create_task(self._look())
        return self._trip

    async def _look(self) -> None:
        """One trip, and further ones while somebody waits. Whatever fails is a fault: callers are refused."""
        loop = asyncio.get_running_loop()
        while True:
            wanted = list(islice(self._waiting, BATCH))
            self._tried = began = self._clock()
            self._begun += 1
            looking = loop.run_in_executor(self._reading, self._reader.look, self._revision, wanted)
            try:
                look = await asyncio.wait_for(looking, LOOK_SECONDS)
            except Exception as error:
                self._fault = _fault(error)
                for future in self._waiting.values():
                    if not future.done():
                        future.set_exception(self._down())
                        future.exception()  # who waited for it may have left
                self._waiting.clear()
                return
            self._fault, self._seen, self._learnt = None, began, self._begun
            self._learn(look, wanted)
            if not self._waiting:
                return

    def _learn(self, look: Look, wanted: list[bytes]) -> None:
        if look.changed is None:
            self._callers.clear()
        else:
            for digest in look.changed:
                self._callers.pop(digest, None)
        if look.revision != self._revision or len(self._unknown) >= UNKNOWN:
            self._unknown.clear()
        self._revision = look.revision
        for digest in wanted:
            caller = look.callers.get(digest)
            if caller is None:
                self._unknown.add(digest)
            else:
                self._callers[caller.key.digest] = caller
            future = self._waiting.pop(digest)
            if not future.done():
                future.set_result(caller)
        while len(self._callers) > self._held:
            self._callers.popitem(last=False)


def _fault(error: Exception) -> StoreDown:
    if isinstance(error, StoreDown):
        return error
    why = f"no answer for {LOOK_SECONDS:.0f} s" if isinstance(error, TimeoutError) else repr(error)
    return StoreDown("the accounts cannot be read", why, "see that their database answers")
