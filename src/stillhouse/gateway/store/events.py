"""Where events lie: `events.sqlite` in the store's folder, or the database that replicas share.

The rows of a batch are written in one transaction together with the sums over them, so that usage stays exact
when the events themselves have expired. Events lie in groups, each filled by one process. A group that is
sealed has the Merkle root over its events, and after that one leaf in the ledger of its replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from stillhouse.errors import StorageError
from stillhouse.gateway.store.tables import Tables, Undone
from stillhouse.guard.config import Store
from stillhouse.guard.events import FIELDS, Event, Minute, Part, Row, Traffic, Usage, event_of
from stillhouse.ledger.database import Connection

T = TypeVar("T")

FILE = "events.sqlite"
VERSION = 1
_AT_ONCE = (128, 16, 4, 1)  # rows of a statement; few sizes, so that the database keeps all of them prepared
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS event_schema (version INTEGER PRIMARY KEY) STRICT",
    # `leaf` is the number of the group's leaf in the ledger of its replica.
    """CREATE TABLE IF NOT EXISTS event_group (
         id INTEGER PRIMARY KEY, replica TEXT NOT NULL, events INTEGER NOT NULL DEFAULT 0,
         first INTEGER, last INTEGER, root BLOB, leaf INTEGER, expired INTEGER NOT NULL DEFAULT 0) STRICT""",
    "CREATE INDEX IF NOT EXISTS event_group_open ON event_group (replica) WHERE leaf IS NULL",
    "CREATE INDEX IF NOT EXISTS event_group_last ON event_group (last) WHERE expired = 0",
    """CREATE TABLE IF NOT EXISTS event (
         event_group INTEGER NOT NULL, n INTEGER NOT NULL,
         account TEXT NOT NULL, at INTEGER NOT NULL, changed TEXT NOT NULL, choices INTEGER NOT NULL,
         cost INTEGER NOT NULL, counted TEXT NOT NULL, ended TEXT NOT NULL, first_byte INTEGER,
         id TEXT NOT NULL, input_tokens INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
         organisation TEXT NOT NULL, output_tokens INTEGER NOT NULL, reason TEXT NOT NULL,
         route TEXT NOT NULL, seconds INTEGER NOT NULL, status INTEGER NOT NULL, stream INTEGER NOT NULL,
         upstream TEXT NOT NULL, PRIMARY KEY (event_group, n)) STRICT, WITHOUT ROWID""",
    "CREATE UNIQUE INDEX IF NOT EXISTS event_id ON event (id)",
    "CREATE INDEX IF NOT EXISTS event_account ON event (account, at)",
    """CREATE TABLE IF NOT EXISTS usage (
         day INTEGER NOT NULL, organisation TEXT NOT NULL, account TEXT NOT NULL, key TEXT NOT NULL,
         model TEXT NOT NULL, schedule TEXT NOT NULL, input_price INTEGER NOT NULL,
         output_price INTEGER NOT NULL, requests INTEGER NOT NULL, refused INTEGER NOT NULL,
         bound INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
         cost INTEGER NOT NULL,
         PRIMARY KEY (day, organisation, account, key, model, schedule, input_price, output_price)
       ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS usage_account ON usage (account, day)",
    """CREATE TABLE IF NOT EXISTS traffic (
         minute INTEGER NOT NULL, model TEXT NOT NULL, status INTEGER NOT NULL, ended TEXT NOT NULL,
         reason TEXT NOT NULL, requests INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
         output_tokens INTEGER NOT NULL, cost INTEGER NOT NULL, lasted INTEGER NOT NULL,
         PRIMARY KEY (minute, model, status, ended, reason)) STRICT, WITHOUT ROWID""",
)
MINUTES = 14 * 1440  # for which traffic is kept by the minute
SEARCHED = 200_000  # events, the newest, among which a search without an id or an account looks
_ROW = ", ".join(FIELDS)


class Sealed(Undone):
    """The group was sealed, or filled, by somebody else."""


class Group(NamedTuple):
    """`first` and `last` are the times of its events in microseconds, `root` the Merkle root over their
    canonical forms, None where it is not sealed, and `leaf` that root's place in the replica's ledger."""

    id: int
    replica: str
    events: int
    first: int | None
    last: int | None
    root: bytes | None
    leaf: int | None
    expired: int


_GROUP = ", ".join(Group._fields)


class Place(NamedTuple):
    """Where an event lies: its time in microseconds, its group and its number there."""

    at: int
    group: int
    n: int


class Sought(NamedTuple):
    """What events must have; None: anything."""

    id: str | None = None
    account: str | None = None
    model: str | None = None
    status: int | None = None
    ended: str | None = None


class Events:
    """For one thread at a time. Every method raises what those of `Tables` raise."""

    def __init__(self, store: Store) -> None:
        self._tables = Tables(store, FILE, _SCHEMA)
        self._read, self.close = self._tables.read, self._tables.close
        try:
            self._tables.change(_of_this_version)
        except BaseException:
            self.close()
            raise

    # Written by the record

    def begin_group(self, replica: str) -> int:
        statement = "INSERT INTO event_group (replica) VALUES (?) RETURNING id"
        return self._tables.change(lambda db: int(db.execute(statement, (replica,)).fetchone()[0]))

    def write(
        self,
        group: int,
        before: int,
        span: tuple[int, int],
        rows: Sequence[Row],
        sums: Mapping[Part, Usage],
        minutes: Mapping[Minute, Traffic],
    ) -> None:
        """Add rows to a group that holds `before` events, and sums to the usage and the traffic: all or
        nothing. `span` are the first and last time of the group with them.

        Raises Repeated when one of their ids is known, Sealed when the group is not as it was left, and
        ValueError when the database takes one of the rows for nonsense.
        """

        def change(db: Connection) -> None:
            filled = db.execute(
                "UPDATE event_group SET events = ?, first = ?, last = ?"
                " WHERE id = ? AND events = ? AND root IS NULL",
                (before + len(rows), *span, group, before),
            )
            if filled.rowcount != 1:
                raise Sealed
            numbered = [(group, before + n, *row) for n, row in enumerate(rows)]
            _insert(db, f"INSERT INTO event (event_group, n, {_ROW})", numbered)
            _add_to(db, "usage", Part._fields, Usage._fields, sums)
            _add_to(db, "traffic", Minute._fields, Traffic._fields, minutes)

        self._tables.change(change)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that are in the store."""
        found: set[str] = set()
        for some in _some(sorted(set(ids))):
            query = f"SELECT id FROM event WHERE id IN ({','.join('?' * len(some))})"
            found.update(id for (id,) in self._read(query, some))
        return found

    def seal(self, group: int, events: int, root: bytes) -> None:
        """Raises Sealed when the group does not hold so many events, or is sealed."""

        def change(db: Connection) -> None:
            sealed = db.execute(
                "UPDATE event_group SET root = ? WHERE id = ? AND events = ? AND root IS NULL",
                (root, group, events),
            )
            if sealed.rowcount != 1:
                raise Sealed

        self._tables.change(change)

    def link(self, group: int, leaf: int) -> None:
        self._tables.change(
            lambda db: db.execute("UPDATE event_group SET leaf = ? WHERE id = ?", (leaf, group))
        )

    def drop(self, group: int) -> None:
        """Forget a group that holds nothing."""
        statement = "DELETE FROM event_group WHERE id = ? AND events = 0"
        self._tables.change(lambda db: db.execute(statement, (group,)))

    def unlinked(self, replica: str) -> list[Group]:
        """The replica's groups that have no leaf, oldest first."""
        query = f"SELECT {_GROUP} FROM event_group WHERE replica = ? AND leaf IS NULL ORDER BY id"
        return [Group(*row) for row in self._read(query, (replica,))]

    def last_leaf(self, replica: str) -> int:
        """The replica's newest leaf that a group names; -1 where there is none."""
        query = "SELECT coalesce(max(leaf), -1) FROM event_group WHERE replica = ?"
        return int(self._read(query, (replica,))[0][0])

    def expire(self, before: int) -> int:
        """Delete the events of one sealed group whose last one came before that time (microseconds); how
        many there were. Their usage, root and leaf stay; traffic older than `MINUTES` goes too."""

        def change(db: Connection) -> int:
            db.execute("DELETE FROM traffic WHERE minute < (SELECT max(minute) FROM traffic) - ?", (MINUTES,))
            found = db.execute(
                "SELECT id FROM event_group WHERE expired = 0 AND last < ? AND leaf IS NOT NULL LIMIT 1",
                (before,),
            ).fetchone()
            if found is None:
                return 0
            db.execute("UPDATE event_group SET expired = 1 WHERE id = ?", found)
            return db.execute("DELETE FROM event WHERE event_group = ?", found).rowcount

        return self._tables.change(change)

    # Read by whoever

    def find(self, id: str) -> tuple[Group, int, Row] | None:
        """The event's group, its place there, and its row; None where there is none."""
        found = self._read(f"SELECT event_group, n, {_ROW} FROM event WHERE id = ?", (id,))
        if not found:
            return None
        group, n, *row = found[0]
        return self.group(group), n, tuple(row)

    def group(self, id: int) -> Group:
        return Group(*self._read(f"SELECT {_GROUP} FROM event_group WHERE id = ?", (id,))[0])

    def rows(self, group: int) -> list[Row]:
        """The events of a group in their order."""
        return self._read(f"SELECT {_ROW} FROM event WHERE event_group = ? ORDER BY n", (group,))

    def newest(self, account: str | None = None, before: float | None = None, most: int = 100) -> list[Event]:
        """Events in the order in which they came, the newest first: those of an account, or of all."""
        where: list[str] = ["1 = 1"]
        given: list[Any] = []
        if account is not None:
            where, given = ["account = ?"], [account]
        if before is not None:
            where.append("at < ?")
            given.append(round(before * 1e6))
        order = "event_group DESC, n DESC" if account is None else "at DESC"
        query = f"SELECT {_ROW} FROM event WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ?"
        return [event_of(row) for row in self._read(query, (*given, most))]

    def usage(
        self, first: int, last: int, account: str | None = None, organisation: str | None = None
    ) -> dict[Part, Usage]:
        """Sums over the days from `first` to `last`, both counted from 1970-01-01 and included."""
        where = ["day >= ? AND day <= ?"]
        given: list[Any] = [first, last]
        for name, value in (("account", account), ("organisation", organisation)):
            if value is not None:
                where.append(f"{name} = ?")
                given.append(value)
        names = ", ".join((*Part._fields, *Usage._fields))
        parts = ", ".join(Part._fields)
        query = f"SELECT {names} FROM usage WHERE {' AND '.join(where)} ORDER BY {parts}"
        cut = len(Part._fields)
        return {Part(*row[:cut]): Usage(*row[cut:]) for row in self._read(query, given)}

    # Read by the console

    def traffic(self, first: int, last: int, model: str | None = None) -> dict[Minute, Traffic]:
        """Sums of the minutes from `first` to `last`, both counted from 1970-01-01 and included."""
        names = ", ".join((*Minute._fields, *Traffic._fields))
        of, given = ("", [first, last]) if model is None else ("AND model = ?", [first, last, model])
        query = f"SELECT {names} FROM traffic WHERE minute >= ? AND minute <= ? {of} ORDER BY minute"
        cut = len(Minute._fields)
        return {Minute(*row[:cut]): Traffic(*row[cut:]) for row in self._read(query, given)}

    def search(self, sought: Sought, most: int, after: Place | None = None) -> list[tuple[Place, Event]]:
        """Events with their places, the newest first: those after a place. Without an id or an account only
        the newest `SEARCHED` are looked at."""
        where = [f"{name} = ?" for name, value in sought._asdict().items() if value is not None]
        given: list[Any] = [value for value in sought if value is not None]
        source, first = "event", "event_group DESC, n DESC"
        if sought.id is None and sought.account is None:
            source = f"(SELECT * FROM event ORDER BY {first} LIMIT {SEARCHED}) AS newest"
        else:
            first = f"at DESC, {first}"
        if after is not None:
            narrow = source != "event"
            where.append("(event_group, n) < (?, ?)" if narrow else "(at, event_group, n) < (?, ?, ?)")
            given += after[1:] if narrow else after
        which = f"WHERE {' AND '.join(where)}" if where else ""
        query = f"SELECT at, event_group, n, {_ROW} FROM {source} {which} ORDER BY {first} LIMIT ?"
        return [(Place(*row[:3]), event_of(tuple(row[3:]))) for row in self._read(query, (*given, most))]

    def last_seen(self, accounts: Iterable[str]) -> dict[str, float]:
        """When the newest event of each account came (Unix seconds), where there is one."""
        query = "SELECT max(at) FROM event WHERE account = ?"
        found = {account: self._read(query, (account,))[0][0] for account in accounts}
        return {account: at / 1e6 for account, at in found.items() if at is not None}

    def busiest(self, day: int, most: int) -> list[tuple[str, Usage]]:
        """The accounts that cost most on a day, and then those that asked most."""
        sums = ", ".join(f"sum({name})" for name in Usage._fields)
        query = (
            f"SELECT account, {sums} FROM usage WHERE day = ? AND account != '' GROUP BY account"
            " ORDER BY sum(cost) DESC, sum(requests) DESC, account LIMIT ?"
        )
        return [(account, Usage(*map(int, row))) for account, *row in self._read(query, (day, most))]


def _of_this_version(db: Connection) -> None:
    versions = [version for (version,) in db.execute("SELECT version FROM event_schema").fetchall()]
    if not versions:
        db.execute("INSERT INTO event_schema VALUES (?)", (VERSION,))
    elif max(versions) > VERSION:
        raise StorageError(
            "the events are newer than this stillhouse",
            f"their schema has version {max(versions)}, this one knows {VERSION}",
            "upgrade stillhouse; nothing was changed",
        )


def _add_to(
    db: Connection,
    table: str,
    key: Sequence[str],
    values: Sequence[str],
    sums: Mapping[Any, Sequence[Any]],
) -> None:
    """In one order, so that two replicas never wait for each other."""
    added = [(*part, *sums[part]) for part in sorted(sums)]
    plus = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in values)
    names = ", ".join((*key, *values))
    _insert(
        db, f"INSERT INTO {table} ({names})", added, f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {plus}"
    )


def _insert(db: Connection, into: str, rows: Sequence[Sequence[Any]], after: str = "") -> None:
    for some in _some(rows):
        marks = ",".join([f"({','.join('?' * len(some[0]))})"] * len(some))
        db.execute(f"{into} VALUES {marks} {after}", [value for row in some for value in row])


def _some(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    start = 0
    while start < len(rows):
        size = next(size for size in _AT_ONCE if size <= len(rows) - start)
        yield rows[start : start + size]
        start += size
