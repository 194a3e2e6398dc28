"""Counts of one process: decided in memory, on disk before they are told.

A decision takes place within one turn of the event loop, so none comes between. One thread writes the states
of all subjects that changed since its last commit; the reservations that waited for it are then granted
together. After a crash every reservation of the dead process is charged whole and none is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from stillhouse.errors import StillhouseError, StorageError, storage
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.guard import counting
from stillhouse.guard.counting import Book
from stillhouse.guard.limits import Granted, Refused, Used, Wanted
from stillhouse.guard.windows import SECOND, Code, Counters

WARM = 50_000  # subjects in memory
IDLE = 26 * 3600 * SECOND  # of one that was not asked for so long nothing counts in its day
AT_ONCE = 200  # rows of one statement
LINGER = 0.1  # seconds that what is given back waits for a reservation to be written with
CLOCK = ""  # the subject whose row holds the store's time

Row = tuple[str, str, bytes]
Waiting = tuple[asyncio.Future[None], str]  # a reservation that is not on disk yet, and its id


class LocalCounts:
    """Made by `LocalCounts.open` within the event loop that uses it."""

    def __init__(self, folder: Path, db: sqlite3.Connection, lock: int, *, warm: int) -> None:
        self._folder = folder
        self._db = db
        self._reading = _connected(folder)
        self._lock = lock
        self._warm = warm
        self._now = _clock_from(_time_of(db))
        self._loop = asyncio.get_running_loop()
        self._book = Book()
        self._seen: OrderedDict[str, int] = OrderedDict()  # warm subjects, those asked last at the end
        self._work = threading.Condition()
        self._changed: dict[str, Counters] = {}
        self._waiting: list[Waiting] = []
        self._writing: list[dict[str, Counters]] = []  # taken by the thread, and not known to be on disk
        self._due = False  # what was given back has waited long enough
        self._lingering = False
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="counts", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, *, warm: int = WARM) -> LocalCounts:
        """Keeps about `warm` subjects in memory at most. Raises StoreDown when another process has the
        folder, StorageError when it cannot be written."""
        lock = _locked(folder)
        try:
            return cls(folder, _database(folder), lock, warm=warm)
        except BaseException:
            os.close(lock)
            raise

    async def reserve(self, wanted: Wanted) -> Granted | Refused:
        if self._closed:
            raise StoreDown("the counts are closed", "the gateway is ending", "ask again when it has started")
        names = counting.names(wanted)
        now = self._now()
        self._warm_up(names, now)
        decision = counting.reserve(self._book, wanted, now)
        if isinstance(decision, Refused):
            return decision
        on_disk = self._loop.create_future()
        with self._work:
            self._mark(names)
            self._waiting.append((on_disk, wanted.id))
            self._work.notify()
        try:
            await on_disk
        except asyncio.CancelledError:
            self._settle(wanted.id, Used(0, 0, sent=False))
            raise
        return decision

    async def settle(self, id: str, used: Used) -> int:
        cost = self._settle(id, used)
        if cost is None:
            raise StoreDown(
                f"the reservation {id} is not known any more",
                "it was made before a restart, or an hour has gone since its time was up",
                "it stays charged whole; nothing to do",
            )
        return cost

    async def standing(self, subject: str) -> dict[Code, int]:
        now = self._now()
        self._warm_up((subject,), now)
        return counting.standing(self._book, subject, now)

    async def close(self) -> None:
        """Write what is not written yet, and free the folder."""
        with self._work:
            self._closed = True
            self._work.notify()
        await asyncio.to_thread(self._thread.join)
        self._reading.close()
        self._db.close()
        os.close(self._lock)

    def _settle(self, id: str, used: Used) -> int | None:
        reserved = self._book.reserved.get(id)
        names = counting.names(reserved.wanted) if reserved else ()
        now = self._now()
        self._warm_up(names, now)
        cost = counting.settle(self._book, id, used, now)
        if names:
            with self._work:
                self._mark(names)
            if not self._lingering:
                self._lingering = True
                self._loop.call_later(LINGER, self._write_changed)
        return cost

    def _write_changed(self) -> None:
        self._lingering = False
        with self._work:
            self._due = bool(self._changed)
            self._work.notify()

    def _mark(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._changed[name] = self._book.states[name]

    def _warm_up(self, names: tuple[str, ...], now: int) -> None:
        """Have the subjects in memory, in place of those asked longest ago."""
        states, seen = self._book.states, self._seen
        for name in names:
            if name not in states:
                states[name] = self._read(name)
            seen[name] = now
            seen.move_to_end(name)
        for _ in range(2 * len(names)):
            name, at = next(iter(seen.items()))
            if (at >= now - IDLE and len(seen) <= self._warm) or name in names:
                return
            if any(name in changed for changed in (self._changed, *self._writing)):
                seen.move_to_end(name)
            else:
                del seen[name], states[name]

    def _read(self, name: str) -> Counters:
        """A cold subject; the read is of one row, and takes less than handing it to a thread."""
        try:
            row = self._reading.execute(
                "SELECT codes, numbers FROM subject WHERE name = ?", (name,)
            ).fetchone()
        except sqlite3.Error as error:
            raise _down(self._folder, "read", error) from error
        return Counters(_codes(row[0]), row[1]) if row else Counters()

    def _serve(self) -> None:
        while True:
            with self._work:
                while not (self._waiting or self._due or self._closed):
                    self._work.wait()
                self._due = False
                changed, self._changed = self._changed, {}
                waiting, self._waiting = self._waiting, []
                self._writing.append(changed)
                closing = self._closed
            error = self._commit(changed)
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
                self._loop.call_soon_threadsafe(self._told, changed, waiting, error)
            if closing and (error or not self._changed):
                return

    def _commit(self, changed: dict[str, Counters]) -> StillhouseError | None:
        """States are taken as they are now: what the loop added to them since is written again later."""
        now = self._now()
        rows: list[Row] = [(CLOCK, "", now.to_bytes(8, "big"))]
        for name, counters in changed.items():
            codes, numbers = counters.packed()
            rows.append((name, "\n".join(map(" ".join, codes)), numbers))
        try:
            _put(self._db, rows)
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                self._db.execute("ROLLBACK")
            return _down(self._folder, "write", error)
        except Exception as error:  # without this thread every reservation would wait for ever
            return _down(self._folder, "write", error)
        return None

    def _told(
        self, changed: dict[str, Counters], waiting: list[Waiting], error: StillhouseError | None
    ) -> None:
        """In the event loop: grant what is on disk. What could not be written is as if never asked."""
        with self._work:
            self._writing = [batch for batch in self._writing if batch is not changed]
            if error:
                self._changed = changed | self._changed
        for on_disk, id in waiting:
            if error:
                counting.settle(self._book, id, Used(0, 0, sent=False), self._now())
            if not on_disk.done():
                if error:
                    on_disk.set_exception(error)
                else:
                    on_disk.set_result(None)


def _put(db: sqlite3.Connection, rows: list[Row]) -> None:
    """One statement is a transaction of its own, and gives up the interpreter's lock only once."""
    whole = len(rows) <= AT_ONCE
    if not whole:
        db.execute("BEGIN IMMEDIATE")
    for begin in range(0, len(rows), AT_ONCE):
        some = rows[begin : begin + AT_ONCE]
        values = ",".join(["(?,?,?)"] * len(some))
        db.execute(
            f"INSERT OR REPLACE INTO subject VALUES {values}", [field for row in some for field in row]
        )
    if not whole:
        db.execute("COMMIT")


def _codes(text: str) -> tuple[Code, ...]:
    parts = (line.rpartition(" ") for line in text.split("\n") if line)
    return tuple((what, window) for what, _, window in parts)


def _clock_from(last: int) -> Callable[[], int]:
    """The store's own time: it begins where the wall's stands, or where it had come to, if the wall's was set
    back; from then on it runs by itself and nobody sets it."""
    start, began = max(_wall(), last), _steady()
    return lambda: start + _steady() - began


def _wall() -> int:
    return time.time_ns() // 1000


def _steady() -> int:
    """Microseconds that do not stop while the machine sleeps, where there is such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1000


def _locked(folder: Path) -> int:
    with storage("use", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "counts.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise StoreDown(
            f"another process keeps its counts in {folder}",
            "in a folder one process counts; two would each grant the whole limit",
            "end it first, or give both the same Redis: `redis` under [store] in guard.toml",
        ) from error
    return lock


def _connected(folder: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        folder / "counts.sqlite", isolation_level=None, check_same_thread=False, cached_statements=2 * AT_ONCE
    )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def _database(folder: Path) -> sqlite3.Connection:
    try:
        with contextlib.closing(os.fdopen(os.open(folder / "counts.sqlite", os.O_RDWR | os.O_CREAT, 0o600))):
            db = _connected(folder)
        db.execute(
            "CREATE TABLE IF NOT EXISTS subject (name TEXT PRIMARY KEY, codes TEXT NOT NULL,"
            " numbers BLOB NOT NULL) STRICT, WITHOUT ROWID"
        )
    except (sqlite3.Error, OSError) as error:
        raise StorageError(
            f"could not open the counts in {folder}", str(error), "see that the folder can be written"
        ) from error
    return db


def _time_of(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT numbers FROM subject WHERE name = ?", (CLOCK,)).fetchone()
    return int.from_bytes(row[0], "big") if row else 0


def _down(folder: Path, doing: str, error: Exception) -> StoreDown:
    return StoreDown(
        f"could not {doing} the counts in {folder}",
        str(error),
        "see that the disk has space and can be written; it goes on by itself then",
    )
