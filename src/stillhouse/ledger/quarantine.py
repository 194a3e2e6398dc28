"""Recalling what a decision covered: it is set aside by a leaf and brought back by another; nothing goes.

    {"what": "quarantined", "decisions": [12, 40], "exchanges": 7120, "reason": "...", "authorisation": 7}

The leaves name decisions, and an exchange is quarantined when its decision is. Where it was recalled by an
authorisation the leaf names that too, and nothing new is decided by it or asked under it. What is in force is
read from the leaves in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.errors import UsageError
from stillhouse.ledger.database import Connection
from stillhouse.ledger.inserting import insert_leaves
from stillhouse.ledger.leaves import Leaf, LeafKind, new_leaf
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.subject import read_rows, runs_of
from stillhouse.ledger.tombstones import rows_made_from
from stillhouse.ledger.uses import releases, trainings

By = Literal["decision", "authorisation", "teacher"]

SET_ASIDE, LIFTED = "quarantined", "quarantine lifted"
_ANSWERS: tuple[LeafKind, ...] = ("exchange", "import")
_AT_ONCE = 4000  # decisions that one leaf names, which must stay under 64 KiB


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the decisions cover, and who used it; `leaves` are those that say so. `runs` hold such exchanges,
    `students` and `releases` are the leaves of trainings and releases that were made with them."""

    decisions: list[int]
    leaves: list[int]
    exchanges: int
    rows: int
    runs: list[str]
    students: list[dict[str, Any]]
    releases: list[dict[str, Any]]


def quarantined(ledger: Ledger) -> frozenset[int]:
    """The decisions that are recalled now."""
    held: set[int] = set()
    for leaf in ledger.leaves("correction"):
        if leaf.body.get("what") == SET_ASIDE:
            held |= set(leaf.body["decisions"])
        elif leaf.body.get("what") == LIFTED:
            held -= set(leaf.body["decisions"])
    return frozenset(held)


def withdrawn(ledger: Ledger) -> dict[int, int]:
    """The authorisations that are recalled now, each with the leaf that says so."""
    held: dict[int, int] = {}
    for leaf in ledger.leaves("correction"):
        authorisation = leaf.body.get("authorisation")
        if leaf.body.get("what") == SET_ASIDE and authorisation is not None:
            held.setdefault(authorisation, leaf.index)
        elif leaf.body.get("what") == LIFTED and authorisation is not None:
            held.pop(authorisation, None)
    return held


def decisions_of(ledger: Ledger, by: By, which: int | str) -> list[int]:
    """The decisions that a leaf is, that rest on an authorisation, or that are about a teacher. One may rest
    on several permissions and declarations. Raises UsageError where there is none."""

    def answers_to(leaf: Leaf) -> list[int | str | None]:
        if by == "decision":
            return [leaf.index]
        if by == "teacher":
            return [leaf.body.get("teacher", {}).get("model")]
        said = leaf.body
        several = [leaf for name in ("permissions", "declarations") for leaf in said.get(name, ())]
        return [said.get("authorisation"), said.get("declaration"), *several]

    found = [leaf.index for leaf in ledger.leaves("decision") if which in answers_to(leaf)]
    if not found:
        raise UsageError(
            f"no decision to recall by the {by} {which}",
            "no decision in the ledger is it, rests on it, or is about it",
            "`stillhouse ledger show --kind decision` shows them",
        )
    return found


def recall(
    ledger: Ledger,
    decisions: Collection[int],
    reason: str,
    lift: bool = False,
    authorisation: int | None = None,
) -> Recalled:
    """Quarantine what these decisions covered, or lift that; `authorisation` is what all of them rest on, and
    it is withdrawn, or holds again. Raises UsageError where that is so already."""
    held = quarantined(ledger)
    wanted = sorted(set(decisions) & held if lift else set(decisions) - held)
    if not wanted and (authorisation is None or (authorisation in withdrawn(ledger)) is not lift):
        raise UsageError(
            "nothing of this is quarantined" if lift else "all of this is quarantined already",
            f"decisions {', '.join(map(str, sorted(decisions)[:8]))}",
            "`stillhouse ledger show --kind correction` shows what was set aside",
        )
    answers = _answers(ledger, wanted)
    what, counts, now = LIFTED if lift else SET_ASIDE, Counter(answers.values()), ledger.clock()
    bodies: list[dict[str, Any]] = [
        {
            "what": what,
            "decisions": some,
            "exchanges": sum(counts[decision] for decision in some),
            "reason": reason,
            **({} if authorisation is None else {"authorisation": authorisation}),
        }
        for some in (wanted[at : at + _AT_ONCE] for at in range(0, max(1, len(wanted)), _AT_ONCE))
    ]
    stands = ledger.read("SELECT revoked FROM permission WHERE leaf = ?", (authorisation,))
    by_recall = bool(stands) and stands[0][0] in withdrawn(ledger).values()

    def insert(db: Connection) -> list[int]:
        indices = insert_leaves(db, [new_leaf("correction", body, {}, now) for body in bodies])
        # In this transaction, so that no process asks under it from now on; one that was revoked stays so.
        if lift and by_recall:
            db.execute("UPDATE permission SET revoked = NULL WHERE leaf = ?", (authorisation,))
        elif not lift:
            db.execute(
                "UPDATE permission SET revoked = ? WHERE leaf = ? AND revoked IS NULL",
                (indices[0], authorisation),
            )
        return indices

    return _uses(ledger, wanted, answers, list(ledger.write(insert).result()))


def _answers(ledger: Ledger, decisions: Collection[int]) -> dict[int, int]:
    """The exchanges and imports that these decisions covered, each with its decision."""
    wanted = set(decisions)
    return {
        leaf.index: leaf.body["decision"]
        for kind in _ANSWERS
        for leaf in ledger.leaves(kind)
        if leaf.body.get("decision") in wanted
    }


def _uses(ledger: Ledger, decisions: list[int], answers: dict[int, int], leaves: list[int]) -> Recalled:
    rows = rows_made_from(ledger, answers.keys()) if answers else {}
    runs = {
        run.root.name
        for run in runs_of(ledger.workspace)
        if any(row["leaf"] in answers for row in read_rows(run.exchanges, ["leaf"]))
    }
    students = trainings(ledger, answers.keys(), rows.values(), ())
    out = {leaf["leaf"]: leaf for leaf in releases(ledger, students)}
    for leaf in ledger.leaves("release"):
        if set(leaf.body.get("decisions", ())) & set(decisions):
            out[leaf.index] = {"leaf": leaf.index, "run": leaf.body["run"], "name": leaf.body.get("name")}
    return Recalled(
        decisions, leaves, len(answers), len(rows), sorted(runs), students, [out[at] for at in sorted(out)]
    )
