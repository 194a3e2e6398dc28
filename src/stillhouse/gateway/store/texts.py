"""Where sealed texts lie, and the keys that open them: `texts.sqlite` in the store's folder, or the database
that replicas share; what a cascade deferred lies apart, in `deferred.sqlite`, or in tables of its own. All
that is in these tables is useless without the store's secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from stillhouse.gateway.store.tables import Tables, Undone
from stillhouse.guard.config import Store
from stillhouse.ledger.database import Connection

Of = Literal["text", "deferred"]
FILE = "texts.sqlite"
FILES: Mapping[Of, str] = {"text": FILE, "deferred": "deferred.sqlite"}


def _schema(of: Of) -> tuple[str, ...]:
    return (
        # `under` names the secret that wraps the key.
        f"""CREATE TABLE IF NOT EXISTS {of}_key (
         account TEXT NOT NULL, day INTEGER NOT NULL, under TEXT NOT NULL, wrapped BLOB NOT NULL,
         PRIMARY KEY (account, day, under)) STRICT""",
        f"""CREATE TABLE IF NOT EXISTS kept_{of} (
         id TEXT PRIMARY KEY, account TEXT NOT NULL, day INTEGER NOT NULL, under TEXT NOT NULL,
         sealed BLOB NOT NULL) STRICT""",
        f"CREATE INDEX IF NOT EXISTS kept_{of}_key ON kept_{of} (account, day)",
    )


class Kept(NamedTuple):
    """A sealed text and what opens it; `wrapped` is None where nothing does any more."""

    account: str
    day: int
    under: str
    sealed: bytes
    wrapped: bytes | None


class Forgotten(Undone):
    """The key under which a text was sealed has been erased."""


class TextStore:
    """For one thread at a time. Every method raises what those of `Tables` raise."""

    def __init__(self, store: Store, of: Of = "text") -> None:
        self._keys, self._texts = f"{of}_key", f"kept_{of}"
        self._tables = Tables(store, FILES[of], _schema(of))
        self._tables.scrub()  # a process that erased something may have been killed before it did this
        self.close = self._tables.close

    def wrapped(self, account: str, day: int, under: str, fresh: bytes) -> bytes:
        """The wrapped key of an account's day; `fresh` becomes it where there is none."""

        def change(db: Connection) -> bytes:
            db.execute(
                f"INSERT INTO {self._keys} VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (account, day, under, fresh),
            )
            query = f"SELECT wrapped FROM {self._keys} WHERE account = ? AND day = ? AND under = ?"
            return bytes(db.execute(query, (account, day, under)).fetchone()[0])

        return self._tables.change(change)

    def write(self, texts: Sequence[tuple[str, str, int, str, bytes]]) -> None:
        """Keep (id, account, day, under, sealed), once for each id. Raises Forgotten, and keeps none, when a
        key was erased meanwhile."""

        def change(db: Connection) -> None:
            for account, day, under in {text[1:4] for text in texts}:
                query = f"SELECT 1 FROM {self._keys} WHERE account = ? AND day = ? AND under = ?"
                if not db.execute(query, (account, day, under)).fetchone():
                    raise Forgotten
            db.executemany(f"INSERT INTO {self._texts} VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", texts)

        self._tables.change(change)

    def read(self, id: str) -> Kept | None:
        query = (
            f"SELECT t.account, t.day, t.under, t.sealed, k.wrapped FROM {self._texts} t"
            f" LEFT JOIN {self._keys} k ON k.account = t.account AND k.day = t.day AND k.under = t.under"
            " WHERE t.id = ?"
        )
        rows = self._tables.read(query, (id,))
        return Kept(*rows[0]) if rows else None

    def erase(self, account: str) -> tuple[int, bool]:
        """Delete an account's texts and their keys from the tables and from the database's files. Gives how
        many texts there were, and False where another process has to end its reading for the last of it."""
        return self._delete("account = ?", account), self._tables.scrub((self._keys, self._texts))

    def expire(self, before: int) -> int:
        """Delete the texts and keys of the days before that one (counted from 1970-01-01)."""
        gone = self._delete("day < ?", before)
        if gone:
            self._tables.scrub()
        return gone

    def _delete(self, where: str, given: str | int) -> int:
        def change(db: Connection) -> int:
            db.execute(f"DELETE FROM {self._keys} WHERE {where}", (given,))
            return db.execute(f"DELETE FROM {self._texts} WHERE {where}", (given,)).rowcount

        return self._tables.change(change)
