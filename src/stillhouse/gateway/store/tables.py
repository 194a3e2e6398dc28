"""Tables in a file of the store's folder, or in the database that replicas share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stillhouse.errors import StillhouseError, StorageError
from stillhouse.gateway.store.place import CACHE_KB, place_of
from stillhouse.guard.config import Store
from stillhouse.ledger.database import Connection, SQLite

T = TypeVar("T")


_REPEATED = ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "23505")


class Undone(Exception):
    """Raised within a change to take all of it back."""


class Repeated(Undone):
    """A row of the change is there already."""


class Tables:
    """One connection, for one thread at a time.

    Every method raises StorageError when the database cannot be reached, is full or is damaged, and
    ValueError when it takes what it was given for nonsense. A URL with a password in it is a UsageError.
    """

    def __init__(self, store: Store, file: str, schema: Sequence[str]) -> None:
        self.database = place_of(store, file)
        self.name = store.database.partition("?")[0] if store.database else str(Path(store.folder) / file)
        with self._told("open"):
            self._db = self.database.connect()
            if isinstance(self.database, SQLite):
                self._db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        try:
            self.change(lambda db: [db.execute(statement) for statement in schema])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._db.close()

    def read(self, query: str, given: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._told("read"):
            return self._db.execute(query, given).fetchall()

    def change(self, operation: Callable[[Connection], T]) -> T:
        """Run it in a transaction. What it raises of `Undone` is raised."""
        with self._told("write to"):
            self.database.begin(self._db)
            try:
                result = operation(self._db)
                self._db.commit()
            except BaseException:
                self.database.roll_back(self._db)
                raise
            return result

    def scrub(self, whole: Sequence[str] = ()) -> bool:
        """Remove the bytes of deleted rows from the database's files. SQLite overwrites them by itself; here
        its WAL is emptied and, where tables are named, the file written anew; False where another process has
        to end its reading first. On a server these tables are written anew; its log and backups stay."""
        with self._told("remove deleted bytes from"):
            if isinstance(self.database, SQLite):
                return self.database.scrub(self._db, bool(whole))
            for table in whole:
                self._db.execute(f"VACUUM (FULL) {table}")
            return True

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (StillhouseError, Undone):
            raise
        except Exception as error:
            code = getattr(error, "sqlite_errorname", None) or getattr(error, "sqlstate", None)
            if code in _REPEATED:
                raise Repeated from error
            said = " ".join(f"{type(error).__name__}: {error}".split())
            if not self.database.concerns_all(error):
                raise ValueError(said) from error
            mend = "see that the disk has space and that the database can be reached"
            raise StorageError(f"could not {doing} {self.name}", said, mend) from error
