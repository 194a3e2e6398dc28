"""Recalling what a decision covered: it is set aside by a leaf and brought back by another; nothing goes.

    {"what": "quarantined", "decisions": [12, 40], "exchanges": 7120, "reason": "...", "authorisation": 7}

The leaves name decisions, and an exchange is quarantined when its decision is. Where it was recalled by an
authorisation the leaf names that too, and nothing new is decided by it or asked under it. What is in force is
read from the leaves in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from stillhouse.errors import UsageError
from stillhouse.ledger.database import Connection
from stillhouse.ledger.inserting import insert_leaves
from stillhouse.ledger.leaves import Leaf, LeafKind, new_leaf, read_leaf
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.subject import read_rows, runs_of
from stillhouse.ledger.tombstones import rows_made_from
from stillhouse.ledger.uses import releases, trainings
from stillhouse.text import host_name

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


class Reading(NamedTuple):
    """What a declaration says at bottom: who read which text (SHA-256) about which teacher, asked where."""

    declared_by: str
    document_sha256: str
    model: str
    host: str


def reading_of(body: Mapping[str, Any]) -> Reading | None:
    """The reading that the body of a declaration tells of; None for what is no declaration.

    A recalled declaration is recalled as this, however it is said again. Its day, its scope and what it is
    about are how one person's word on one text was put, and leaves of earlier versions lack what later ones
    say; were they to count, one word more would bring back what a recall took. Nor does a teacher become
    another one by its revision, its port or a path. Another text or another person's reading is another one.
    """
    teacher, by, digest = (body.get(name) for name in ("teacher", "declared_by", "document_sha256"))
    if not isinstance(teacher, Mapping) or not by or not digest:
        return None
    model, endpoint = teacher["model"], teacher["endpoint"] or ""
    host = host_name(urlsplit(endpoint).hostname or "")
    here = teacher.get("access") == "weights" and not endpoint
    # As earlier leaves had a folder, and a hub id that a student begins with.
    name = PurePath(model).name if here or PurePath(model).is_absolute() else model
    return Reading(" ".join(by.split()).casefold(), digest, name, host)


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


def recalled_readings(ledger: Ledger) -> dict[Reading, int]:
    """The declarations that are recalled now, each with the leaf that says so. What recalls or lifts one
    does so with all by which the same reading was said."""
    held: dict[Reading, int] = {}
    for leaf in ledger.leaves("correction"):
        what, authorisation = leaf.body.get("what"), leaf.body.get("authorisation")
        if what not in (SET_ASIDE, LIFTED) or authorisation is None:
            continue
        reading = reading_of(ledger.leaf(authorisation).body)
        if reading is None:
            continue
        if what == LIFTED:
            held.pop(reading, None)
        else:
            held.setdefault(reading, leaf.index)
    return held


def decisions_of(ledger: Ledger, by: By, which: int | str) -> list[int]:
    """The decisions that a leaf is, that rest on an authorisation, or that are about a teacher. One may rest
    on several permissions and declarations, and on a declaration in whatever form that same reading was said;
    and on earlier decisions, by the record of a teacher that was taught under them, however many steps back.
    Raises UsageError where there is none."""
    found = _by(ledger, by, _alike(ledger, int(which)) if by == "authorisation" else {which})
    if not found:
        raise UsageError(
            f"no decision to recall by the {by} {which}",
            "no decision in the ledger is it, rests on it, or is about it",
            "`stillhouse ledger show --kind decision` shows them",
        )
    return found


def _by(ledger: Ledger, by: By, on: Collection[int | str]) -> list[int]:
    def answers_to(leaf: Leaf) -> list[int | str | None]:
        if by == "decision":
            return [leaf.index]
        if by == "teacher":
            return [leaf.body.get("teacher", {}).get("model")]
        said = leaf.body
        several = [leaf for name in ("permissions", "declarations") for leaf in said.get(name, ())]
        return [said.get("authorisation"), said.get("declaration"), *several]

    wanted, found = set(on), dict[int, None]()
    for leaf in ledger.leaves("decision"):  # one rests on earlier ones alone, so all are found in one go
        earlier = {index for each in leaf.body.get("weighed", ()) for index in each.get("decisions", ())}
        if not wanted.isdisjoint(answers_to(leaf)) or not earlier.isdisjoint(found):
            found[leaf.index] = None
    return list(found)


def _held_by_others(ledger: Ledger, authorisation: int) -> set[int]:
    """The decisions that rest on another authorisation that is recalled now, as well."""
    held, readings = withdrawn(ledger), recalled_readings(ledger)
    others: set[int | str] = {
        leaf.index
        for leaf in ledger.leaves("authorisation")
        if (leaf.index in held if (reading := reading_of(leaf.body)) is None else reading in readings)
    }
    return {*_by(ledger, "authorisation", others - _alike(ledger, authorisation))}


def recall(
    ledger: Ledger,
    decisions: Collection[int],
    reason: str,
    lift: bool = False,
    authorisation: int | None = None,
) -> Recalled:
    """Quarantine what these decisions covered, or lift that; `authorisation` is what all of them rest on, and
    it is withdrawn, or holds again. What also rests on another one that is recalled stays quarantined. Raises
    UsageError where it is so already."""
    held = quarantined(ledger)
    wanted = sorted(set(decisions) & held if lift else set(decisions) - held)
    if lift and authorisation is not None:
        wanted = sorted({*wanted} - _held_by_others(ledger, authorisation))
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

    def insert(db: Connection) -> list[int]:
        indices = insert_leaves(db, [new_leaf("correction", body, {}, now) for body in bodies])
        # In this transaction, so that no process asks under them from now on; a permission that was revoked
        # stays so, were it a moment ago.
        if lift:
            db.executemany("DELETE FROM recalled WHERE decision = ?", [(each,) for each in wanted])
        else:
            db.executemany(
                "INSERT INTO recalled (decision, leaf) VALUES (?, ?) ON CONFLICT DO NOTHING",
                [
                    (each, index)
                    for index, body in zip(indices, bodies, strict=True)
                    for each in body["decisions"]
                ],
            )
        if lift and ended_by(db, authorisation) == SET_ASIDE:
            db.execute("UPDATE permission SET revoked = NULL WHERE leaf = ?", (authorisation,))
        elif not lift:
            db.execute(
                "UPDATE permission SET revoked = ? WHERE leaf = ? AND revoked IS NULL",
                (indices[0], authorisation),
            )
        return indices

    return _uses(ledger, wanted, answers, list(ledger.write(insert).result()))


def ended_by(db: Connection, permission: int | None) -> str | None:
    """What the leaf says that ended a permission, as seen by a writing transaction; None where none did."""
    row = db.execute(
        "SELECT l.idx, l.kind, l.time, l.data, l.hash FROM permission p JOIN leaf l ON l.idx = p.revoked"
        " WHERE p.leaf = ?",
        (permission,),
    ).fetchone()
    return None if row is None else str(read_leaf(*row).body["what"])


def _alike(ledger: Ledger, authorisation: int) -> set[int | str]:
    """This authorisation and, of a declaration, every other one by which the same reading was said."""
    leaves = {leaf.index: reading_of(leaf.body) for leaf in ledger.leaves("authorisation")}
    reading = leaves.get(authorisation)
    return {
        authorisation,
        *(index for index, other in leaves.items() if reading is not None and other == reading),
    }


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
