"""Moments to tens of microseconds on an event loop, whose own timers count milliseconds. Linux only."""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import time
from collections.abc import Callable
from itertools import count

MONOTONIC, NONBLOCK, ABSOLUTE = 1, os.O_NONBLOCK, 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls back at moments of `time.monotonic()`, in order, from the running loop."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(MONOTONIC, NONBLOCK)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "no timerfd")
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        asyncio.get_running_loop().add_reader(self._file, self._ring)

    def at(self, moment: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (moment, next(self._order), call))
        if self._due[0][0] == moment:
            self._set(moment)

    def _set(self, moment: float) -> None:
        seconds = int(moment)
        timer = _Timer(_Timespec(0, 0), _Timespec(seconds, max(1, int((moment - seconds) * 1e9))))
        self._libc.timerfd_settime(self._file, ABSOLUTE, ctypes.byref(timer), None)

    def _ring(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            return
        due = self._due
        while due and due[0][0] <= time.monotonic():
            heapq.heappop(due)[2]()
        if due:
            self._set(due[0][0])
