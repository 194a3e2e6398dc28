"""What was served, written down off the path of requests.

`put` appends to a queue in memory. One thread writes what waits there, up to 1,000 events or what came
within 0.2 s, in one transaction. Once a minute, or for 10,000 events, it seals what it wrote: the Merkle root
over the events' canonical forms becomes one leaf `served` of the guard's ledger, which lies in the store's
folder. From then on it can be shown of any event that has not expired that it was recorded.

When the store fails, events wait in memory and are tried again. `healthy` turns false before the queue is
full, so that the gateway can refuse what it could not account for; what finds the queue full is counted as
lost.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillhouse.errors import StillhouseError
from stillhouse.gateway.store.events import Events, Group, Repeated, Sealed
from stillhouse.guard import config
from stillhouse.guard.events import Event, Rate, Row, canonical, label, row_of, totals
from stillhouse.ledger import Ledger, merkle
from stillhouse.ledger.leaves import utc_stamp
from stillhouse.workspace import init_workspace

BATCH = 1_000
LINGER = 0.2  # seconds
GROUP = 10_000
GROUP_SECONDS = 60.0
WAITING = 50_000  # events; some 25 MB of memory
GRACE = 10.0  # seconds for which a failing store may be a hiccup
RETRY = 1.0  # seconds
TIDY = 60.0  # seconds between looks for what has expired
_SLICE = 64  # events between two chances for the other threads
_DAY = 86_400_000_000  # microseconds

Log = Callable[..., None]


@dataclass(slots=True)
class _Filling:
    """The group that is being filled; `frontier` is that of the Merkle tree over its events."""

    id: int
    began: float
    events: int = 0
    first: int = 2**62
    last: int = 0
    frontier: list[bytes] = field(default_factory=list)


class Record:
    """Open with `Record.open`, and close it. Every method may be called from any thread."""

    def __init__(
        self,
        settings: config.Record,
        events: Events,
        ledger: Ledger,
        rates: Mapping[str, Rate],
        replica: str,
        log: Log,
        stored: Callable[[float], None],
    ) -> None:
        self.rates = rates  # put others in their place when the settings are read anew
        self.settings = settings
        self.written = 0
        self.repeated = 0
        self.lost: Counter[str] = Counter()  # events by why
        self._events = events
        self._ledger = ledger
        self._replica = replica
        self._log = log
        self._stored = stored
        self._waiting: deque[Event | Future[None]] = deque()
        self._batch: list[Event] = []
        self._marks: list[Future[None]] = []
        self._filling: _Filling | None = None
        self._failing: float | None = None
        self._tidied = float("-inf")
        self._lost_told = 0
        self._closing: float | None = None
        self._wake = threading.Event()
        self._link()
        self._thread = threading.Thread(target=self._serve, name="record", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        store: config.Store,
        settings: config.Record,
        rates: Mapping[str, Rate],
        *,
        replica: str = "",
        log: Log = lambda *_, **__: None,
        stored: Callable[[float], None] = lambda _: None,
    ) -> Record:
        """`rates` names every model that is served, `replica` this process among those that share a database
        (left out: the machine's name), `stored` is told how many seconds a transaction took.

        Raises StorageError when the events or the ledger cannot be opened.
        """
        events = Events.open(store)
        try:
            ledger = Ledger.open(init_workspace(Path(store.folder)))
        except BaseException:
            events.close()
            raise
        return cls(settings, events, ledger, rates, replica or socket.gethostname(), log, stored)

    def put(self, event: Event) -> None:
        """Record an event. Never waits and never raises."""
        waiting = self._waiting
        if len(waiting) >= WAITING:
            self.lost["the queue was full"] += 1
            return
        waiting.append(event)
        if len(waiting) == BATCH:
            self._wake.set()

    def healthy(self) -> bool:
        """Whether what is served now will be recorded, as far as can be told."""
        failing = self._failing
        return (
            len(self._waiting) < WAITING * 3 // 4
            and (failing is None or time.monotonic() - failing < GRACE)
            and self._thread.is_alive()
        )

    @property
    def waiting(self) -> int:
        """Events that are not on disk yet."""
        return len(self._waiting) + len(self._batch)

    def flush(self, seconds: float | None = None) -> None:
        """Wait until all that was put before is on disk. Raises TimeoutError when it is not after so long."""
        mark: Future[None] = Future()
        self._waiting.append(mark)
        self._wake.set()
        mark.result(seconds)

    def close(self, seconds: float = 10.0) -> int:
        """Write what waits, seal it, and close the store; how many events could not be written in that time,
        which are lost."""
        self._closing = time.monotonic() + seconds
        self._wake.set()
        self._thread.join()
        left = self.waiting
        if left:
            self.lost["not written at the end"] += left
            self._log("events lost", count=left, why="the store failed until the end")
        self._ledger.close()
        self._events.close()
        return left

    # The writing thread

    def _serve(self) -> None:
        while True:
            self._wake.wait(LINGER if self._failing is None else RETRY)
            self._wake.clear()
            closing = self._closing
            try:
                self._write_all()
                self._seal(closing is not None)
                self._tidy()
                self._failing = None
            except Exception as error:
                self._complain(error)
            self._tell_lost()
            if closing is not None and (self._failing is None or time.monotonic() > closing):
                return

    def _write_all(self) -> None:
        while self._batch or self._waiting:
            self._take()
            if self._batch:
                began = time.perf_counter()
                self._write(self._batch)
                self._batch = []
                self._stored(time.perf_counter() - began)
            for mark in self._marks:
                mark.set_result(None)
            self._marks.clear()

    def _take(self) -> None:
        """Fill the batch up; a mark ends it, for it stands for what came before."""
        while self._waiting and not self._marks and len(self._batch) < BATCH:
            item = self._waiting.popleft()
            if isinstance(item, Event):
                self._batch.append(item)
            else:
                self._marks.append(item)

    def _write(self, events: list[Event]) -> None:
        """Raises StillhouseError when the store fails, and all of them may be written again."""
        try:
            self._insert(events)
        except Repeated:
            known = self._events.known(label(event.id) for event in events)
            fresh = {name: event for event in reversed(events) if (name := label(event.id)) not in known}
            self.repeated += len(events) - len(fresh)
            self._write(list(reversed(fresh.values())))
        except Sealed:
            self._filling = None
            self._write(events)
        except ValueError as error:
            if len(events) > 1:  # one of them is to blame, and must not take its neighbours along
                for event in events:
                    self._write([event])
                return
            self.lost["malformed"] += 1
            self._log("event lost", event=events[0].id, why=str(error))

    def _insert(self, events: list[Event]) -> None:
        if not events:
            return
        if self._filling is None:
            self._filling = _Filling(self._events.begin_group(self._replica), time.monotonic())
        group = self._filling
        rows: list[Row] = []
        frontier = list(group.frontier)
        for n, event in enumerate(events):
            row = row_of(event)
            merkle.push(frontier, group.events + n, merkle.leaf_hash(canonical(row)))
            rows.append(row)
            if n % _SLICE == 0:
                time.sleep(0)
        times = [round(event.at * 1e6) for event in events]
        span = min(group.first, *times), max(group.last, *times)
        self._events.write(group.id, group.events, span, rows, totals(events, self.rates))
        group.events += len(rows)
        group.first, group.last = span
        group.frontier = frontier
        self.written += len(rows)
        self._seal()

    def _seal(self, now: bool = False) -> None:
        """Close the group that is being filled when it is due, or `now`, and give it its leaf."""
        group = self._filling
        if group is None or group.events == 0:
            return
        if not now and group.events < GROUP and time.monotonic() - group.began < GROUP_SECONDS:
            return
        self._filling = None
        self._events.seal(group.id, group.events, merkle.fold(group.frontier))
        self._link()

    def _link(self) -> None:
        """Give each group of this replica its leaf that has none: the one just sealed, and those that a
        process left behind when it died."""
        appended = {
            leaf.body["group"]: leaf.index
            for leaf in self._ledger.leaves("served", self._events.last_leaf(self._replica) + 1)
        }
        for group in self._events.unlinked(self._replica):
            if group.events == 0:
                self._events.drop(group.id)
                continue
            body = served(group, group.root or self._sealed(group))
            leaf = appended.get(group.id)
            self._events.link(group.id, self._ledger.append("served", body) if leaf is None else leaf)

    def _sealed(self, group: Group) -> bytes:
        root = merkle.root_of([merkle.leaf_hash(canonical(row)) for row in self._events.rows(group.id)])
        self._events.seal(group.id, group.events, root)
        return root

    def _tidy(self) -> None:
        """Delete what has expired, a group at a time."""
        if time.monotonic() - self._tidied < TIDY:
            return
        before = round(time.time() * 1e6) - self.settings.event_days * _DAY
        if not self._events.expire(before):
            self._tidied = time.monotonic()

    def _complain(self, error: Exception) -> None:
        if self._failing is None:
            self._failing = time.monotonic()
            why = f"{error.what}: {error.why}" if isinstance(error, StillhouseError) else repr(error)
            self._log("events are not being stored", waiting=self.waiting, why=why)

    def _tell_lost(self) -> None:
        lost = self.lost.total()
        if lost > self._lost_told:
            self._log("events lost", count=lost - self._lost_told, why=", ".join(self.lost))
            self._lost_told = lost


def served(group: Group, root: bytes) -> dict[str, Any]:
    """Body of the leaf of a sealed group."""
    assert group.first is not None
    assert group.last is not None
    return {
        "count": group.events,
        "first": _stamp(group.first),
        "group": group.id,
        "last": _stamp(group.last),
        "replica": group.replica,
        "root": root.hex(),
    }


def _stamp(microseconds: int) -> str:
    seconds, rest = divmod(microseconds, 1_000_000)
    return utc_stamp(datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest))
