"""The detector in a process of its own: Python runs one thread at a time, and requests shall not wait for it.

The gateway hands over in batches what was answered; that process (detector.py) keeps the evidence and takes
the steps (watching.py). A step is on disk before it has any effect, and the gateway reads standings there a
few times a second, as it reads those that another replica, the administration or the command line decided.
When the process ends, a new one takes its place: like a gateway that was killed, it has forgotten the last
half minute.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from stillhouse.errors import StillhouseError
from stillhouse.gateway.steps import Steps
from stillhouse.gateway.store.standings import Decided
from stillhouse.gateway.watching import WAITING, WAITING_BYTES, Log
from stillhouse.gateway.worker import Worker
from stillhouse.guard import config, ladder
from stillhouse.guard.asked import Route
from stillhouse.guard.config import Detection
from stillhouse.guard.ladder import Standing
from stillhouse.guard.lines import Lines

Answer = TypeVar("Answer")

BATCH, LINGER = 64, 0.2
PATIENCE = 30.0  # seconds for the process to answer, after which another takes its place,
AGAIN = 5.0  # so many seconds later
LOOK_AGAIN = 1.0  # seconds between two looks of a customer at its standing
LOOKING = 100_000  # customers whose last look is remembered
FULL, ENDED = "the queue was full", "its process ended"


# Account, route, the request as the client wrote it, tokens of the answer, when (Unix seconds).
Answered = tuple[str, Route, bytes, int, float]
# Observed and, by why, not observed since the process began; waiting; what it has to say since then.
Told = tuple[int, Mapping[str, int], int, list[tuple[str, dict[str, Any]]]]


class Watcher:
    """Close it. `put` and `in_force` are for each request, `ask` for the administration."""

    def __init__(
        self,
        store: config.Store,
        settings: Detection,
        lines: Lines,
        key: bytes,
        log: Log = lambda *_, **__: None,
    ) -> None:
        """`key` as in `Watching`. Raises StorageError or LedgerError when the store or the ledger cannot be
        opened."""
        self.settings, self.lines = settings, lines
        self._store, self._key, self._log = store, key, log
        self._observed = self._waiting = 0
        self._unobserved: Counter[str] = Counter()
        self._past_observed, self._past_unobserved = 0, Counter[str]()  # of processes that ended, and here
        self._came = self._went = 0  # bytes put, and handed over
        self._looks: dict[str, float] = {}  # when an account last looked at its standing
        self._steps = Steps(store)
        self._using = threading.Lock()  # the store
        self._decided = Decided(self._steps.standings)
        self.clusters = self._steps.standings.findings.open()  # that wait for a person
        self._talking = threading.Lock()  # with the process
        self._talk: _Talk | None = None
        self._not_before = 0.0  # of the monotonic clock, another process
        if settings.mode != "off":  # so that it is there for the first request
            with self._buried():
                self._begun()
        self._worker: Worker[Answered] = Worker(
            "watcher", self._hand_over, batch=BATCH, linger=LINGER, failed=self._complain, beat=self._beat
        )

    def apply(self, settings: Detection, lines: Lines) -> None:
        """Go on with settings that were read anew."""
        self.settings, self.lines = settings, lines
        with self._talking:
            if self._talk is not None:
                with self._buried():
                    self._talk.tell("apply", settings, lines)

    def put(self, account: str, route: Route, raw: bytes, output_tokens: int, at: float) -> None:
        """Look at an answered request later. Never waits and never raises."""
        if self.settings.mode == "off" or route == "embeddings":
            return
        if len(self._worker) >= WAITING or self._came - self._went + len(raw) > WAITING_BYTES:
            self._past_unobserved[FULL] += 1
            return
        self._came += len(raw)
        self._worker.put((account, route, raw, output_tokens, at))

    def in_force(self, account: str) -> Standing | None:
        """The standing of an account from which something is taken; of any other None."""
        standing = self._decided.by_account.get(account)
        return standing if ladder.in_force(standing, self.settings) != "observe" else None

    def may_look(self, account: str) -> bool:
        """Whether the account may read the store now: once in a second, so that none keeps it busy."""
        now = time.monotonic()
        if now - self._looks.get(account, float("-inf")) < LOOK_AGAIN:
            return False
        if len(self._looks) >= LOOKING:
            self._looks.clear()
        self._looks[account] = now
        return True

    async def ask(self, question: Callable[[Steps], Answer]) -> Answer:
        """What the steps answer, in a thread; what they changed holds when this returns."""
        return await asyncio.to_thread(self.do, question)

    def do(self, question: Callable[[Steps], Answer]) -> Answer:
        with self._using:
            try:
                return question(self._steps)
            finally:
                self._refresh()

    @property
    def observed(self) -> int:
        return self._past_observed + self._observed

    @property
    def unobserved(self) -> Counter[str]:
        """Requests that were not looked at, by why."""
        return self._past_unobserved + self._unobserved

    @property
    def waiting(self) -> int:
        return len(self._worker) + self._waiting

    def rungs(self) -> Counter[str]:
        """How many accounts stand on each step."""
        standings = list(self._decided.by_account.values())
        return Counter(each.rung for each in standings if each.rung != "observe")

    def flush(self, seconds: float | None = None) -> None:
        """Wait until all that was put before is observed and on disk. Raises TimeoutError when it is not
        after so long, and StorageError when the store fails."""
        self._worker.flush(seconds)
        with self._talking:
            if self._talk is not None:
                with self._buried():
                    self._take(self._talk.ask("flush", seconds, patience=None))
        with self._using:
            self._refresh()

    def close(self, seconds: float = 10.0) -> None:
        """Hand over and observe what waits, write what changed, and close the store."""
        left = len(self._worker.close(seconds))
        if left:
            self._past_unobserved["not looked at in the end"] += left
        with self._talking:
            if self._talk is not None:
                with suppress(_Gone, TimeoutError, StillhouseError):
                    self._take(self._talk.ask("flush", seconds, patience=seconds + PATIENCE))
                self._talk.end(seconds + PATIENCE)
        self._steps.close()

    # The worker's thread

    def _hand_over(self, batch: list[Answered]) -> None:
        self._went += sum(len(raw) for _, _, raw, _, _ in batch)
        with self._talking:
            if self._talk is None and time.monotonic() < self._not_before:
                self._past_unobserved[ENDED] += len(batch)
                return
            with self._buried(len(batch)):
                self._begun().tell("look", batch)

    def _begun(self) -> _Talk:
        if self._talk is None:
            self._talk = _Talk()
            self._talk.tell(self._store, self.settings, self.lines, self._key)
        return self._talk

    def _beat(self, last: bool) -> None:
        with self._talking:
            if self._talk is not None:
                with self._buried():
                    self._take(self._talk.ask("figures", patience=PATIENCE))
        with self._using:
            if self._decided.stale():
                self._refresh()

    def _take(self, told: Told | Exception) -> None:
        if isinstance(told, Exception):
            raise told
        self._observed, unobserved, self._waiting, said = told
        self._unobserved = Counter(unobserved)
        for event, fields in said:
            self._log(event, **fields)

    @contextmanager
    def _buried(self, lost: int = 0) -> Iterator[None]:
        """Where the process is gone, or does not answer, a later batch begins another."""
        try:
            yield
        except _Gone:
            assert self._talk is not None
            self._talk.end(1.0)
            self._talk = None
            self._not_before = time.monotonic() + AGAIN
            lost += self._waiting
            self._past_observed += self._observed
            self._past_unobserved += self._unobserved + Counter({ENDED: lost})
            self._observed, self._waiting, self._unobserved = 0, 0, Counter()
            self._log("the detector's process ended", lost=lost)

    def _refresh(self) -> None:
        self._decided.look()
        self.clusters = self._steps.standings.findings.open()

    def _complain(self, error: Exception) -> None:
        why = f"{error.what}: {error.why}" if isinstance(error, StillhouseError) else repr(error)
        self._log("accounts are not being watched", waiting=self.waiting, why=why)


class _Gone(Exception):
    """The process does not answer any more."""


class _Talk:
    """A process and the socket to it."""

    def __init__(self) -> None:
        mine, other = socket.socketpair()
        for each in (mine, other):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE), 0))
        with other:
            words = [sys.executable, "-m", "stillhouse.gateway.detector", str(other.fileno())]
            self._process = subprocess.Popen(words, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL)
        self._pipe = Connection(mine.detach())

    def tell(self, *words: Any) -> None:
        try:
            self._pipe.send(words)
        except OSError as error:
            raise _Gone from error

    def ask(self, *words: Any, patience: float | None) -> Any:
        self.tell(*words)
        try:
            if not self._pipe.poll(patience):
                raise _Gone
            return self._pipe.recv()
        except (OSError, EOFError) as error:
            raise _Gone from error

    def end(self, seconds: float) -> None:
        """It ends by itself when the socket closes; what does not in so long is killed."""
        self._pipe.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
