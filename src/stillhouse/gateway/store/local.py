"""Counts of one process: decided in memory, within bounds that are on disk.

A decision takes place within one turn of the event loop, so none comes between. What is on disk of a subject
is never less than what was granted, but may be more: `lending.py` raises it in blocks. A reservation within
the bounds of all its subjects returns at once; one that passes a bound waits until a higher one is on disk.
Bounds are raised when half of a block is used, so that steady traffic does not wait. What is given back
changes memory at once and reaches the disk within 0.1 s. One thread writes, one commit at a time (WAL, full
sync). Subjects that nobody asked for in a quarter of an hour leave memory, and where there are many those
asked longest ago: once they are on disk as they were used. They are read again when somebody asks.

After a crash or a loss of power what is on disk counts as used: no window ever holds more than its limit.
What that may cost a customer is, of each counter, what was reserved and not settled, what was settled in the
last 0.1 s, and what is lent. That is a block, up to two when more was in flight a moment ago, and more for
the few writes after a burst, each of which halves it. A block is 16 requests or 1/64 of the limit, whichever
is more, until the minute or day has passed; of a month, or for ever, 16 requests, but no more than 1/100 of
the limit or one request; without a limit, 256 requests. It counts as spent until the operator corrects it,
whom the events tell what was really used. Settled volume of the last 0.1 s is missing then. After an orderly
close all is on disk as it was used.

SQLite writes on into files that were deleted and tells nobody; so it is looked once a second, and after each
commit, whether they are still where they were, and nothing is granted while they are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from stillhouse.errors import StillhouseError, StorageError, storage
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.lending import EMPTY, Lent, block
from stillhouse.gateway.store.place import CACHE_KB
from stillhouse.guard import counting
from stillhouse.guard.counting import Book, Spent
from stillhouse.guard.limits import Granted, Refused, Used, Wanted
from stillhouse.guard.windows import SECOND, Code, Counters, slots

WARM = 50_000  # subjects in memory
IDLE = 900 * SECOND  # without a request after which a subject leaves
AT_ONCE = 200  # subjects of a write that nobody waits for
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows of one statement
LINGER = 0.1  # seconds until what is given back is written
LOOK = 1.0  # seconds between looks whether the files are there
FILES = ("counts.sqlite", "counts.sqlite-wal")
CLOCK = ""  # the subject whose row holds the store's time

Row = tuple[str, str, bytes]
Waiting = tuple[asyncio.Future[None], str]  # a reservation that passes a bound, and its id


class LocalCounts:
    """Made by `LocalCounts.open` within the event loop that uses it."""

    def __init__(self, folder: Path, db: sqlite3.Connection, lock: int, *, most: int) -> None:
        self._folder = folder
        self._db = db
        self._reading = _connected(folder)
        self._lock = lock
        self._most = most
        last = _time_of(db)
        self.new = not last  # nothing was ever counted here, or the files were lost
        self._now = _clock_from(last)
        self._files = _identities(folder)
        self._there = True
        self._loop = asyncio.get_running_loop()
        self._watch = self._loop.call_later(LOOK, self._look)
        self._warm: OrderedDict[str, Lent] = OrderedDict()  # subjects in memory, those asked last at the end
        self._book = Book(cast("dict[str, Counters]", self._warm))
        self._leaving: set[str] = set()  # subjects to be on disk as they are used, and then out of memory
        self._changed: dict[str, None] = {}  # subjects to write, in the order in which they changed
        self._waiting: list[Waiting] = []
        self._writing: dict[str, array[int]] | None = None  # what the thread is at: the edges of subjects
        self._written_for: list[Waiting] = []
        self._asked = False  # somebody wants a write at once
        self._lingering = False
        self._closed: asyncio.Future[None] | None = None
        self._jobs: queue.SimpleQueue[list[Row] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="counts", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, *, warm: int = WARM) -> LocalCounts:
        """Keeps about `warm` subjects in memory at most. Raises StoreDown when another process has the
        folder, StorageError when it cannot be written."""
        lock = _locked(folder)
        try:
            return cls(folder, _database(folder), lock, most=warm)
        except BaseException:
            os.close(lock)
            raise

    async def reserve(self, wanted: Wanted) -> Granted | Refused:
        if self._closed is not None:
            raise StoreDown("the counts are closed", "the gateway is ending", "ask again when it has started")
        if not self._there:
            raise _gone(self._folder)
        names = counting.names(wanted)
        now = self._now()
        self._warm_up(names, now)
        decision = counting.reserve(self._book, wanted, now)
        if isinstance(decision, Refused):
            return decision
        if self._within_bounds(wanted.id):
            return decision
        on_disk = self._loop.create_future()
        self._waiting.append((on_disk, wanted.id))
        self._changed.update(dict.fromkeys(names))
        try:
            await on_disk
        except asyncio.CancelledError:
            self._settle(wanted.id, Used(0, 0, sent=False))
            raise
        return decision

    async def full(self, wanted: Wanted) -> Refused | None:
        if not self._there:
            raise _gone(self._folder)
        now = self._now()
        self._warm_up(counting.names(wanted), now)
        return counting.full(self._book, wanted, now)

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

    async def rebuild(self, rows: Iterable[Spent]) -> bool:
        """Enter what durable records tell, whole or not at all. False where something was counted already:
        nothing is changed then."""
        if not self.new:
            return False
        states: dict[str, Counters] = {}
        counting.enter(states, rows, self._now())
        entered = [_row(name, counters, array("q", counters.numbers)) for name, counters in states.items()]
        if error := await asyncio.to_thread(self._commit, [self._time(), *entered]):
            raise error
        self.new = False
        return True

    async def close(self) -> None:
        """Write everything as it is used, and free the folder."""
        self._watch.cancel()
        self._closed = self._loop.create_future()
        if self._writing is None and not self._waiting:
            self._closed.set_result(None)
        await self._closed
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        unwritten = self._changed.keys() | (self._writing or {}).keys()
        rows = [
            _row(name, lent, array("q", lent.numbers))
            for name, lent in self._warm.items()
            if name in unwritten or not lent.as_used
        ]
        await asyncio.to_thread(self._commit, [self._time(), *rows])
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
            self._changed.update(dict.fromkeys(names))
            self._linger()
        return cost

    def _within_bounds(self, id: str) -> bool:
        """Whether all that was charged for a reservation is on disk. Where it is not, or soon would not be,
        more is lent with the next write, which is asked for."""
        reserved = self._book.reserved[id]
        within = True
        amount: dict[str, int] = {}
        for name, code, begin, where in reserved.charged:
            lent = self._warm[name]
            lent.as_used = False
            numbers, edges, nth = lent.numbers, lent.edges, lent.layout.nth[begin]
            at = 3 * nth
            if at < len(edges) and edges[at] == numbers[begin] and numbers[where] <= edges[at + 2]:
                continue
            amount = amount or counting.amounts(reserved.wanted, reserved.cost)
            if not (charge := amount[code[0]]):
                continue
            limit = _limit(reserved.wanted, name, code)
            lent.lend(nth, block(charge, limit, code[1]), limit)
            covered = lent.covers(begin, where)
            within = within and covered
            if not covered or self._writing is None or name not in self._writing:
                self._changed[name] = None
                self._ask()
        return within

    def _linger(self) -> None:
        if not self._lingering:
            self._lingering = True
            self._loop.call_later(LINGER, self._lingered)

    def _lingered(self) -> None:
        self._lingering = False
        if self._changed:
            self._ask()

    def _ask(self) -> None:
        """At the end of this turn of the loop, or of the write that is going on."""
        if not self._asked:
            self._asked = True
            if self._writing is None:
                self._loop.call_soon(self._write)

    def _write(self) -> None:
        """Hand the states of what changed to the thread: of all that a reservation waits for, and not so
        much besides that the loop would be held up. What they lend is granted when they are on disk; what
        they take back is not granted from now on."""
        if self._writing is not None:
            return
        self._written_for, self._waiting = self._waiting, []
        at = slots(self._now())
        self._writing, rows, far = {}, [self._time()], list[str]()
        for name in self._first_of_changed():
            del self._changed[name]
            lent = self._warm[name]
            if name in self._leaving:
                lent.blocks = EMPTY
            bounds, edges, near = lent.ahead(at)
            if not near:
                far.append(name)
            lent.in_doubt(edges)
            self._writing[name] = edges
            rows.append(_row(name, lent, bounds))
        self._asked = bool(self._changed)
        if far:
            self._changed.update(dict.fromkeys(far))
            self._linger()
        self._jobs.put(rows)

    def _first_of_changed(self) -> list[str]:
        reserved = self._book.reserved
        needed = dict.fromkeys(
            name
            for _, id in self._written_for
            if id in reserved
            for name in counting.names(reserved[id].wanted)
            if name in self._changed
        )
        for name in self._changed:
            if len(needed) >= AT_ONCE:
                break
            needed[name] = None
        return list(needed)

    def _told(self, error: StillhouseError | None) -> None:
        """In the event loop: grant what is on disk. What could not be written is as if never asked."""
        assert self._writing is not None
        images, self._writing = self._writing, None
        if error:
            self._changed = dict.fromkeys(images) | self._changed
            self._asked = bool(self._waiting)
        else:
            for name, edges in images.items():
                self._warm[name].edges = edges
        for on_disk, id in self._written_for:
            if error:
                with contextlib.suppress(StoreDown):  # whose subject left and cannot be read stays charged
                    self._settle(id, Used(0, 0, sent=False))
            if not on_disk.done():
                if error:
                    on_disk.set_exception(error)
                else:
                    on_disk.set_result(None)
        self._written_for = []
        self._waiting = [waiting for waiting in self._waiting if not self._lent_meanwhile(waiting)]
        if self._asked:
            self._write()
        if self._closed is not None and self._writing is None and not self._closed.done():
            self._closed.set_result(None)

    def _lent_meanwhile(self, waiting: Waiting) -> bool:
        on_disk, id = waiting
        if not on_disk.done() and self._within_bounds(id):
            on_disk.set_result(None)
        return on_disk.done()

    def _warm_up(self, names: tuple[str, ...], now: int) -> None:
        """Have the subjects in memory, in place of those asked longest ago. Those leave when they are on
        disk as they were used."""
        warm = self._warm
        for name in names:
            lent = warm.get(name)
            if lent is None:
                warm[name] = self._read(name, now)
            else:
                lent.asked = now
                warm.move_to_end(name)
            self._leaving.discard(name)
        for _ in range(2 * len(names)):
            name, lent = next(iter(warm.items()))
            if (lent.asked >= now - IDLE and len(warm) <= self._most) or name in names:
                return
            writing = name in self._changed or (self._writing is not None and name in self._writing)
            if not writing and lent.as_used:
                del warm[name]
                self._leaving.discard(name)
                continue
            warm.move_to_end(name)
            self._leaving.add(name)
            if not writing:
                self._changed[name] = None
                self._linger()

    def _read(self, name: str, now: int) -> Lent:
        """A cold subject; the read is of one row, and takes less than handing it to a thread."""
        try:
            row = self._reading.execute(
                "SELECT codes, numbers FROM subject WHERE name = ?", (name,)
            ).fetchone()
        except sqlite3.Error as error:
            raise _down(self._folder, "read", error) from error
        return Lent(now, _codes(row[0]), row[1]) if row else Lent(now)

    def _serve(self) -> None:
        while (rows := self._jobs.get()) is not None:
            error = self._commit(rows)
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
                self._loop.call_soon_threadsafe(self._told, error)

    def _commit(self, rows: list[Row]) -> StillhouseError | None:
        try:
            _put(self._db, rows)
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                self._db.execute("ROLLBACK")
            return _down(self._folder, "write", error)
        except Exception as error:  # without this thread every reservation would wait for ever
            return _down(self._folder, "write", error)
        return None if self._are_there() else _gone(self._folder)

    def _look(self) -> None:
        self._there = self._are_there()
        self._watch = self._loop.call_later(LOOK, self._look)

    def _are_there(self) -> bool:
        try:
            return _identities(self._folder) == self._files
        except OSError:
            return False

    def _time(self) -> Row:
        return CLOCK, "", self._now().to_bytes(8, "big")


def _row(name: str, counters: Counters, numbers: array[int]) -> Row:
    return name, "\n".join(map(" ".join, counters.layout)), numbers.tobytes()


def _limit(wanted: Wanted, name: str, code: Code) -> int | None:
    amounts = (
        limit.amount
        for subject in wanted.subjects
        if subject.name == name
        for limit in subject.limits
        if (limit.measure, limit.window) == code
    )
    return min(amounts, default=None)


def _put(db: sqlite3.Connection, rows: list[Row]) -> None:
    """One statement is a transaction of its own, and gives up the interpreter's lock only once. A row is
    repeated so that there are statements of few sizes: each is kept prepared, which takes 1.4 kB a row."""
    whole = len(rows) <= SIZES[-1]
    if not whole:
        db.execute("BEGIN IMMEDIATE")
    for begin in range(0, len(rows), SIZES[-1]):
        some = rows[begin : begin + SIZES[-1]]
        some += some[:1] * (next(size for size in SIZES if size >= len(some)) - len(some))
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
    db = sqlite3.connect(folder / "counts.sqlite", isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
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


def _identities(folder: Path) -> list[tuple[int, int]]:
    found = []
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            said = os.stat(folder / name)
            found.append((said.st_dev, said.st_ino))
    return found


def _gone(folder: Path) -> StoreDown:
    return StoreDown(
        f"the counts in {folder} are gone",
        "their files were deleted, moved or replaced while the gateway ran",
        "move them back; or start the gateway again, which makes the counts anew of the events",
    )


def _down(folder: Path, doing: str, error: Exception) -> StoreDown:
    return StoreDown(
        f"could not {doing} the counts in {folder}",
        str(error),
        "see that the disk has space and can be written; it goes on by itself then",
    )
