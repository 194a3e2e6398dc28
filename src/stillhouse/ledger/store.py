"""The ledger of a workspace: an append-only log of leaves, their contents, and the attempts made."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import zstandard

from stillhouse.errors import LedgerError, StorageError
from stillhouse.ledger import beside, lookup, merkle
from stillhouse.ledger.checkpoint import Checkpoint, read_checkpoint, sign_checkpoint
from stillhouse.ledger.database import Connection, Database, database_of, explained, migrate
from stillhouse.ledger.inserting import (
    Answer,
    began,
    insert_attempts,
    insert_leaves,
    settle_answers,
    settled_before,
)
from stillhouse.ledger.keys import public_bytes, read_signing_key, rotation_body, utc_now
from stillhouse.ledger.leaves import Leaf, LeafKind, NewLeaf, key_bytes, new_leaf, read_leaf, utc_stamp
from stillhouse.ledger.lookup import AttemptCounts, Billed, Spent, StoredExchange
from stillhouse.ledger.spending import give_back
from stillhouse.ledger.tree import stored_nodes
from stillhouse.ledger.writer import Writer
from stillhouse.workspace import Workspace

if TYPE_CHECKING:
    from stillhouse.ledger.verify import Verification

T = TypeVar("T")

_PAGE = 1024


class Ledger:
    """Open with `Ledger.open(workspace)`, and close it, or use it in a `with`.

    Every method may be called from any thread. What returns has been committed to disk; what returns a
    `concurrent.futures.Future` is on disk when that resolves (`asyncio.wrap_future` makes it awaitable),
    and fails with StorageError or LedgerError when the disk does. Several processes may have the same
    ledger open.
    """

    def __init__(
        self,
        workspace: Workspace,
        clock: Callable[[], datetime],
        database: Database,
        writing: Connection,
    ) -> None:
        self.workspace = workspace
        self.clock = clock
        self._database = database
        self._reader = database.connect()
        self._reading = threading.Lock()
        self._nodes = stored_nodes(self.read)
        self._packer = zstandard.ZstdCompressor(level=3)
        self._packing = threading.Lock()
        self._writing = writing
        self._writer = Writer(writing, database)
        self.origin = "stillhouse/" + str(
            self.read("SELECT value FROM setting WHERE name = 'workspace'")[0][0]
        )

    @classmethod
    def open(cls, workspace: Workspace, clock: Callable[[], datetime] = utc_now) -> Ledger:
        """Raises LedgerError when the database is damaged, locked or newer than this code, and StorageError
        when the folder cannot be written or the server does not answer."""
        database = database_of(workspace)
        if not workspace.root.is_dir():
            raise StorageError(
                f"could not open the ledger {database.name}",
                f"{workspace.root} is not a folder",
                "make a workspace with `stillhouse init`",
            )
        with explained(database, "open"):
            db = database.connect()
            try:
                migrate(database, db, utc_stamp(clock()))
                return cls(workspace, clock, database, db)
            except BaseException:
                db.close()
                raise

    def close(self) -> None:
        """Commit what is queued and close the database."""
        self._writer.close()
        with self._reading:
            self._reader.close()
        self._writing.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Leaves

    def append(
        self, kind: LeafKind, body: Mapping[str, Any], contents: Mapping[str, bytes] | None = None
    ) -> int:
        """Add a leaf; returns its index. Raises LedgerError for a body that is no leaf's (see `new_leaf`)."""
        return self.append_many([(kind, body, contents or {})])[0]

    def append_many(
        self, entries: Iterable[tuple[LeafKind, Mapping[str, Any], Mapping[str, bytes]]]
    ) -> list[int]:
        """Add leaves in one transaction, all or none; returns their indices, which are consecutive."""
        now = self.clock()
        ready = [self._pack(new_leaf(kind, body, contents, now)) for kind, body, contents in entries]
        return self._writer.submit(lambda db: insert_leaves(db, ready)).result()

    def leaves(self, kind: LeafKind | None = None, start: int = 0) -> Iterator[Leaf]:
        """Leaves in order from index `start`; those committed while iterating are included."""
        where = "idx >= ?" if kind is None else "idx >= ? AND kind = ?"
        query = f"SELECT idx, kind, time, data, hash FROM leaf WHERE {where} ORDER BY idx LIMIT {_PAGE}"
        while rows := self.read(query, (start,) if kind is None else (start, kind)):
            for row in rows:
                yield read_leaf(*row)
            start = rows[-1][0] + 1

    def pick(self, indices: Iterable[int]) -> Iterator[Leaf]:
        """These leaves in order, each once, neighbours read together; an index without a leaf is left out."""
        wanted = sorted(set(indices))
        query = "SELECT idx, kind, time, data, hash FROM leaf WHERE idx >= ? AND idx <= ? ORDER BY idx"
        while wanted:
            near = bisect_left(wanted, wanted[0] + _PAGE)
            page, wanted = set(wanted[:near]), wanted[near:]
            for row in self.read(query, (min(page), max(page))):
                if row[0] in page:
                    yield read_leaf(*row)

    def leaf(self, index: int) -> Leaf:
        """Raises LedgerError when there is no such leaf."""
        rows = self.read("SELECT idx, kind, time, data, hash FROM leaf WHERE idx = ?", (index,))
        if not rows:
            raise LedgerError(
                f"the ledger has no leaf {index}",
                f"it has {self.size()} leaves, numbered from 0",
                "give one of them",
            )
        return read_leaf(*rows[0])

    def size(self) -> int:
        return int(self.read("SELECT coalesce(max(idx) + 1, 0) FROM leaf")[0][0])

    def contents(self, leaf: int) -> dict[str, bytes | None]:
        """The leaf's contents by name; None for what was erased."""
        rows = self.read("SELECT name, body FROM content WHERE leaf = ? ORDER BY id", (leaf,))
        return {name: None if body is None else zstandard.decompress(body) for name, body in rows}

    def salted_contents(self, start: int, end: int) -> list[tuple[int, str, bytes, bytes]]:
        """(leaf, name, salt, content) of what is not erased in leaves [start, end), for an auditor."""
        rows = self.read(
            "SELECT leaf, name, salt, body FROM content"
            " WHERE leaf >= ? AND leaf < ? AND erased IS NULL ORDER BY leaf, id",
            (start, end),
        )
        return [(leaf, name, salt, zstandard.decompress(body)) for leaf, name, salt, body in rows]

    def erase(self, leaf: int, reason: str) -> int:
        """Remove the leaf's contents and salts for good and append a tombstone; returns its index.

        With an answer go the rows made from it, which hold its text too: the contents of every `row` leaf
        whose body names the leaf among its `exchanges`. The tombstone names them all.

        The leaf itself stays, and so does the tree. The deleted bytes are removed from the database's files
        as well; see `tombstones.bury`. Raises LedgerError when the leaf has no contents left, and
        StorageError when all is erased but these bytes could not be removed.
        """
        from stillhouse.ledger.tombstones import bury, rows_made_from

        return bury(self, {leaf, *rows_made_from(self, {leaf})}, reason)[0]

    # Attempts and exchanges

    def begin(
        self,
        key: str,
        run: str,
        prompt_id: str,
        teacher: str,
        sample_index: int,
        reserved: float | None = None,
        decision: int | None = None,
    ) -> Future[int]:
        """Record that a request is about to be sent; send it once the future resolves to the attempt's id.

        `reserved` (US dollars) is what it can cost at most; None when no price is known. `decision` is the
        leaf that allows it: where that rests on a permission which is used up, ended or revoked, the future
        fails with GateRefused, and nothing may be sent.
        """
        row = (
            key_bytes(key),
            run,
            prompt_id,
            teacher,
            sample_index,
            utc_stamp(self.clock()),
            lookup.nano(reserved),
            decision,
        )
        return self._writer.put(insert_attempts, row)

    def answer(
        self,
        attempt: int,
        body: Mapping[str, Any],
        contents: Mapping[str, bytes],
        cost: float | None = None,
    ) -> Future[int]:
        """Record an attempt's answer as an exchange leaf, under the attempt's key also where `body` lacks it;
        resolves to the leaf's index. An answer that arrives after a sweep is taken all the same. `cost` is in
        US dollars, None when it is not known. The leaf also says when the attempt `began`, which is when a
        permission had to cover it.

        The future fails with LedgerError when the attempt was answered or failed before.
        """
        key = body.get("key") or self._key_of(attempt)
        answer = (attempt, {**body, "key": key}, contents, self.clock(), lookup.nano(cost))
        return self._writer.put(self._settle, answer)

    def _settle(self, db: Connection, answers: Sequence[tuple[Any, ...]]) -> list[int]:
        """On the writing thread: to hash and to compress gives other threads their turn each time."""
        times = began(db, [answer[0] for answer in answers])
        return settle_answers(
            db,
            [
                Answer(attempt, self._pack(new_leaf("exchange", body | {"began": time}, contents, now)), cost)
                for time, (attempt, body, contents, now, cost) in zip(times, answers, strict=True)
            ],
        )

    def fail(self, attempt: int, reason: str, billed: bool = True) -> Future[None]:
        """Record that an attempt brought no answer, and why (without text of a prompt or a reply).

        `billed` False says that it cost nothing for certain, because no model worked on it.
        """
        ended = utc_stamp(self.clock())

        def settle(db: Connection) -> None:
            changed = db.execute(
                "UPDATE attempt SET state = 'failed', ended = ?, reason = ?, cost = ?"
                " WHERE id = ? AND state IN ('open', 'unknown')",
                (ended, reason, None if billed else 0, attempt),
            ).rowcount
            if not changed:
                raise settled_before(attempt)
            if not billed:
                give_back(db, [attempt])

        return self._writer.submit(settle)

    def sweep(self, run: str) -> int:
        """Mark what a dead process of this run left open as unknown: sent, or about to be. Returns how many.
        The lines of a batch stay open, for the batch outlives the process.

        Only for the process that holds the run's lock: it would count another's requests in flight as lost.
        """
        ended = utc_stamp(self.clock())
        statement = (
            "UPDATE attempt SET state = 'unknown', ended = ?"
            " WHERE state = 'open' AND run = ? AND batch IS NULL"
        )
        return self.write(lambda db: db.execute(statement, (ended, run)).rowcount).result()

    def lose(self, attempts: Iterable[int]) -> Future[int]:
        """As `sweep`, for open attempts whose sender died while this process lives; resolves to how many."""
        ended = utc_stamp(self.clock())
        rows = [(ended, attempt) for attempt in attempts]
        statement = "UPDATE attempt SET state = 'unknown', ended = ? WHERE state = 'open' AND id = ?"
        return self._writer.submit(lambda db: db.executemany(statement, rows).rowcount)

    def unsettled(self, run: str) -> dict[int, str]:
        """The attempts of a run that are open or unknown, each with its key."""
        return lookup.unsettled(self.read, run)

    def attempts(self, run: str | None = None) -> AttemptCounts:
        """What became of the requests of a run, or of all."""
        return lookup.attempts(self.read, run)

    def spent(self, run: str) -> Spent:
        """What the run's attempts have cost so far."""
        return lookup.spent(self.read, run)

    def billed(self, run: str, stage: str) -> Billed:
        """What the run has bought in one of its stages."""
        return lookup.billed(self.read, self._database.field, run, stage)

    def unpriced(self, run: str) -> list[tuple[str, int | None, int | None]]:
        """(teacher, prompt tokens, completion tokens) of the run's attempts from when no price was known."""
        return lookup.unpriced(self.read, self._database.field, run)

    def unknown(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that were sent, or about to be, when a process died."""
        return lookup.unknown(self.read, keys)

    def in_batches(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that are lines of a batch which is not over, in whichever run."""
        return lookup.in_batches(self.read, keys)

    def exchanges(self, keys: Iterable[str]) -> Iterator[StoredExchange]:
        """The newest answer to each of these keys, in their order; keys without an answer are left out."""
        return lookup.exchanges(self.read, keys)

    # Proofs

    def checkpoint(self) -> Checkpoint:
        """Sign the log's present size and root with the workspace's key, and keep the signed note.

        When the key on disk is not the one that signed last, and no leaf says that it was replaced, a
        `correction` leaf is added first that says so, without the old key's signature. Raises LedgerError
        where the log lacks what was signed before: see `beside`.
        """
        key = read_signing_key(self.workspace)
        now = self.clock()

        def sign(db: Connection) -> Checkpoint:
            public = public_bytes(key)
            last = db.execute("SELECT size, public, note FROM checkpoint ORDER BY id DESC LIMIT 1").fetchone()
            if last and last[1] != public and not _rotated(db, last[0]):
                insert_leaves(
                    db, [new_leaf("correction", rotation_body(self.origin, last[1], public, None), {}, now)]
                )
            size = int(db.execute("SELECT coalesce(max(idx) + 1, 0) FROM leaf").fetchone()[0])
            if last and last[:2] == (size, public):
                return read_checkpoint(last[2])
            beside.check(self.workspace, size, stored_nodes(db.execute))
            root = merkle.range_root(stored_nodes(db.execute), 0, size)
            signed = sign_checkpoint(self.origin, size, root, key)
            db.execute(
                "INSERT INTO checkpoint (size, root, time, public, note) VALUES (?, ?, ?, ?, ?)",
                (size, root, utc_stamp(now), public, signed.note),
            )
            return signed

        signed = self._writer.submit(sign).result()
        beside.keep(self.workspace, signed)
        return signed

    def rolled_back(self) -> str | None:
        """How the log differs from the newest checkpoint that is kept beside the database; None where it does
        not. See `stillhouse.ledger.beside`."""
        return beside.lacks(self.workspace, self.size(), stored_nodes(self.read))

    def root(self, size: int | None = None) -> bytes:
        """Merkle root over the first `size` leaves; over all when left out."""
        return merkle.range_root(self._nodes, 0, self._within(size))

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Proof that leaf `index` is in the log at `size`, for `merkle.verify_inclusion`."""
        size = self._within(size)
        if not 0 <= index < size:
            raise LedgerError(
                f"no proof for leaf {index}", f"the log has {size} leaves there", "give one of them"
            )
        return merkle.inclusion_proof(self._nodes, index, size)

    def consistency(self, first: int, second: int | None = None) -> list[bytes]:
        """Proof that the log at `first` is the beginning of the log at `second`."""
        second = self._within(second)
        if not 0 <= first <= second:
            raise LedgerError(
                f"no proof from {first} to {second} leaves", "the first is not within the second", "swap them"
            )
        return merkle.consistency_proof(self._nodes, first, second)

    def verify(self, against: bytes | None = None, pinned: bytes | None = None) -> Verification:
        """Check everything; see `stillhouse.ledger.verify`."""
        from stillhouse.ledger.verify import verify

        return verify(self, against, pinned)

    def export(self, folder: Path, contents: bool = False) -> Checkpoint:
        """Write the log for others; see `stillhouse.ledger.export`."""
        from stillhouse.ledger.export import export

        return export(self, folder, contents)

    # For this package

    def read(self, query: str, given: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement, on the reading connection."""
        with self._reading, explained(self._database, "read"):
            return self._reader.execute(query, given).fetchall()

    def write(self, operation: Callable[[Connection], T]) -> Future[T]:
        """Run an operation in a transaction of the writing thread."""
        return self._writer.submit(operation)

    def scrub(self, whole: bool = False) -> bool:
        """Remove the bytes of what was erased from the database's files; see `Database.scrub`."""
        with self._reading, explained(self._database, "remove erased bytes from"):
            return self._database.scrub(self._reader, whole)

    def prepare(self, kind: LeafKind, body: Mapping[str, Any], contents: Mapping[str, bytes]) -> NewLeaf:
        """A leaf to be inserted by an operation. Raises LedgerError as `append` does."""
        return self._pack(new_leaf(kind, body, contents, self.clock()))

    def _pack(self, leaf: NewLeaf) -> NewLeaf:
        if not leaf.contents:
            return leaf
        with self._packing:
            packed = tuple((name, salt, self._packer.compress(data)) for name, salt, data in leaf.contents)
        return NewLeaf(leaf.kind, leaf.time, leaf.data, leaf.hash, leaf.key, packed)

    def _key_of(self, attempt: int) -> str:
        rows = self.read("SELECT key FROM attempt WHERE id = ?", (attempt,))
        if not rows:
            raise settled_before(attempt)
        return bytes(rows[0][0]).hex()

    def _within(self, size: int | None) -> int:
        present = self.size()
        if size is not None and not 0 <= size <= present:
            raise LedgerError(
                f"the log never had {size} leaves", f"it has {present}", "give a size that it had"
            )
        return present if size is None else size


def _rotated(db: Connection, since: int) -> bool:
    """Whether a leaf after that checkpoint says that the signing key was replaced."""
    rows = db.execute(
        "SELECT idx, kind, time, data, hash FROM leaf WHERE kind = 'correction' AND idx >= ?", (since,)
    )
    return any(read_leaf(*row).body.get("what") == "signing key replaced" for row in rows)
