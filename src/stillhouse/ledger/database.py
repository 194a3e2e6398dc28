"""Where the log is kept: SQLite in the workspace's folder, or PostgreSQL by URL (`postgres.py`).

Both speak the SQL of this package, which is SQLite's; `Database` names all in which they differ. Here are the
schema as ordered migrations, how the SQLite file is opened, and what its errors mean.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stillhouse.errors import LedgerError, StillhouseError, StorageError, storage
from stillhouse.workspace import Workspace

BUSY_SECONDS = 30.0


class Cursor(Protocol):
    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """As `sqlite3.Connection`: parameters stand as `?` or `?1`, and nothing is committed but by `commit`."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor: ...
    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...


class Database(Protocol):
    """What differs between the databases; `SQLite` and `PostgreSQL` are the two."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def has_schema(self) -> str:
        """A query that gives a row when there is a table `migration`."""
        ...

    def connect(self) -> Connection:
        """A connection whose commits are on disk when they return."""
        ...

    def begin(self, db: Connection) -> None:
        """Begin a transaction in which nobody else writes to this ledger, so that indices have no gaps."""
        ...

    def roll_back(self, db: Connection) -> None:
        """Raises nothing: a second failure would hide the first."""
        ...

    def field(self, name: str) -> str:
        """SQL for a value in the body of the leaf `l`, NULL where it has none."""
        ...

    def scrub(self, db: Connection, whole: bool) -> bool:
        """Remove the bytes of erased contents from the database's files, as far as it can, and with `whole`
        those of all rows that are gone; False when that ends only when another process has finished."""
        ...

    def concerns_all(self, error: Exception) -> bool:
        """The disk, the file or the server failed, and would fail each operation alone; not so a row of the
        wrong type."""
        ...

    def explain(self, error: Exception, doing: str) -> StillhouseError:
        """What an error of the database means to a person."""
        ...


def database_of(workspace: Workspace) -> Database:
    """The file in the workspace, unless `ledger.url` there names a server.

    Raises UsageError for a URL that is none of PostgreSQL's or has a password in it, or when its driver is
    not installed.
    """
    if not workspace.ledger_url.exists():
        return SQLite(workspace.ledger)
    from stillhouse.ledger.postgres import PostgreSQL, checked_url

    with storage("read", workspace.ledger_url):
        return PostgreSQL(checked_url(workspace.ledger_url.read_text().strip()))


@contextlib.contextmanager
def explained(database: Database, doing: str) -> Iterator[None]:
    """Turn what the database and the file system raise into LedgerError or StorageError."""
    try:
        yield
    except StillhouseError:
        raise
    except Exception as error:
        raise database.explain(error, doing) from error


@dataclass(frozen=True, slots=True)
class SQLite:
    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def has_schema(self) -> str:
        return "SELECT 1 FROM sqlite_master WHERE name = 'migration'"

    def connect(self) -> sqlite3.Connection:
        return connect(self.path)

    def begin(self, db: Connection) -> None:
        db.execute("BEGIN IMMEDIATE")

    def roll_back(self, db: Connection) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
            db.execute("ROLLBACK")

    def field(self, name: str) -> str:
        return f"json_extract(CAST(l.data AS TEXT), '$.body.{name}')"  # leaves are stored as bytes

    def scrub(self, db: Connection, whole: bool) -> bool:
        """Deleted bytes were overwritten in the file; the WAL is emptied, unless another process reads just
        then: SQLite empties it when that one has finished. With `whole` no free page is left either."""
        if whole:
            db.execute("VACUUM")
        return not db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]

    def concerns_all(self, error: Exception) -> bool:
        broken = isinstance(error, sqlite3.OperationalError | OSError)
        return broken or type(error) is sqlite3.DatabaseError

    def explain(self, error: Exception, doing: str) -> StillhouseError:
        return explain(error, self.path, doing)


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits only on COMMIT, durably: WAL, full sync, deleted bytes overwritten."""
    with _private_file(path):
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _use_wal(db)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA cache_size = -32000")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
    except BaseException:
        db.close()
        raise
    return db


def migrate(database: Database, db: Connection, stamp: str) -> None:
    """Bring the schema to this code's; `stamp` is the time recorded with each migration.

    Raises LedgerError when the ledger was written by a newer stillhouse.
    """
    known = {step.__name__ for step in MIGRATIONS}
    if _applied(database, db) == known:
        return  # without waiting for a process that is writing
    database.begin(db)
    try:
        db.execute(
            "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, applied TEXT NOT NULL) STRICT"
        )
        applied = _applied(database, db)
        unknown = applied - known
        if unknown:
            raise LedgerError(
                "the ledger is newer than this stillhouse",
                f"its schema has steps that this version does not know: {', '.join(sorted(unknown))}",
                "upgrade stillhouse; the ledger was not touched",
            )
        for step in MIGRATIONS:
            if step.__name__ not in applied:
                step(db)
                db.execute("INSERT INTO migration VALUES (?, ?)", (step.__name__, stamp))
        db.commit()
    except BaseException:
        database.roll_back(db)
        raise


def m0001_log(db: Connection) -> None:
    """Leaves, their contents, the keys by which exchanges are found, attempts, subtrees, checkpoints.

    `subtree` holds the root of every 256, 65,536, ... leaves, so that roots and proofs read a few hundred
    rows however long the log is. `content.erased` is the tombstone's leaf.
    """
    for statement in (
        "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
        """CREATE TABLE leaf (
             idx INTEGER PRIMARY KEY, kind TEXT NOT NULL, time TEXT NOT NULL,
             hash BLOB NOT NULL, data BLOB NOT NULL) STRICT""",
        "CREATE INDEX leaf_kind ON leaf (kind)",
        """CREATE TABLE subtree (
             level INTEGER NOT NULL, n INTEGER NOT NULL, hash BLOB NOT NULL,
             PRIMARY KEY (level, n)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE content (
             id INTEGER PRIMARY KEY, leaf INTEGER NOT NULL REFERENCES leaf, name TEXT NOT NULL,
             salt BLOB, body BLOB, erased INTEGER REFERENCES leaf,
             CHECK ((erased IS NULL) = (salt IS NOT NULL) AND (salt IS NULL) = (body IS NULL))) STRICT""",
        "CREATE INDEX content_leaf ON content (leaf)",
        """CREATE TABLE exchange (
             key BLOB NOT NULL, leaf INTEGER NOT NULL REFERENCES leaf,
             PRIMARY KEY (key, leaf)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE attempt (
             id INTEGER PRIMARY KEY, key BLOB NOT NULL, run TEXT NOT NULL, prompt_id TEXT NOT NULL,
             teacher TEXT NOT NULL, sample_index INTEGER NOT NULL, began TEXT NOT NULL,
             state TEXT NOT NULL CHECK (state IN ('open', 'answered', 'failed', 'unknown')),
             ended TEXT, leaf INTEGER REFERENCES leaf, reason TEXT,
             CHECK ((state = 'answered') = (leaf IS NOT NULL))) STRICT""",
        "CREATE INDEX attempt_open ON attempt (run) WHERE state = 'open'",
        """CREATE TABLE checkpoint (
             id INTEGER PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, time TEXT NOT NULL,
             public BLOB NOT NULL, note BLOB NOT NULL) STRICT""",
    ):
        db.execute(statement)
    db.execute("INSERT INTO setting VALUES ('workspace', ?)", (secrets.token_hex(8),))


def m0002_money(db: Connection) -> None:
    """What an attempt may cost at most and what it did cost, in billionths of a US dollar, NULL where no
    price is known; and a way to find the questions that were sent without a known answer."""
    for statement in (
        "ALTER TABLE attempt ADD COLUMN reserved INTEGER",
        "ALTER TABLE attempt ADD COLUMN cost INTEGER",
        "CREATE INDEX attempt_unknown ON attempt (key) WHERE state = 'unknown'",
    ):
        db.execute(statement)


def m0003_batches(db: Connection) -> None:
    """Batch jobs, and which attempts are lines of one.

    `intended`: its lines are open attempts and its file lies in the run folder; `asked`: its creation was, or
    was about to be, asked for; `running`: its name at the provider is known; `over`: its lines are settled.
    `file` is the provider's name of the uploaded file, and `asked` the time of the last request to create.
    """
    for statement in (
        """CREATE TABLE batch (
             id INTEGER PRIMARY KEY, run TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL,
             revision TEXT NOT NULL, decision INTEGER NOT NULL REFERENCES leaf, shard BLOB NOT NULL,
             lines INTEGER NOT NULL, price_input REAL, price_output REAL, began TEXT NOT NULL,
             state TEXT NOT NULL CHECK (state IN ('intended', 'asked', 'running', 'over')),
             file TEXT, asked TEXT, name TEXT, ended TEXT, ending TEXT,
             CHECK ((state = 'over') = (ended IS NOT NULL)),
             CHECK (state != 'running' OR name IS NOT NULL)) STRICT""",
        "CREATE INDEX batch_open ON batch (run) WHERE state != 'over'",
        "ALTER TABLE attempt ADD COLUMN batch INTEGER REFERENCES batch",
        "CREATE INDEX attempt_batch ON attempt (batch) WHERE batch IS NOT NULL",
        "CREATE INDEX attempt_in_batch ON attempt (key) WHERE state = 'open' AND batch IS NOT NULL",
    ):
        db.execute(statement)


def m0004_permissions(db: Connection) -> None:
    """Which decision an attempt rests on; written permissions with what is left of them, and the decisions
    that rest on each. `used` counts the attempts of which nobody knows that no model worked on them;
    `begins` and `ends` are times (UTC), the second one the first moment after."""
    for statement in (
        "ALTER TABLE attempt ADD COLUMN decision INTEGER",
        """CREATE TABLE permission (
             leaf INTEGER PRIMARY KEY REFERENCES leaf, volume INTEGER, used INTEGER NOT NULL,
             begins TEXT NOT NULL, ends TEXT, revoked INTEGER REFERENCES leaf) STRICT""",
        """CREATE TABLE decided (
             decision INTEGER NOT NULL REFERENCES leaf, permission INTEGER NOT NULL REFERENCES permission,
             PRIMARY KEY (decision, permission)) STRICT, WITHOUT ROWID""",
    ):
        db.execute(statement)


def m0005_upstream(db: Connection) -> None:
    """Whether the exchanges of a decision count for its permission (1), or it is only to be in force (0): one
    that is for who taught the teacher has no answers of the teacher in its volume."""
    db.execute("ALTER TABLE decided ADD COLUMN counts INTEGER NOT NULL DEFAULT 1")


def m0006_recalled(db: Connection) -> None:
    """The decisions that are recalled now, under which nothing is asked, each with the leaf that says so."""
    db.execute(
        """CREATE TABLE recalled (
             decision INTEGER PRIMARY KEY REFERENCES leaf, leaf INTEGER NOT NULL REFERENCES leaf) STRICT"""
    )
    held: dict[int, int] = {}
    for index, data in db.execute("SELECT idx, data FROM leaf WHERE kind = 'correction' ORDER BY idx"):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged leaf is for `verify` to name
            body = json.loads(data)["body"]
            if body["what"] == "quarantined":
                held |= dict.fromkeys(body["decisions"], index)
            elif body["what"] == "quarantine lifted":
                held = {each: leaf for each, leaf in held.items() if each not in body["decisions"]}
    db.executemany("INSERT INTO recalled (decision, leaf) VALUES (?, ?)", list(held.items()))


MIGRATIONS: list[Callable[[Connection], None]] = [
    m0001_log,
    m0002_money,
    m0003_batches,
    m0004_permissions,
    m0005_upstream,
    m0006_recalled,
]


def explain(error: Exception, path: Path, doing: str) -> StillhouseError:
    if isinstance(error, StillhouseError):
        return error
    name = getattr(error, "sqlite_errorname", "") or ""
    what = f"could not {doing} the ledger {path}"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LedgerError(
            what,
            f"another process has held it for more than {BUSY_SECONDS:.0f} s",
            "wait for that process or stop it, and run the same command again; nothing recorded is lost",
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return LedgerError(
            what,
            f"the file is damaged: {error}",
            "restore it from a backup, with its -wal file where there is one; see docs/ledger.md",
        )
    if name == "SQLITE_FULL":
        return StorageError(
            what,
            "no space left for it",
            "free some space and run the same command again; nothing recorded is lost",
        )
    if name.startswith("SQLITE_READONLY"):
        return StorageError(
            what, "the file or its folder is read-only", "make the folder writable, or choose another one"
        )
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PERM")) or isinstance(error, OSError):
        return StorageError(
            what,
            f"the file system refused: {error}",
            "see that the folder exists, can be written and has space; nothing recorded is lost",
        )
    if isinstance(error, sqlite3.Error):
        return LedgerError(what, f"{name or type(error).__name__}: {error}", "see `stillhouse ledger verify`")
    return LedgerError(
        what, f"{type(error).__name__}: {error}", "this is a defect of stillhouse; please report it"
    )


def _applied(database: Database, db: Connection) -> set[str]:
    if not db.execute(database.has_schema).fetchone():
        return set()
    return {name for (name,) in db.execute("SELECT name FROM migration")}


def _use_wal(db: sqlite3.Connection) -> None:
    """Two processes that first open the file at once may meet here, where SQLite itself does not wait."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            if db.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                return
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextlib.contextmanager
def _private_file(path: Path) -> Iterator[None]:
    """The ledger holds prompts and answers: the file, and so its WAL, is the owner's alone."""
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    yield
