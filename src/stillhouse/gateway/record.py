"""What was served, written down off the path of requests.

`put` appends to a queue in memory. One thread writes what waits there, up to 1,000 events or what came
within 0.2 s, in one transaction. Once a minute, or for 10,000 events, it seals what it wrote: the Merkle root
over the events' canonical forms becomes one leaf `served` of the guard's ledger, which lies in the store's
folder. From then on it can be shown of any event that has not expired that it was recorded.

When the store fails, events wait in memory and are tried again. `healthy` turns false before the queue is
full, so that the gateway can refuse what it could not account for; what finds the queue full is counted as
lost.

Of the refusals of an account beyond some in a minute only sums are kept: see `refusals.py`.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse.gateway.refusals import Refusals
from stillhouse.gateway.served import body_of
from stillhouse.gateway.store.alone import alone
from stillhouse.gateway.store.events import Events, Group, Sealed
from stillhouse.gateway.store.place import folder_of
from stillhouse.gateway.store.tables import Repeated
from stillhouse.gateway.texts import Erased, Texts, both
from stillhouse.gateway.worker import Worker
from stillhouse.guard import config
from stillhouse.guard.accounts import Account
from stillhouse.guard.events import Event, Rate, Row, by_minute, canonical, charge_of, label, row_of
from stillhouse.guard.proof import root_of
from stillhouse.ledger import Ledger, merkle
from stillhouse.workspace import init_workspace

BATCH = 1_000
LINGER = 0.2  # seconds
GROUP = 10_000
GROUP_SECONDS = 60.0
WAITING = 50_000  # events; some 25 MB of memory
GRACE = 10.0  # seconds for which a failing store, or another process at the leaves, may be a hiccup
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
    """Close it. Every method may be called from any thread."""

    def __init__(
        self,
        store: config.Store,
        settings: config.Record,
        rates: Mapping[str, Rate],
        secret: bytes,
        *,
        replica: str = "",
        log: Log = lambda *_, **__: None,
        stored: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`rates` names every model that is served, `secret` is what texts are sealed under, `replica` names
        this process among those that share a database (left out: the machine's name). `log` is called as
        `log(what, **fields)`, and `stored` is told how many seconds a transaction took.

        Raises StorageError or LedgerError when the events, the texts or the ledger cannot be opened.
        """
        self.settings = settings
        self.rates = rates
        self.written = 0
        self.repeated = 0
        self.lost: Counter[str] = Counter()  # events by why
        self._replica = replica or socket.gethostname()
        self._lock = folder_of(store) / "served.lock"
        self._log = log
        self._stored = stored
        self._room = WAITING
        self._refusals = Refusals()
        self._filling: _Filling | None = None
        self._tidied = float("-inf")
        self._told = 0
        with ExitStack() as opened:
            self._events = opened.enter_context(closing(Events(store)))
            self._ledger = opened.enter_context(Ledger.open(init_workspace(Path(store.folder))))
            with suppress(Sealed):  # by another process of this name that begins too: it gives the leaves
                self._link()
            self.texts = Texts(store, settings, secret, log)
            try:
                self.deferred = Texts(store, settings, secret, log, "deferred")
            except BaseException:
                self.texts.close()
                raise
            self._opened = opened.pop_all()
        self._worker: Worker[Event] = Worker(
            "record", self._work, batch=BATCH, linger=LINGER, failed=self._complain, beat=self._beat
        )

    def apply(self, settings: config.Record, rates: Mapping[str, Rate]) -> None:
        """Go on with settings that were read anew."""
        self.settings = self.texts.settings = self.deferred.settings = settings
        self.rates = rates

    def put(self, event: Event) -> None:
        """Record an event. Never waits and never raises."""
        if self._refusals.take(event, self.rates):
            return
        if len(self._worker) < self._room:
            self._worker.put(event)
        else:
            self.lost["the queue was full"] += 1

    def put_text(self, id: str, account: Account, request: bytes, answer: bytes) -> None:
        """Keep the text of an event, sealed, where the operator wants that and the account consented to it.
        Never waits and never raises."""
        self.texts.put(id, account, request, answer)

    def erase(self, account: str) -> Erased:
        """Both kinds of kept texts of an account: see `Texts.erase`."""
        return both(self.texts.erase(account), self.deferred.erase(account))

    def healthy(self) -> bool:
        """Whether what is served now will be recorded, as far as can be told."""
        failing = self._worker.failing
        return (
            len(self._worker) < self._room * 3 // 4
            and (failing is None or time.monotonic() - failing < GRACE)
            and self._worker.alive
        )

    @property
    def waiting(self) -> int:
        """Events that are not on disk yet."""
        return len(self._worker)

    def flush(self, seconds: float | None = None) -> None:
        """Wait until all that was put before is on disk. Raises TimeoutError when it is not after so long."""
        self._worker.flush(seconds)

    def close(self, seconds: float = 10.0) -> int:
        """Write what waits, seal it, and close the store; how many events could not be written in that time,
        which are lost."""
        self._room = 0
        left = len(self._worker.close(seconds)) + self._refusals.left()
        if left:
            self.lost["not written at the end"] += left
            self._tell_lost()
        self.texts.close(seconds)
        self.deferred.close(seconds)
        self._opened.close()
        return left

    # The worker's thread

    def _work(self, events: list[Event]) -> None:
        began = time.perf_counter()
        self._seal()
        self._write(events)
        self._stored(time.perf_counter() - began)

    def _beat(self, last: bool) -> None:
        self._add_refusals()
        self._seal(last)
        self._tidy()
        self._tell_lost()

    def _write(self, events: list[Event]) -> None:
        """Raises StillhouseError when the store fails, and all of them may be written again."""
        try:
            self._insert(events)
        except Repeated:
            known = self._events.known(label(event.id) for event in events)
            fresh = {name: event for event in events if (name := label(event.id)) not in known}
            self.repeated += len(events) - len(fresh)
            self._write(list(fresh.values()))
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
        charges = [charge_of(event, self.rates) for event in events]
        self._events.write(group.id, group.events, span, rows, charges, by_minute(events, self.rates))
        group.events += len(rows)
        group.first, group.last = span
        group.frontier = frontier
        self.written += len(rows)

    def _add_refusals(self) -> None:
        sums = self._refusals.to_write()
        if sums.usage:
            self._events.add(*sums)
            self._refusals.written()

    def _seal(self, now: bool = False) -> None:
        """Seal the group that is being filled when it is due, or `now`, and give it its leaf. Where that
        fails the next one to be sealed tries again for both: events are stored without leaves too."""
        group = self._filling
        if group is None or group.events == 0:
            return
        if not now and group.events < GROUP and time.monotonic() - group.began < GROUP_SECONDS:
            return
        self._filling = None
        try:
            self._events.seal(group.id, group.events, merkle.fold(group.frontier))
            self._link()
        except (StillhouseError, Sealed) as error:
            self._log("events are stored, and under no leaf yet", group=group.id, why=_why(error))

    def _link(self) -> None:
        """Give each group of this replica its leaf that has none: the one just sealed, and those that a
        process left behind when it died. One process at a time does so, or both would give the same one."""
        with alone(self._lock, "no leaf can be given", GRACE):
            # Groups get their leaves in order, so that of one without comes after those of all that have one
            start = self._events.last_leaf(self._replica) + 1
            appended = {leaf.body["group"]: leaf.index for leaf in self._ledger.leaves("served", start)}
            for group in self._events.unlinked(self._replica):
                if group.events == 0:
                    self._events.drop(group.id)
                    continue
                body = body_of(group, group.root or self._sealed(group))
                leaf = appended.get(group.id)
                self._events.link(group.id, self._ledger.append("served", body) if leaf is None else leaf)

    def _sealed(self, group: Group) -> bytes:
        """Raises Sealed when somebody else does it just then."""
        root = root_of(self._events.rows(group.id))
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
        self._log("events are not being stored", waiting=self.waiting, why=_why(error))
        self._tell_lost()

    def _tell_lost(self) -> None:
        lost = self.lost.total()
        if lost > self._told:
            self._log("events lost", count=lost - self._told, why=", ".join(self.lost))
            self._told = lost


def _why(error: Exception) -> str:
    return f"{error.what}: {error.why}" if isinstance(error, StillhouseError) else repr(error)
