"""A thread that works off what requests leave behind, so that they need not wait for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from stillhouse.errors import StorageError

T = TypeVar("T")

RETRY = 1.0  # seconds


class Worker(Generic[T]):
    """`work` gets what was put, in order, at most `batch` items at a time, as soon as so many wait or
    `linger` seconds after they came. When it raises it gets the same items again a second later, and `failed`
    gets the error, once until it works again. `beat` is called every `linger` seconds, and with True at the
    end.

    Every method may be called from any thread.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[T]], None],
        *,
        batch: int,
        linger: float,
        failed: Callable[[Exception], None],
        beat: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.failing: float | None = None  # since when, on the monotonic clock
        self._work = work
        self._beat = beat
        self._failed = failed
        self._most = batch
        self._linger = linger
        self._waiting: deque[T | Future[None]] = deque()
        self._batch: list[T] = []
        self._marks: list[Future[None]] = []
        self._wake = threading.Event()
        self._ending: float | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many items wait, or are being worked on."""
        return len(self._waiting) + len(self._batch)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def put(self, item: T) -> None:
        """Never waits."""
        self._waiting.append(item)
        if len(self._waiting) == self._most:
            self._wake.set()

    def flush(self, seconds: float | None = None) -> None:
        """Wait until all that was put before is done. Raises TimeoutError when it is not after so long, and
        StorageError when it never will be, because the worker was closed."""
        mark: Future[None] = Future()
        self._waiting.append(mark)
        self._wake.set()
        mark.result(seconds)

    def close(self, seconds: float) -> list[T]:
        """Work off what waits, for at most so long when it fails; what could not be done."""
        self._ending = time.monotonic() + seconds
        self._wake.set()
        self._thread.join()
        left = list(self._batch)
        for item in self._waiting:
            if isinstance(item, Future):
                self._marks.append(item)
            else:
                left.append(item)
        for mark in self._marks:
            mark.set_exception(StorageError("not everything was written", "the store failed until the end"))
        return left

    def _serve(self) -> None:
        while True:
            self._wake.wait(self._linger if self.failing is None else RETRY)
            self._wake.clear()
            ending = self._ending
            try:
                # What comes meanwhile waits for its turn, or each commit would be followed by a small one.
                self._work_some()
                while len(self._waiting) >= self._most or (ending is not None and self._waiting):
                    self._work_some()
                self._beat(ending is not None)
                self.failing = None
            except Exception as error:
                if self.failing is None:
                    self.failing = time.monotonic()
                    self._failed(error)
            if ending is not None and (self.failing is None or time.monotonic() > ending):
                return

    def _work_some(self) -> None:
        while self._waiting and not self._marks and len(self._batch) < self._most:
            item = self._waiting.popleft()
            if isinstance(item, Future):
                self._marks.append(item)  # it stands for what came before, and ends the batch
            else:
                self._batch.append(item)
        if self._batch:
            self._work(self._batch)
            self._batch = []
        for mark in self._marks:
            mark.set_result(None)
        self._marks = []
