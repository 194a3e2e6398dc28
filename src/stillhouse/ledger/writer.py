"""One thread that writes: callers queue operations, and those that wait together are committed together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import groupby
from typing import Any, TypeVar

from stillhouse.errors import LedgerError
from stillhouse.ledger.database import Connection, Database

T = TypeVar("T")
U = TypeVar("U")
Operation = Callable[[Connection], T]
Many = Callable[[Connection, Sequence[U]], Sequence[T]]
Queued = tuple[Future[Any], Many[Any, Any], Any]

GROUP = 256
WAITING = 4096
LINGER = 0.004  # seconds


class Writer:
    """Runs operations in the order in which they were submitted, up to GROUP of them in a transaction.

    While one group is being synced to disk the next one gathers. An operation that comes alone is committed
    at once; after a group of several the writer lingers for more, because a commit costs as much as tens of
    rows. A future resolves after its transaction is on disk.
    """

    def __init__(self, db: Connection, database: Database) -> None:
        self._db = db
        self._database = database
        self._waiting: list[Queued] = []
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="ledger", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[T]) -> Future[T]:
        """Queue an operation. It sees all that was queued before it, and none of what is queued later."""
        return self.put(_each, operation)

    def put(self, many: Many[U, T], item: U) -> Future[T]:
        """Queue one of the items that `many` works on together, in whatever order; waits for room when too
        many are queued. Raises LedgerError when closed."""
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
            self._waiting.append((future, many, item))
            if len(self._waiting) in (1, GROUP):
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
        many = False
        while True:
            with self._lock:
                while not self._waiting and not self._closed:
                    self._work.wait()
                if not self._waiting:
                    return
                if many:
                    self._work.wait_for(lambda: len(self._waiting) >= GROUP or self._closed, LINGER)
                group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                self._room.notify_all()
            many = len(group) > 1
            self._commit(group)

    def _commit(self, group: list[Queued]) -> None:
        try:
            self._database.begin(self._db)
            results = self._work_off(group)
            self._db.commit()
        except Exception as error:
            self._database.roll_back(self._db)
            if len(group) == 1 or self._database.concerns_all(error):
                for future, _, _ in group:
                    future.set_exception(self._database.explain(error, "write to"))
            else:
                # One operation was refused. It must not take its neighbours along, so each is tried alone.
                for one in group:
                    self._commit([one])
        else:
            for future, result in results:
                future.set_result(result)

    def _work_off(self, group: list[Queued]) -> list[tuple[Future[Any], Any]]:
        """Runs of items that go together, whichever come first in them, and runs of operations in order."""
        results: list[tuple[Future[Any], Any]] = []
        for _, run in groupby(group, key=lambda queued: queued[1] is _each):
            together: dict[Many[Any, Any], list[tuple[Future[Any], Any]]] = {}
            for future, many, item in run:
                together.setdefault(many, []).append((future, item))
            for many, queued in together.items():
                done = many(self._db, [item for _, item in queued])
                results.extend(zip((future for future, _ in queued), done, strict=True))
        return results


def _each(db: Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    return [operation(db) for operation in operations]
