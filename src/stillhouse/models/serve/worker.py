"""The thread that holds the model and a running batch.

Requests join the batch between two steps and leave it when they are answered or when their client has gone.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stillhouse.models.local import Decoder, Event, LocalModel, Request, score
from stillhouse.models.serve import MAX_ROWS

_GATHER_SECONDS = 0.006  # how long an idle batch waits for company when the last one had some
_PATIENCE_STEPS = 4  # newcomers are read in together, at the latest after so many steps

Sink = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Job:
    key: Hashable
    request: Request
    watched: bool
    sink: Sink


@dataclass(frozen=True, slots=True)
class Scoring:
    texts: Sequence[Sequence[int]]
    top: int
    sink: Sink


@dataclass(frozen=True, slots=True)
class Cancel:
    keys: Sequence[Hashable]


class Worker(threading.Thread):
    """Runs the model. `put` takes jobs from any thread; sinks are called on the event loop `loop`."""

    def __init__(self, model: LocalModel, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="model", daemon=True)
        self.model = model
        self.loop = loop
        self.inbox: queue.SimpleQueue[Job | Scoring | Cancel | None] = queue.SimpleQueue()
        self.waiting: deque[Job] = deque()
        self.sinks: dict[Hashable, Sink] = {}
        self.decoder = Decoder(model)
        self.crowded = False
        self.cancelled = 0
        self.steps_since_newcomers = 0

    def put(self, command: Job | Scoring | Cancel | None) -> None:
        self.inbox.put(command)

    def load(self) -> int:
        """Requests that are waiting or under way, about; asked from another thread."""
        return self.inbox.qsize() + len(self.waiting) + len(self.decoder)

    def run(self) -> None:
        while True:
            commands = self._arrivals()
            if None in commands:
                return
            self.waiting.extend(c for c in commands if isinstance(c, Job))
            try:
                if scorings := [c for c in commands if isinstance(c, Scoring)]:
                    self._score(scorings)
                for command in commands:
                    if isinstance(command, Cancel):
                        self._cancel(set(command.keys))
                self._deliver(self._advance())
            except Exception as error:  # the batch is lost, the server is not
                self._deliver_failure(error)

    def _arrivals(self) -> list[Job | Scoring | Cancel | None]:
        """What has come in; with nothing to do, wait for it."""
        found: list[Job | Scoring | Cancel | None] = []
        if not len(self.decoder) and not self.waiting:
            found.append(self.inbox.get())
            until = time.monotonic() + _GATHER_SECONDS if self.crowded else 0.0
            while (left := until - time.monotonic()) > 0 and len(found) < MAX_ROWS:
                try:
                    found.append(self.inbox.get(timeout=left))
                except queue.Empty:
                    break
            self.crowded = len(found) > 1
        with suppress(queue.Empty):
            while True:
                found.append(self.inbox.get_nowait())
        return found

    def _advance(self) -> list[Event]:
        """Read in newcomers when it is their turn, else one step."""
        running = len(self.decoder)
        self.crowded = self.crowded or running > 1
        self.steps_since_newcomers += 1
        due = len(self.waiting) * 8 >= running or self.steps_since_newcomers >= _PATIENCE_STEPS
        n = self.decoder.admits((job.request for job in self.waiting), MAX_ROWS) if due else 0
        if n:
            self.steps_since_newcomers = 0
            now = [self.waiting.popleft() for _ in range(n)]
            self.sinks.update({job.key: job.sink for job in now})
            return self.decoder.add(
                [(job.key, job.request) for job in now], {j.key for j in now if j.watched}
            )
        return self.decoder.step()

    def _score(self, scorings: list[Scoring]) -> None:
        texts = [text for scoring in scorings for text in scoring.texts]
        try:
            found: Iterator[Any] = iter(score(self.model, texts, top=max(s.top for s in scorings)))
            results = [(s.sink, [next(found) for _ in s.texts]) for s in scorings]
        except Exception as error:
            results = [(s.sink, error) for s in scorings]  # type: ignore[misc]
        self._call(results)

    def _cancel(self, keys: set[Hashable]) -> None:
        self.waiting = deque(job for job in self.waiting if job.key not in keys)
        for key in keys:
            self.decoder.cancel(key)
            self.sinks.pop(key, None)
        self.cancelled += len(keys)

    def _deliver(self, events: list[Event]) -> None:
        calls = [(self.sinks[event.key], event) for event in events]
        for event in events:
            if event.done is not None:
                del self.sinks[event.key]
        self._call(calls)

    def _deliver_failure(self, error: Exception) -> None:
        calls = [(sink, error) for sink in self.sinks.values()]
        self.sinks.clear()
        self.decoder = Decoder(self.model)
        self._call(calls)

    def _call(self, calls: Sequence[tuple[Sink, Any]]) -> None:
        def all_of_them() -> None:
            for sink, value in calls:
                sink(value)

        if calls:
            with suppress(RuntimeError):  # the loop has closed: nobody is listening
                self.loop.call_soon_threadsafe(all_of_them)
