"""Where events lie: `events.sqlite` in the store's folder, or the database that replicas share.

Events lie in groups, each filled by one process. In the transaction that seals a group with the Merkle root
over its events they are added to the usage, which so stays exact when they have expired; those of groups that
are still filled are summed whenever somebody asks. A sealed group then gets one leaf in its replica's ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from stillhouse.errors import StorageError
from stillhouse.gateway.store.tables import Tables, Undone
from stillhouse.guard.config import Store
from stillhouse.guard.events import (
    FIELDS,
    Charge,
    Event,
    Minute,
    Part,
    Row,
    Traffic,
    Usage,
    event_of,
)
from stillhouse.ledger.database import Connection

T = TypeVar("T")

FILE = "events.sqlite"
VERSION = 1
_DAY = 86_400_000_000  # microseconds
_AT_ONCE = (128, 16, 4, 1)  # rows of a statement; few sizes, so that the database keeps all of them prepared
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS event_schema (version INTEGER PRIMARY KEY) STRICT",
    # `leaf` is the number of the group's leaf in the ledger of its replica.
    """CREATE TABLE IF NOT EXISTS event_group (
         id INTEGER PRIMARY KEY, replica TEXT NOT NULL, events INTEGER NOT NULL DEFAULT 0,
         first INTEGER, last INTEGER, root BLOB, leaf INTEGER, expired INTEGER NOT NULL DEFAULT 0) STRICT""",
    "CREATE INDEX IF NOT EXISTS event_group_open ON event_group (replica) WHERE leaf IS NULL",
    "CREATE INDEX IF NOT EXISTS event_group_filled ON event_group (id) WHERE root IS NULL",
    "CREATE INDEX IF NOT EXISTS event_group_last ON event_group (last) WHERE expired = 0",
    """CREATE TABLE IF NOT EXISTS event (
         event_group INTEGER NOT NULL, n INTEGER NOT NULL,
         account TEXT NOT NULL, at INTEGER NOT NULL, changed TEXT NOT NULL, choices INTEGER NOT NULL,
         cost INTEGER NOT NULL, counted TEXT NOT NULL, ended TEXT NOT NULL, first_byte INTEGER,
         id TEXT NOT NULL, input_tokens INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
         organisation TEXT NOT NULL, output_tokens INTEGER NOT NULL, reason TEXT NOT NULL,
         route TEXT NOT NULL, seconds INTEGER NOT NULL, status INTEGER NOT NULL, stream INTEGER NOT NULL,
         upstream TEXT NOT NULL, sold TEXT NOT NULL, schedule TEXT NOT NULL, input_price INTEGER NOT NULL,
         output_price INTEGER NOT NULL, PRIMARY KEY (event_group, n)) STRICT, WITHOUT ROWID""",
    "CREATE UNIQUE INDEX IF NOT EXISTS event_id ON event (id)",
    # In which sealed groups an account has events: an index of `event` would cost several times as much.
    """CREATE TABLE IF NOT EXISTS event_account (
         account TEXT NOT NULL, event_group INTEGER NOT NULL,
         PRIMARY KEY (account, event_group)) STRICT, WITHOUT ROWID""",
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
_PARTS = ", ".join(Part._fields)
_SUMS = ", ".join((*Part._fields, *Usage._fields))
# As `guard.events.totals` sums; `sold` and what follows is an event's `Charge`.
_SUMMED = """SELECT at / 86400000000 AS day, organisation, account, key, sold, schedule, input_price,
  output_price, count(*), CAST(sum(CASE WHEN ended = 'refused' THEN 1 ELSE 0 END) AS BIGINT),
  CAST(sum(CASE WHEN counted = 'bound' THEN 1 ELSE 0 END) AS BIGINT), CAST(sum(input_tokens) AS BIGINT),
  CAST(sum(output_tokens) AS BIGINT), CAST(sum(cost) AS BIGINT) FROM event WHERE %s
  GROUP BY at / 86400000000, organisation, account, key, sold, schedule, input_price, output_price"""


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
    """Where an event lies: its group, and its number there."""

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
        charges: Sequence[Charge],
        minutes: Mapping[Minute, Traffic],
    ) -> None:
        """Add rows to a group that holds `before` events, and sums to the traffic: all or nothing. `span` are
        the first and last time of the group with them.

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
            into = f"INSERT INTO event (event_group, n, {_ROW}, sold, schedule, input_price, output_price)"
            both = zip(rows, charges, strict=True)
            _insert(db, into, [(group, before + n, *row, *charge) for n, (row, charge) in enumerate(both)])
            _add_to(db, "traffic", Minute._fields, Traffic._fields, minutes)

        self._tables.change(change)

    def add(self, usage: Mapping[Part, Usage], minutes: Mapping[Minute, Traffic]) -> None:
        """Add sums of requests that are no events: all or nothing."""

        def change(db: Connection) -> None:
            _add_to(db, "usage", Part._fields, Usage._fields, usage)
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
            more = ", ".join(f"{name} = usage.{name} + excluded.{name}" for name in Usage._fields)
            db.execute(
                f"INSERT INTO usage ({_SUMS}) {_SUMMED % 'event_group = ?'}"
                f" ON CONFLICT ({_PARTS}) DO UPDATE SET {more}",
                (group,),
            )
            accounts = "SELECT DISTINCT account, event_group FROM event WHERE event_group = ?"
            db.execute(f"INSERT INTO event_account {accounts}", (group,))

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
            accounts = "SELECT account FROM event WHERE event_group = ?1"
            db.execute(f"DELETE FROM event_account WHERE event_group = ?1 AND account IN ({accounts})", found)
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

    def groups_since(self, at: float) -> list[int]:
        """Groups with events of that time (Unix seconds) or later that have not expired, the oldest first."""
        query = "SELECT id FROM event_group WHERE expired = 0 AND last >= ? ORDER BY id"
        return [id for (id,) in self._read(query, (round(at * 1e6),))]

    def newest(self, account: str | None = None, before: float | None = None, most: int = 100) -> list[Event]:
        """At most so many events in the order in which they were written, the newest first: of all or of an
        account, and only those that came before that time where one is given."""
        return [event_of(row) for row in islice(self._backwards(account, before, most), most)]

    def _backwards(self, account: str | None, before: float | None, most: int) -> Iterator[Row]:
        until = 2**62 if before is None else round(before * 1e6)
        where, given = ("", ()) if account is None else ("AND account = ?", (account,))
        query = f"SELECT {_ROW} FROM event WHERE event_group = ? AND at < ? {where} ORDER BY n DESC LIMIT ?"
        for group in self._groups_of(account, until):
            yield from self._read(query, (group, until, *given, most))

    def _groups_of(self, account: str | None, until: int, last: int = 2**62) -> Iterator[int]:
        """Groups before `last` that may have such events, the newest first."""
        held = ""
        given: tuple[str, ...] = ()
        if account is not None:
            held = "AND (root IS NULL OR id IN (SELECT event_group FROM event_account WHERE account = ?))"
            given = (account,)
        query = f"""SELECT id FROM event_group WHERE id < ? AND expired = 0 AND first < ? {held}
            ORDER BY id DESC LIMIT 64"""
        while found := self._read(query, (last, until, *given)):
            yield from (id for (id,) in found)
            last = found[-1][0]

    def usage(
        self, first: int, last: int, account: str | None = None, organisation: str | None = None
    ) -> dict[Part, Usage]:
        """Sums over the days from `first` to `last`, both counted from 1970-01-01 and included."""
        where, given = "", []
        for name, value in (("account", account), ("organisation", organisation)):
            if value is not None:
                where += f" AND {name} = ?"
                given.append(value)
        filled = (
            f"event_group IN (SELECT id FROM event_group WHERE root IS NULL) AND at >= ? AND at < ?{where}"
        )

        def read(db: Connection) -> list[tuple[Any, ...]]:
            stored = db.execute(
                f"SELECT {_SUMS} FROM usage WHERE day >= ? AND day <= ?{where}", (first, last, *given)
            ).fetchall()
            span = first * _DAY, (last + 1) * _DAY
            return stored + db.execute(_SUMMED % filled, (*span, *given)).fetchall()

        sums: dict[Part, Usage] = {}
        cut = len(Part._fields)
        for row in self._tables.change(read):  # so that nobody seals a group between the two
            part = Part(*row[:cut])
            sums[part] = sums.get(part, Usage()).plus(Usage(*row[cut:]))
        return dict(sorted(sums.items()))

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
        about the newest `SEARCHED` are looked at."""
        where = "".join(f" AND {name} = ?" for name, value in sought._asdict().items() if value is not None)
        given = [value for value in sought if value is not None]
        if sought.id is not None:
            rows = self._read(f"SELECT event_group, n, {_ROW} FROM event WHERE 1 = 1{where}", given)
            return [(Place(*row[:2]), event_of(tuple(row[2:]))) for row in rows]
        query = f"SELECT n, {_ROW} FROM event WHERE event_group = ? AND n < ?{where} ORDER BY n DESC LIMIT ?"
        found: list[tuple[Place, Event]] = []
        looked = 0
        first, number = (2**62, 0) if after is None else after
        for group in self._groups_of(sought.account, 2**62, first + 1):
            below = number if group == first else 2**62
            rows = self._read(query, (group, below, *given, most - len(found)))
            found += [(Place(group, row[0]), event_of(tuple(row[1:]))) for row in rows]
            looked += self.group(group).events
            if len(found) >= most or (sought.account is None and looked >= SEARCHED):
                break
        return found

    def last_seen(self, accounts: Iterable[str]) -> dict[str, float]:
        """When the newest event of each account came (Unix seconds), where there is one."""
        newest = {account: self.newest(account, most=1) for account in accounts}
        return {account: events[0].at for account, events in newest.items() if events}

    def busiest(self, day: int, most: int) -> list[tuple[str, Usage]]:
        """The accounts that cost most on a day, and then those that asked most."""
        sums = ", ".join(f"sum({name})" for name in Usage._fields)
        filled = "event_group IN (SELECT id FROM event_group WHERE root IS NULL) AND at >= ? AND at < ?"
        query = (
            f"SELECT account, {sums} FROM (SELECT {_SUMS} FROM usage WHERE day = ? UNION ALL"
            f" SELECT * FROM ({_SUMMED % filled}) AS filled) AS every WHERE account != '' GROUP BY account"
            " ORDER BY sum(cost) DESC, sum(requests) DESC, account LIMIT ?"
        )
        given = (day, day * _DAY, (day + 1) * _DAY, most)
        return [(account, Usage(*map(int, row))) for account, *row in self._read(query, given)]


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
