"""Searches for accounts that act as one, and what they found: tables beside the standings.

A cluster that is found again is the same as long as it has half of its accounts, or half of the new ones: so
what a person decided on it holds in the weeks after.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import orjson

from stillhouse.gateway.store.tables import Tables
from stillhouse.guard.clusters import Cluster, Shared
from stillhouse.ledger.database import Connection

Answer = Literal["", "review", "dismiss"]

RETAKEN = 7200.0  # seconds after which a search that did not end is another one's
SCHEMA = (
    # Months are counted from January 1970 (UTC). `ended` is 0 until then; `told` is JSON.
    """CREATE TABLE IF NOT EXISTS search (
         month INTEGER NOT NULL, look INTEGER NOT NULL, at REAL NOT NULL, replica TEXT NOT NULL,
         ended REAL NOT NULL, told TEXT NOT NULL, PRIMARY KEY (month, look)) STRICT""",
    """CREATE TABLE IF NOT EXISTS cluster (
         id INTEGER PRIMARY KEY, at REAL NOT NULL, month INTEGER NOT NULL, found INTEGER NOT NULL,
         shared TEXT NOT NULL, joined INTEGER NOT NULL, linked REAL NOT NULL, chance REAL NOT NULL,
         answer TEXT NOT NULL, who TEXT NOT NULL, said TEXT NOT NULL, answered REAL NOT NULL) STRICT""",
    """CREATE TABLE IF NOT EXISTS cluster_account (
         cluster INTEGER NOT NULL, account TEXT NOT NULL, PRIMARY KEY (cluster, account)) STRICT""",
    "CREATE INDEX IF NOT EXISTS cluster_account_account ON cluster_account (account)",
)


class Search(NamedTuple):
    """The search number `look` of a month: when it began and ended (Unix seconds, 0 while it runs), and what
    it told: how many accounts and groups, or what went wrong."""

    month: int
    look: int
    at: float
    replica: str
    ended: float
    told: dict[str, Any]


class Finding(NamedTuple):
    """A cluster as it was `found` last, of so many accounts, some of which may have been forgotten since;
    `at` is that moment. `answer` is what a person decided, "" while none has."""

    id: int
    at: float
    month: int
    found: int
    shared: Shared
    joined: int
    linked: float
    chance: float
    answer: Answer
    who: str
    said: str
    answered: float


_FINDING = ", ".join(Finding._fields)


class Findings:
    """For one thread at a time. Every method raises what those of `Tables` raise."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._read = tables.read

    def sketches(self, month: int) -> list[tuple[str, bytes]]:
        """(account, sketch) of a month; what each replica saw is a row of its own."""
        parts = (f"SELECT account, sketch FROM {table} WHERE month = ?" for table in ("evidence", "sketch"))
        rows = self._read(" UNION ALL ".join(parts), (month, month))
        return [(account, bytes(sketch)) for account, sketch in rows]

    def claim(self, month: int, look: int, replica: str, at: float) -> bool:
        """Whether this search is the caller's: nobody else made it, or began and did not end it for long."""

        def change(db: Connection) -> bool:
            statement = (
                "INSERT INTO search VALUES (?, ?, ?, ?, 0, '{}') ON CONFLICT (month, look) DO UPDATE SET"
                " at = excluded.at, replica = excluded.replica WHERE search.ended = 0 AND search.at < ?"
            )
            return db.execute(statement, (month, look, at, replica, at - RETAKEN)).rowcount == 1

        return self._tables.change(change)

    def ended(self, month: int, look: int, at: float, told: dict[str, Any]) -> None:
        statement = "UPDATE search SET ended = ?, told = ? WHERE month = ? AND look = ?"
        given = (at, orjson.dumps(told).decode(), month, look)
        self._tables.change(lambda db: db.execute(statement, given))

    def searches(self, most: int = 10) -> list[Search]:
        """The newest first."""
        query = "SELECT * FROM search ORDER BY month DESC, look DESC LIMIT ?"
        rows = self._read(query, (most,))
        return [
            Search(month, look, at, replica, ended, orjson.loads(told))
            for month, look, at, replica, ended, told in rows
        ]

    def take(self, cluster: Cluster, month: int, at: float) -> tuple[int, list[str]]:
        """The number of the cluster, and which of its accounts are new to it: to be added by `join`."""
        names = cluster.accounts
        among = f"account IN ({', '.join('?' * len(names))})"
        figures = (len(names), cluster.shared, cluster.joined, cluster.linked, cluster.chance)

        def change(db: Connection) -> tuple[int, list[str]]:
            query = f"SELECT cluster, count(*) FROM cluster_account WHERE {among} GROUP BY cluster"
            for id, shared in db.execute(f"{query} ORDER BY 2 DESC", names).fetchall():
                every = "SELECT count(*) FROM cluster_account WHERE cluster = ?"
                if 2 * shared >= min(len(names), db.execute(every, (id,)).fetchone()[0]):
                    db.execute(
                        "UPDATE cluster SET at = ?, month = ?, found = ?, shared = ?, joined = ?, linked = ?,"
                        " chance = ? WHERE id = ?",
                        (at, month, *figures, id),
                    )
                    query = f"SELECT account FROM cluster_account WHERE cluster = ? AND {among}"
                    known = {account for (account,) in db.execute(query, (id, *names)).fetchall()}
                    return int(id), [name for name in names if name not in known]
            made = db.execute(
                "INSERT INTO cluster (at, month, found, shared, joined, linked, chance, answer, who, said,"
                " answered) VALUES (?, ?, ?, ?, ?, ?, ?, '', '', '', 0) RETURNING id",
                (at, month, *figures),
            )
            return int(made.fetchone()[0]), list(names)

        return self._tables.change(change)

    def join(self, cluster: int, account: str) -> None:
        statement = "INSERT INTO cluster_account VALUES (?, ?) ON CONFLICT (cluster, account) DO NOTHING"
        self._tables.change(lambda db: db.execute(statement, (cluster, account)))

    def clusters(self, most: int = 100) -> list[Finding]:
        """Those that nobody decided on first, and then the newest."""
        query = f"SELECT {_FINDING} FROM cluster ORDER BY answer <> '', at DESC, id DESC LIMIT ?"
        return [Finding(*row) for row in self._read(query, (most,))]

    def cluster(self, id: int) -> Finding | None:
        rows = self._read(f"SELECT {_FINDING} FROM cluster WHERE id = ?", (id,))
        return Finding(*rows[0]) if rows else None

    def accounts(self, id: int) -> list[str]:
        query = "SELECT account FROM cluster_account WHERE cluster = ? ORDER BY account"
        return [account for (account,) in self._read(query, (id,))]

    def of(self, account: str) -> list[int]:
        """The clusters that an account is in."""
        query = "SELECT cluster FROM cluster_account WHERE account = ? ORDER BY cluster"
        return [id for (id,) in self._read(query, (account,))]

    def answer(self, id: int, answer: Answer, who: str, said: str, at: float) -> None:
        statement = "UPDATE cluster SET answer = ?, who = ?, said = ?, answered = ? WHERE id = ?"
        self._tables.change(lambda db: db.execute(statement, (answer, who, said, at, id)))

    def open(self) -> int:
        """How many clusters wait for a person."""
        return int(self._read("SELECT count(*) FROM cluster WHERE answer = ''")[0][0])
