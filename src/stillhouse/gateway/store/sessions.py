"""Who is logged in to the console: `console.sqlite` in the store's folder, or the database that replicas
share.

Only the SHA-256 of a session's id is kept, so that a copy of the database lets nobody in.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from stillhouse.gateway.store.tables import Tables
from stillhouse.guard.config import Store
from stillhouse.ledger.database import Connection

FILE = "console.sqlite"
IDLE = 1800.0  # seconds without a request after which a session ends
LONGEST = 12 * 3600.0  # seconds after which it ends in any case
_TOUCH = 30.0  # seconds between two notes of when it was seen
_SEEN = "UPDATE console_session SET seen = ? WHERE digest = ?"
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS console_session (
         digest BLOB PRIMARY KEY, operator TEXT NOT NULL, began REAL NOT NULL, seen REAL NOT NULL) STRICT""",
)


@dataclass(frozen=True, slots=True)
class Session:
    """`id` is what the cookie holds, `began` is in Unix seconds."""

    id: str
    operator: str
    began: float


class Sessions:
    """For one thread at a time. Every method raises what those of `Tables` raise."""

    def __init__(self, store: Store) -> None:
        self._tables = Tables(store, FILE, _SCHEMA)
        self.close = self._tables.close

    def begin(self, session: Session) -> None:
        """And forget those that have ended."""
        row = (_digest(session.id), session.operator, session.began, session.began)
        now = session.began

        def change(db: Connection) -> None:
            db.execute("DELETE FROM console_session WHERE seen < ? OR began < ?", (now - IDLE, now - LONGEST))
            db.execute("INSERT INTO console_session VALUES (?, ?, ?, ?)", row)

        self._tables.change(change)

    def find(self, id: str, now: float, asked: bool = True) -> Session | None:
        """The session, which counts as seen now if a person `asked`; None where there is none, or where it
        has ended."""
        digest = _digest(id)
        query = "SELECT operator, began, seen FROM console_session WHERE digest = ?"
        for operator, began, seen in self._tables.read(query, (digest,)):
            if now - seen >= IDLE or now - began >= LONGEST:
                return None
            if asked and now - seen > _TOUCH:
                self._tables.change(lambda db: db.execute(_SEEN, (now, digest)))
            return Session(id, operator, began)
        return None

    def end(self, id: str) -> None:
        statement = "DELETE FROM console_session WHERE digest = ?"
        self._tables.change(lambda db: db.execute(statement, (_digest(id),)))


def _digest(id: str) -> bytes:
    return sha256(id.encode()).digest()
