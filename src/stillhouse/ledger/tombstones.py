"""Erasing contents in the ledger itself: salts and texts go, leaves and tree stay, a tombstone says so."""

from __future__ import annotations

from collections.abc import Collection

from stillhouse.errors import LedgerError
from stillhouse.ledger.database import Connection
from stillhouse.ledger.inserting import insert_leaves
from stillhouse.ledger.leaves import new_leaf
from stillhouse.ledger.store import Ledger

_NAMED = 4000  # leaves that one tombstone names, which must stay under 64 KiB


def rows_made_from(ledger: Ledger, leaves: Collection[int]) -> dict[int, int | None]:
    """The `row` leaves that name one of these among their exchanges, each with its transform; one pass over
    all rows, however many leaves are given."""
    return {
        row.index: row.body.get("transform")
        for row in ledger.leaves("row", min(leaves, default=0))
        if any(one in leaves for one in row.body.get("exchanges", ()))
    }


def bury(ledger: Ledger, leaves: Collection[int], reason: str) -> list[int]:
    """Remove what is left of the contents and salts of these leaves and append tombstones that name them;
    returns the tombstones' indices.

    Each tombstone and the contents that it names go in one transaction, so that a call which was killed is
    finished by the same call; then their bytes are removed from the database's files (`Database.scrub`).
    Raises LedgerError when nothing is left to erase.
    """
    stamp, wanted, tombstones = ledger.clock(), sorted(leaves), []

    def run(db: Connection, some: list[int]) -> int | None:
        marks = ",".join(map(str, some))
        found = db.execute(
            f"SELECT leaf, name FROM content WHERE erased IS NULL AND leaf IN ({marks})"
        ).fetchall()
        if not found:
            return None
        body = {
            "leaves": sorted({leaf for leaf, _ in found}),
            "contents": sorted({name for _, name in found}),
            "reason": reason,
        }
        tombstone = insert_leaves(db, [new_leaf("tombstone", body, {}, stamp)])[0]
        db.execute(
            "UPDATE content SET salt = NULL, body = NULL, erased = ?"
            f" WHERE erased IS NULL AND leaf IN ({marks})",
            (tombstone,),
        )
        return tombstone

    for start in range(0, len(wanted), _NAMED):
        some = wanted[start : start + _NAMED]
        tombstone = ledger.write(lambda db, some=some: run(db, some)).result()  # type: ignore[misc]
        tombstones += [] if tombstone is None else [tombstone]
    if not tombstones:
        one = len(wanted) == 1
        raise LedgerError(
            f"leaf {wanted[0]} has nothing to erase" if one else "these leaves have nothing to erase",
            "it has no contents, or they were erased" if one else "they have no contents, or were erased",
            "see `ledger show`",
        )
    ledger.scrub()
    return tombstones


def forget_prompts(ledger: Ledger, holds: Collection[str]) -> int:
    """Take these prompt ids out of the table of attempts, which is no part of the log; how many rows."""
    rows = [(name,) for name in holds]
    statement = "UPDATE attempt SET prompt_id = '' WHERE prompt_id = ?"
    return ledger.write(lambda db: db.executemany(statement, rows).rowcount).result()
