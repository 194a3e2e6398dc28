"""The deadlines of one request, one after another, by one timer."""

from __future__ import annotations

import asyncio
from math import inf
from types import TracebackType
from typing import Any, Self


class Patience:
    """Ends what its task waits for within `with` by TimeoutError, when the moment of the last `until` has
    come. Close it.

    A stream has two deadlines for each of its pieces, and next to none is ever reached. So to set one is to
    write it down; the timer looks at what is written when it fires, and is set anew then.
    """

    __slots__ = ("_before", "_due", "_fires", "_late", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        """For the task that is running."""
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._fires = self._due = inf
        self._late = False
        self._before = 0

    def within(self, seconds: float) -> Self:
        return self.until(self._loop.time() + seconds)

    def until(self, due: float) -> Self:
        """`due` is a time of the loop's clock."""
        self._due = due
        if due < self._fires:
            self._set(due)
        return self

    def __enter__(self) -> Self:
        self._before = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = inf
        if not self._late:
            return
        self._late = False
        # Others may have cancelled the task besides, whose end goes before
        if self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._fires = None, inf

    def _set(self, when: float) -> None:
        self.close()
        self._timer, self._fires = self._loop.call_at(when, self._fired), when

    def _fired(self) -> None:
        self._timer, self._fires = None, inf
        if self._due <= self._loop.time():
            self._late = True
            self._task.cancel()
        elif self._due < inf:
            self._set(self._due)
