"""Futures of the ledger's thread, awaited on the event loop.

`asyncio.wrap_future` wakes the loop once for each future. The ledger commits them in groups, so that one
wake-up for a group is enough; at a thousand answers a second the difference is felt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class Awaiting:
    """Call it with a future, on the loop's own thread, and await what it returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._woken = False

    def __call__(self, future: Future[Any]) -> asyncio.Future[Any]:
        awaited = self._loop.create_future()
        future.add_done_callback(lambda ended: self._put(awaited, ended))
        return awaited

    def _put(self, awaited: asyncio.Future[Any], ended: Future[Any]) -> None:
        """On whatever thread ends the future."""
        self._ended.append((awaited, ended))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop has closed: nobody is waiting any more
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        # First, so that what ends from here on wakes the loop again, perhaps for nothing
        self._woken = False
        while self._ended:
            awaited, ended = self._ended.popleft()
            if awaited.done():  # cancelled
                continue
            error = ended.exception()
            if error is None:
                awaited.set_result(ended.result())
            else:
                awaited.set_exception(error)
