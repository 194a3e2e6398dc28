"""Written permissions as the ledger knows them, and the decisions that rest on them; what is had under one is
counted in `spending`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import takewhile
from typing import Any

from stillhouse.errors import LedgerError
from stillhouse.ledger.database import Connection
from stillhouse.ledger.inserting import insert_leaves
from stillhouse.ledger.leaves import new_leaf, utc_stamp
from stillhouse.ledger.quarantine import SET_ASIDE, ended_by
from stillhouse.ledger.spending import spend
from stillhouse.ledger.store import Ledger


@dataclass(frozen=True, slots=True)
class Standing:
    """How a permission stands: exchanges `used` under it, and the leaf that revoked or recalled it, if one
    did."""

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


def decide_by(
    ledger: Ledger,
    body: Mapping[str, Any],
    permissions: Iterable[int],
    counted: Iterable[int] | None = None,
) -> int:
    """Record a decision that rests on permissions; from then on, each of them must be in force for attempts
    under it, and these count for those in `counted`, or for all."""
    leaf = ledger.prepare("decision", body, {})
    counting = set(permissions if counted is None else counted)

    def insert(db: Connection) -> int:
        index = insert_leaves(db, [leaf])[0]
        rows = [(index, each, int(each in counting)) for each in sorted(set(permissions))]
        db.executemany("INSERT INTO decided (decision, permission, counts) VALUES (?, ?, ?)", rows)
        return index

    return ledger.write(insert).result()


def append_answers(
    ledger: Ledger, decision: int, answers: Iterable[tuple[Mapping[str, Any], Mapping[str, bytes]]]
) -> list[int]:
    """Add an `import` leaf for each of these bodies and contents, all or none; returns their indices. They
    count for the permissions of their decision as if they were asked for now.

    Raises GateRefused where one of these does not cover all of them.
    """
    leaves, now = [ledger.prepare("import", *answer) for answer in answers], utc_stamp(ledger.clock())

    def insert(db: Connection) -> list[int]:
        spend(db, [(decision, now)] * len(leaves))
        return insert_leaves(db, leaves)

    return ledger.write(insert).result()


def revoke(ledger: Ledger, permission: int, reason: str) -> int:
    """End a permission from now on, in every process; returns the `correction` leaf that says so. One that is
    recalled is ended as well, and lifting that does not bring it back.

    Raises LedgerError when there is none, or it was revoked before.
    """
    body = {"what": "permission revoked", "authorisation": permission, "reason": reason}
    now = ledger.clock()

    def insert(db: Connection) -> int:
        found = db.execute("SELECT revoked FROM permission WHERE leaf = ?", (permission,)).fetchone()
        if found is None or ended_by(db, permission) not in (None, SET_ASIDE):
            raise LedgerError(
                f"leaf {permission} cannot be revoked",
                "it is no permission" if found is None else f"leaf {found[0]} revoked it",
                "`stillhouse ledger show --kind authorisation` lists them",
            )
        index = insert_leaves(db, [new_leaf("correction", body, {}, now)])[0]
        db.execute("UPDATE permission SET revoked = ? WHERE leaf = ?", (index, permission))
        return index

    return ledger.write(insert).result()


def miscounted(ledger: Ledger) -> list[str]:
    """The permissions under which more or fewer exchanges were had than are counted as used, in words."""
    query = (
        "SELECT p.leaf, p.used, coalesce(h.had, 0), (SELECT coalesce(max(idx) + 1, 0) FROM leaf)"
        " FROM permission p LEFT JOIN (SELECT d.permission, count(*) AS had FROM attempt a"
        " JOIN decided d ON d.decision = a.decision AND d.counts = 1"
        " WHERE a.state <> 'failed' OR a.cost IS NULL OR a.cost <> 0 GROUP BY d.permission) h"
        " ON h.permission = p.leaf ORDER BY p.leaf"
    )
    counted = ledger.read(query)  # in one statement, since others may be asking
    if not counted:
        return []
    size, resting = counted[0][3], defaultdict[int, list[int]](list)
    for permission, decision in ledger.read("SELECT permission, decision FROM decided WHERE counts = 1"):
        resting[permission].append(decision)
    imports = Counter(
        leaf.body.get("decision")
        for leaf in takewhile(lambda leaf: leaf.index < size, ledger.leaves("import"))
    )
    had = {leaf: had + sum(imports[decision] for decision in resting[leaf]) for leaf, _, had, _ in counted}
    return [
        f"under the permission in leaf {leaf} {had[leaf]} exchanges were had, and {used} are counted"
        for leaf, used, _, _ in counted
        if used != had[leaf]
    ]


def standings(ledger: Ledger) -> dict[int, Standing]:
    """Every permission of the ledger by its leaf."""
    rows = ledger.read("SELECT leaf, volume, used, revoked FROM permission ORDER BY leaf")
    return {row[0]: Standing(*row) for row in rows}
