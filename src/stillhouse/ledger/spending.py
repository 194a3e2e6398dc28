"""What may still be asked: nothing under what is recalled, and what is left of written permissions. That is
counted in the transaction that writes an attempt or imports an answer, and so exact, however many processes
ask and whenever one of them dies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stillhouse.errors import GateRefused
from stillhouse.ledger.database import Connection


def spend(db: Connection, wanted: Iterable[tuple[int | None, str]]) -> None:
    """Count exchanges that are about to be had: for each the decision that allows it, and when it begins.

    Raises GateRefused where a decision is recalled, or rests on a permission that does not cover all of them
    now.
    """
    times: dict[int | None, list[str]] = {}
    for decision, began in wanted:
        times.setdefault(decision, []).append(began)
    for decision, began_at in times.items():
        permissions = db.execute(
            "SELECT p.leaf, p.volume, p.used, p.begins, p.ends, p.revoked, d.counts"
            " FROM decided d JOIN permission p ON p.leaf = d.permission WHERE d.decision = ?",
            (decision,),
        ).fetchall()
        for leaf, volume, used, begins, ends, revoked, counts in permissions:
            why, count = None, len(began_at)
            if revoked is not None:
                why = f"it was revoked or recalled (leaf {revoked})"
            elif min(began_at) < begins:
                why = f"it is not valid before {begins[:10]}"
            elif ends is not None and max(began_at) >= ends:
                why = f"it ended before {ends[:10]} (UTC)"
            elif counts and volume is not None and used + count > volume:
                why = (
                    f"it is used up: {used:,} of {volume:,} exchanges were had, and {count:,} more are wanted"
                )
            if why is not None:
                raise GateRefused(
                    f"the permission in leaf {leaf} does not cover another exchange",
                    why,
                    "all answers so far are kept; record a new permission with `stillhouse terms authorise`",
                )
            if counts:
                db.execute("UPDATE permission SET used = used + ? WHERE leaf = ?", (count, leaf))
        recalled = db.execute("SELECT leaf FROM recalled WHERE decision = ?", (decision,)).fetchone()
        if recalled is not None:
            raise GateRefused(
                f"the decision in leaf {decision} allows no further exchange",
                f"it was recalled (leaf {recalled[0]})",
                "all answers so far are kept; run again, and it is decided anew, or take it back with"
                " `stillhouse ledger recall --lift`",
            )


def give_back(db: Connection, attempts: Sequence[int]) -> None:
    """Do not count attempts of which it is known that no model worked on them."""
    for attempt in attempts:
        db.execute(
            "UPDATE permission SET used = used - 1 WHERE leaf IN (SELECT d.permission FROM decided d"
            " JOIN attempt a ON a.decision = d.decision WHERE a.id = ? AND d.counts = 1)",
            (attempt,),
        )
