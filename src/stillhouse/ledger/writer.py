"""One thread that writes: callers queue operations, and those that wait together are committed together."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from stillhouse.errors import LedgerError
from stillhouse.ledger.database import explain, roll_back

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

GROUP = 256
WAITING = 4096


class Writer:
    """Runs operations in the order in which they were submitted, up to GROUP of them in a transaction.

    There is no timer: while one group is being synced to disk the next one gathers, and an operation that
    comes alone is committed at once. A future resolves after its transaction is on disk.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._waiting: list[tuple[Future[Any], Operation[Any]]] = []
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="ledger", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[T]) -> Future[T]:
        """Queue an operation; waits for room when too many are queued. Raises LedgerError when closed."""
        future: Future[T] = Future()
        # A cancelled task stops waiting, but what it paid for is still recorded: no cancelling from here on.
        future.set_running_or_notify_cancel()
        with self._lock:
            while len(self._waiting) >= WAITING and not self._closed:
                self._room.wait()
            if self._closed:
                raise LedgerError(
                    "the ledger is closed", "something was written after closing it", "open it again"
                )
            self._waiting.append((future, operation))
            if len(self._waiting) == 1:
                self._work.notify()
        return future

    def close(self) -> None:
        """Commit what is queued, then stop."""
        with self._lock:
            self._closed = True
            self._work.notify()
            self._room.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closed:
                    self._work.wait()
                if not self._waiting:
                    return
                group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                self._room.notify_all()
            self._commit(group)

    def _commit(self, group: list[tuple[Future[Any], Operation[Any]]]) -> None:
        results = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for _, operation in group:
                results.append(operation(self._db))
            self._db.execute("COMMIT")
        except Exception as error:
            roll_back(self._db)
            if len(group) == 1 or _concerns_all(error):
                for future, _ in group:
                    future.set_exception(explain(error, self._path, "write to"))
            else:
                # One operation was refused. It must not take its neighbours along, so each is tried alone.
                for one in group:
                    self._commit([one])
        else:
            for (future, _), result in zip(group, results, strict=True):
                future.set_result(result)


def _concerns_all(error: Exception) -> bool:
    """The disk or the file failed, and would fail each operation alone; not so a row of the wrong type."""
    return isinstance(error, sqlite3.OperationalError | OSError) or type(error) is sqlite3.DatabaseError
