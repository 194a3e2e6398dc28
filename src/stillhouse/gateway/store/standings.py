"""Where accounts stand on the ladder, every step of it, and what is known of their requests:
`standings.sqlite` in the store's folder, or the database that replicas share.

What a replica knows of an account's requests is a row of its own; the standing is one for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from stillhouse.gateway.store import findings
from stillhouse.gateway.store.tables import Tables
from stillhouse.guard.config import Store
from stillhouse.guard.ladder import Standing
from stillhouse.ledger.database import Connection

FILE = "standings.sqlite"
_SCHEMA = (
    "DROP TABLE IF EXISTS watched",  # evidence of another form, which nobody reads
    # Months are counted from January 1970 (UTC); a sketch is of one.
    """CREATE TABLE IF NOT EXISTS evidence (
         account TEXT NOT NULL, replica TEXT NOT NULL, evidence BLOB NOT NULL, of_use INTEGER NOT NULL,
         score REAL NOT NULL, requests INTEGER NOT NULL, at REAL NOT NULL, month INTEGER NOT NULL,
         sketch BLOB NOT NULL, PRIMARY KEY (account, replica)) STRICT""",
    "CREATE INDEX IF NOT EXISTS evidence_score ON evidence (score)",
    # Of months that are over.
    """CREATE TABLE IF NOT EXISTS sketch (
         account TEXT NOT NULL, replica TEXT NOT NULL, month INTEGER NOT NULL, sketch BLOB NOT NULL,
         PRIMARY KEY (account, replica, month)) STRICT""",
    # The highest score of a month.
    """CREATE TABLE IF NOT EXISTS reached (
         account TEXT NOT NULL, replica TEXT NOT NULL, month INTEGER NOT NULL, score REAL NOT NULL,
         PRIMARY KEY (account, replica, month)) STRICT""",
    # `step` is the number of the last one.
    """CREATE TABLE IF NOT EXISTS standing (
         account TEXT PRIMARY KEY, rung TEXT NOT NULL, since REAL NOT NULL, shadow INTEGER NOT NULL,
         code TEXT NOT NULL, alarmed REAL NOT NULL, spared TEXT NOT NULL, spared_until REAL NOT NULL,
         declared TEXT NOT NULL, appeal INTEGER NOT NULL, step INTEGER NOT NULL) STRICT""",
    # `leaf` is its place in the ledger of `replica`; of an `erased` row the leaf's content is to be erased.
    """CREATE TABLE IF NOT EXISTS standing_step (
         id INTEGER PRIMARY KEY, account TEXT NOT NULL, at REAL NOT NULL, act TEXT NOT NULL,
         who TEXT NOT NULL, was TEXT NOT NULL, rung TEXT NOT NULL, shadow INTEGER NOT NULL,
         code TEXT NOT NULL, score REAL, reasons TEXT NOT NULL, said TEXT NOT NULL, replica TEXT NOT NULL,
         leaf INTEGER, erased INTEGER NOT NULL DEFAULT 0) STRICT""",
    "CREATE INDEX IF NOT EXISTS standing_step_account ON standing_step (account)",
    "CREATE INDEX IF NOT EXISTS standing_step_open ON standing_step (replica) WHERE leaf IS NULL",
)


class Watched(NamedTuple):
    """What is known of an account's requests, packed, and the score and number of the use that came last.
    `at` is when (Unix seconds); `sketch` is of the `month`."""

    account: str
    evidence: bytes
    use: int
    score: float
    requests: int
    at: float
    month: int
    sketch: bytes


class Step(NamedTuple):
    """One entry of the trail. `act` is step, lapse, appeal, declare, forget, cluster (found in one), dismiss
    (that cluster) or a decision; `who` is `ladder`, `customer` or a person's name; `was` and `rung` are
    before and after. `reasons` is JSON: what the score was the sum of; `said` is the text of an appeal, a
    person's reason or what a cluster shares."""

    id: int
    account: str
    at: float
    act: str
    who: str
    was: str
    rung: str
    shadow: bool
    code: str
    score: float | None
    reasons: str
    said: str
    replica: str
    leaf: int | None


class Decided:
    """The standing of every account on which anything was decided, as of the last look at the store."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings
        self._newest = 0
        self.by_account: dict[str, Standing] = {}
        self.look()

    def stale(self) -> bool:
        return self._standings.newest() != self._newest

    def look(self, erase: Callable[[list[str]], None] = lambda gone: None) -> None:
        """Take up what was decided since, here or by another process. `erase` gets the accounts that were
        forgotten; where it fails they are met again."""
        newest = self._standings.newest()  # read first: so is what is decided meanwhile
        changed, gone = self._standings.changed(self._newest)
        if gone:
            erase(gone)
        for account in gone:
            self.by_account.pop(account, None)
        self.by_account |= {each.account: each for each in changed}
        self._newest = newest


_WATCHED = ", ".join(Watched._fields).replace("use", "of_use")
_STEP = "id, account, at, act, who, was, rung, shadow, code, score, reasons, said, replica, leaf"
# Tables of what is known of accounts' requests
_KNOWN = ("evidence", "sketch", "reached", "cluster_account")
_STANDING = "account, rung, since, shadow, code, alarmed, spared, spared_until, declared, appeal"


class Standings:
    """For one thread at a time. Every method raises what those of `Tables` raise."""

    def __init__(self, store: Store) -> None:
        self._tables = Tables(store, FILE, (*_SCHEMA, *findings.SCHEMA))
        self._read, self.close = self._tables.read, self._tables.close
        self.findings = findings.Findings(self._tables)

    # Evidence

    def evidence(self, accounts: Sequence[str], replica: str) -> dict[str, Watched]:
        """What the replica knows of these, of whom it knows anything."""
        among = ", ".join("?" * len(accounts))
        query = f"SELECT {_WATCHED} FROM evidence WHERE replica = ? AND account IN ({among})"
        return {row[0]: _watched(row) for row in self._read(query, (replica, *accounts))}

    def strongest(self, account: str) -> Watched | None:
        """What the replica knows whose score is the highest."""
        query = f"SELECT {_WATCHED} FROM evidence WHERE account = ? ORDER BY score DESC LIMIT 1"
        return next((_watched(row) for row in self._read(query, (account,))), None)

    def save(
        self,
        replica: str,
        watched: Sequence[Watched],
        reached: Sequence[tuple[str, int, float]],
        alarmed: Iterable[tuple[str, float]],
        ended: Iterable[tuple[str, int, bytes]] = (),
    ) -> None:
        """Of a replica: the evidence, (account, month, highest score), (account, when its score was last
        above the threshold), and (account, month, sketch) of months that are over."""
        sets = ", ".join(f"{name} = excluded.{name}" for name in _WATCHED.split(", ")[1:])

        def change(db: Connection) -> None:
            db.executemany(
                f"INSERT INTO evidence (replica, {_WATCHED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                f" ON CONFLICT (account, replica) DO UPDATE SET {sets}",
                [(replica, *row) for row in watched],
            )
            db.executemany(
                "INSERT INTO sketch VALUES (?, ?, ?, ?)"
                " ON CONFLICT (account, replica, month) DO UPDATE SET sketch = excluded.sketch",
                [(account, replica, month, sketch) for account, month, sketch in ended],
            )
            db.executemany(
                "INSERT INTO reached VALUES (?, ?, ?, ?) ON CONFLICT (account, replica, month) DO UPDATE SET"
                " score = CASE WHEN excluded.score > reached.score THEN excluded.score"
                " ELSE reached.score END",
                [(account, replica, month, score) for account, month, score in reached],
            )
            for account, at in alarmed:
                db.execute(
                    "UPDATE standing SET alarmed = ? WHERE account = ? AND alarmed < ?", (at, account, at)
                )

        self._tables.change(change)

    def ranked(self, most: int) -> list[tuple[str, float, int, float]]:
        """(account, score, requests, last seen) by score, the highest first; what each replica knows is a row
        of its own."""
        query = "SELECT account, score, requests, at FROM evidence ORDER BY score DESC LIMIT ?"
        return self._read(query, (most,))

    def highest(self, month: int) -> list[tuple[str, float, str]]:
        """(account, highest score, declared use) of a month, but of accounts that were stopped."""
        return self._read(
            "SELECT r.account, max(r.score), coalesce(max(s.declared), '') FROM reached r"
            " LEFT JOIN standing s ON s.account = r.account"
            " WHERE r.month = ? AND coalesce(s.rung, '') <> 'kill' GROUP BY r.account ORDER BY r.account",
            (month,),
        )

    def expire(self, before: float, reached: int, sketched: int) -> int:
        """Delete the evidence of accounts that asked nothing since a time, and what was reached and sketched
        before these months; how many had evidence."""

        def change(db: Connection) -> int:
            db.execute("DELETE FROM reached WHERE month < ?", (reached,))
            db.execute("DELETE FROM sketch WHERE month < ?", (sketched,))
            return db.execute("DELETE FROM evidence WHERE at < ?", (before,)).rowcount

        return self._tables.change(change)

    # Standings and steps

    def newest(self) -> int:
        """The number of the last step, 0 before the first."""
        return int(self._read("SELECT coalesce(max(id), 0) FROM standing_step")[0][0])

    def changed(self, after: int) -> tuple[list[Standing], list[str]]:
        """Standings with a step after that one, and accounts that were forgotten after it."""
        rows = self._read(f"SELECT {_STANDING} FROM standing WHERE step > ?", (after,))
        gone = self._read("SELECT account FROM standing_step WHERE id > ? AND act = 'forget'", (after,))
        return [_standing(row) for row in rows], [account for (account,) in gone]

    def standing(self, account: str) -> Standing:
        rows = self._read(f"SELECT {_STANDING} FROM standing WHERE account = ?", (account,))
        return _standing(rows[0]) if rows else Standing(account)

    def take(self, before: Standing, after: Standing, step: Step) -> tuple[Standing, int] | None:
        """Add a step, which gets its number here, and make `after` the standing: None, and nothing is done,
        where it is not `before` any more. An appeal is opened by its own number."""

        def change(db: Connection) -> tuple[Standing, int] | None:
            query = f"SELECT {_STANDING} FROM standing WHERE account = ?"
            row = db.execute(query, (before.account,)).fetchone()
            now = _standing(row) if row is not None else Standing(before.account)
            if _firm(now) != _firm(before):
                return None
            names = _STEP.removeprefix("id, ")
            id = db.execute(
                f"INSERT INTO standing_step ({names}) VALUES ({', '.join('?' * 13)}) RETURNING id",
                [int(value) if isinstance(value, bool) else value for value in step[1:]],
            ).fetchone()[0]
            kept = after._replace(appeal=id) if step.act == "appeal" else after
            values = [int(value) if isinstance(value, bool) else value for value in kept]
            sets = ", ".join(f"{name} = excluded.{name}" for name in (*Standing._fields[1:], "step"))
            db.execute(
                f"INSERT INTO standing ({_STANDING}, step) VALUES ({', '.join('?' * 11)})"
                f" ON CONFLICT (account) DO UPDATE SET {sets}",
                [*values, id],
            )
            return kept, int(id)

        return self._tables.change(change)

    def link(self, step: int, leaf: int) -> None:
        statement = "UPDATE standing_step SET leaf = ? WHERE id = ?"
        self._tables.change(lambda db: db.execute(statement, (leaf, step)))

    def unlinked(self, replica: str) -> list[Step]:
        query = f"SELECT {_STEP} FROM standing_step WHERE replica = ? AND leaf IS NULL ORDER BY id"
        return [_step(row) for row in self._read(query, (replica,))]

    def last_leaf(self, replica: str, before: int) -> int:
        """The replica's newest leaf that a step before that one names; -1 where there is none."""
        query = "SELECT coalesce(max(leaf), -1) FROM standing_step WHERE replica = ? AND id < ?"
        return int(self._read(query, (replica, before))[0][0])

    def steps(self, account: str, most: int = 100) -> list[Step]:
        """The newest first."""
        query = f"SELECT {_STEP} FROM standing_step WHERE account = ? ORDER BY id DESC LIMIT ?"
        return [_step(row) for row in self._read(query, (account, most))]

    def held(self) -> list[Standing]:
        """Accounts that stand on a step or have an appeal open."""
        query = f"SELECT {_STANDING} FROM standing WHERE rung <> 'observe' OR appeal <> 0 ORDER BY account"
        return [_standing(row) for row in self._read(query)]

    def declared(self) -> dict[str, str]:
        """The declared use of each account that has one."""
        return dict(self._read("SELECT account, declared FROM standing WHERE declared <> ''"))

    def appeals(self) -> list[Step]:
        """Those that are open, the oldest first."""
        names = ", ".join(f"t.{name}" for name in _STEP.split(", "))
        query = f"SELECT {names} FROM standing s JOIN standing_step t ON t.id = s.appeal ORDER BY t.id"
        return [_step(row) for row in self._read(query)]

    # Erasing

    def forget(self, step: Step) -> int:
        """Delete all that is known of an account, and its standing; of its steps what remains names nobody.
        The `step` that says so is added. Its number."""
        account = step.account

        def change(db: Connection) -> int:
            for table in (*_KNOWN, "standing"):
                db.execute(f"DELETE FROM {table} WHERE account = ?", (account,))
            db.execute(
                "UPDATE standing_step SET account = '', who = '', code = '', score = NULL, reasons = '[]',"
                " said = '', erased = 1 WHERE account = ? AND act <> 'forget'",
                (account,),
            )
            names = _STEP.removeprefix("id, ")
            made = db.execute(
                f"INSERT INTO standing_step ({names}) VALUES ({', '.join('?' * 13)}) RETURNING id",
                [int(value) if isinstance(value, bool) else value for value in step[1:]],
            )
            return int(made.fetchone()[0])

        return self._tables.change(change)

    def drop_evidence(self, account: str) -> None:
        """What a replica wrote of an account while another process forgot it."""

        def change(db: Connection) -> None:
            for table in _KNOWN:
                db.execute(f"DELETE FROM {table} WHERE account = ?", (account,))

        self._tables.change(change)

    def to_erase(self, replica: str) -> list[tuple[int, int]]:
        """(number, leaf) of forgotten steps whose leaf still has its content."""
        return self._read(
            "SELECT id, leaf FROM standing_step WHERE erased = 1 AND replica = ? AND leaf IS NOT NULL",
            (replica,),
        )

    def drop(self, steps: Sequence[int]) -> None:
        statement = "DELETE FROM standing_step WHERE id = ?"
        self._tables.change(lambda db: db.executemany(statement, [(step,) for step in steps]))

    def scrub(self) -> bool:
        """Remove the bytes of deleted rows; False where another process has to end its reading first."""
        return self._tables.scrub()


def _firm(standing: Standing) -> Standing:
    """Without what is updated beside the steps."""
    return standing._replace(alarmed=0.0)


def _watched(row: Sequence[Any]) -> Watched:
    account, evidence, use, score, requests, at, month, sketch = row
    return Watched(account, bytes(evidence), use, score, requests, at, month, bytes(sketch))


def _standing(row: Sequence[Any]) -> Standing:
    account, rung, since, shadow, *rest = row
    return Standing(account, rung, since, bool(shadow), *rest)


def _step(row: Sequence[Any]) -> Step:
    values = list(row)
    values[7] = bool(values[7])
    return Step(*values)
