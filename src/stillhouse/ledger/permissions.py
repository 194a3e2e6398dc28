"""Written permissions as the ledger knows them, and the decisions that rest on them; what is had under one is
counted in `spending`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from stillhouse.errors import LedgerError
from stillhouse.ledger.database import Connection
from stillhouse.ledger.inserting import insert_leaves
from stillhouse.ledger.leaves import new_leaf, utc_stamp
from stillhouse.ledger.store import Ledger


@dataclass(frozen=True, slots=True)
class Standing:
    """How a permission stands: exchanges `used` under it, and the leaf that revoked it, if one did."""

    leaf: int
    volume: int | None
    used: int
    revoked: int | None


def grant(
    ledger: Ledger,
    body: Mapping[str, Any],
    contents: Mapping[str, bytes],
    volume: int | None,
    first: date,
    last: date | None,
) -> int:
    """Record a permission of so many exchanges, from its first day to its last (UTC); returns its leaf."""
    begins = utc_stamp(datetime.combine(first, time(), UTC))
    ends = None if last is None else utc_stamp(datetime.combine(last + timedelta(days=1), time(), UTC))
    leaf = ledger.prepare("authorisation", body, contents)

    def insert(db: Connection) -> int:
        index = insert_leaves(db, [leaf])[0]
        db.execute(
            "INSERT INTO permission (leaf, volume, used, begins, ends) VALUES (?, ?, 0, ?, ?)",
            (index, volume, begins, ends),
        )
        return index

    return ledger.write(insert).result()


def decide_by(ledger: Ledger, body: Mapping[str, Any], permissions: Iterable[int]) -> int:
    """Record a decision that rests on permissions; from then on, attempts under it count for each of them."""
    leaf = ledger.prepare("decision", body, {})

    def insert(db: Connection) -> int:
        index = insert_leaves(db, [leaf])[0]
        rows = [(index, permission) for permission in sorted(set(permissions))]
        db.executemany("INSERT INTO decided (decision, permission) VALUES (?, ?)", rows)
        return index

    return ledger.write(insert).result()


def revoke(ledger: Ledger, permission: int, reason: str) -> int:
    """End a permission from now on, in every process; returns the `correction` leaf that says so.

    Raises LedgerError when there is none, or it was revoked before.
    """
    body = {"what": "permission revoked", "authorisation": permission, "reason": reason}
    now = ledger.clock()

    def insert(db: Connection) -> int:
        found = db.execute("SELECT revoked FROM permission WHERE leaf = ?", (permission,)).fetchone()
        if found is None or found[0] is not None:
            raise LedgerError(
                f"leaf {permission} cannot be revoked",
                "it is no permission" if found is None else f"leaf {found[0]} revoked it",
                "`stillhouse ledger show --kind authorisation` lists them",
            )
        index = insert_leaves(db, [new_leaf("correction", body, {}, now)])[0]
        db.execute("UPDATE permission SET revoked = ? WHERE leaf = ?", (index, permission))
        return index

    return ledger.write(insert).result()


def standings(ledger: Ledger) -> dict[int, Standing]:
    """Every permission of the ledger by its leaf."""
    rows = ledger.read("SELECT leaf, volume, used, revoked FROM permission ORDER BY leaf")
    return {row[0]: Standing(*row) for row in rows}
