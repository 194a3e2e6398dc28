"""One decision from all that it rests on, and what is to be recorded of it.

The rows that speak of a model, what its server said, permissions, declarations, and who taught it are read
here; `deciding` and `weighing` make the decision of them. Nothing is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from itertools import accumulate
from typing import Any, NamedTuple

from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.leaves import canonical
from stillhouse.recipe import Declaration, Teacher
from stillhouse.terms import registry
from stillhouse.terms.asking import name_of
from stillhouse.terms.authorising import recorded
from stillhouse.terms.base import begun_with, is_unread, rows_about
from stillhouse.terms.deciding import Decision, DeclaredTerms, decide
from stillhouse.terms.declaring import read_declaration
from stillhouse.terms.facts import OPEN, STRICTEST, Asked, Row
from stillhouse.terms.lineage import Lineage, Past, folder_of, read_lineage
from stillhouse.terms.obligations import BASE
from stillhouse.terms.offered import Heard, heard, heard_since, resting_on
from stillhouse.terms.registry import Registry
from stillhouse.terms.weighing import Grounds, Weighed, asked_of_past, bygone, weigh

ROOM = 48 << 10  # bytes of a decision's leaf that leave room for what is added to it; it has under 64 KiB
LINE = 2 << 10  # characters of its reason where it has no room for all of them
POLICY = "rows-4"  # changes with every change of what `deciding` makes of the same input


class Question(NamedTuple):
    """What the gate is to decide about a model: one that teaches, or one that the student begins with
    (`is_base`). `lineage` is who taught it, None where it is no release."""

    asked: Asked
    model: Teacher
    declarations: Sequence[Declaration]
    lineage: Lineage | None
    is_base: bool = False


class Considered(NamedTuple):
    """A decision, what is to be recorded of it, and the declared documents that it may rest on; `declared_of`
    is whom these are about, in the same words whether it teaches or is what the student begins with."""

    decision: Decision
    body: dict[str, Any]
    texts: dict[DeclaredTerms, bytes]
    declared_of: dict[str, str]


def lineage_of(model: Teacher, ledger: Ledger) -> Lineage | None:
    """Who taught a model that lies here, by what its folder says. Raises UsageError for a student in its run,
    where nothing is said of that."""
    if model.endpoint or model.imported or model.model.startswith("embedded:"):
        return None
    folder, runs = folder_of(model.model), ledger.workspace.runs
    found = read_lineage(folder, ledger.workspace)
    if found is None and folder.resolve().is_relative_to(runs.resolve()):
        raise UsageError(
            f"{model.model} is a part of a run",
            "who taught it, and what is owed to them, stands in the release of that run alone",
            "run `stillhouse release RECIPE`, and take the run's folder `release`",
        )
    return found


def considered(of: Question, ledger: Ledger, now: datetime) -> Considered:
    """Raises UsageError for files of the recipe or the workspace that cannot be read."""
    found = _considered(of, ledger, now)
    if of.lineage is None or len(canonical(found.body)) <= ROOM:
        return found
    told = _shortly(found.body)
    if len(canonical(told)) <= ROOM:
        return found._replace(body=told)
    why = f"what {of.lineage.release} owes to those who taught it is too long for one decision"
    short = _considered(of._replace(lineage=of.lineage.shortened(why)), ledger, now)
    decision = replace(short.decision, verdict="refuse", reason=why, reasons=(), lifts=(), to_declare=())
    body = short.body | {"verdict": "refuse", "reason": why, "reasons": [], "lifts": []}
    return short._replace(decision=decision, body=body)


def all_owed(decision: Decision, before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is owed, by this decision and by those before it (leaf bodies), each thing once."""
    now = [{"row": each.row, **_plain(asdict(each.obligation))} for each in decision.obligations]
    then = [owed for body in before for owed in body.get("obligations", ())]
    return list({json.dumps(owed, sort_keys=True): owed for owed in (*now, *then)}.values())


def _considered(of: Question, ledger: Ledger, now: datetime) -> Considered:
    asked, today = of.asked, now.astimezone(UTC).date()
    named = {
        "model": asked.student.base if of.is_base else name_of(of.model),
        "access": asked.access,
        "endpoint": asked.endpoint,
        "revision": asked.revision,
    }
    declared_of = {**named, "model": name_of(of.model)}
    texts = dict(read_declaration(declaration, declared_of, ledger) for declaration in of.declarations)
    rows, table = _rows(asked, of.model, ledger)
    offers = heard(ledger, asked, tuple(texts), today)
    rows += [each.row for each in offers if each.row is not None]
    by = Grounds(table, tuple(recorded(ledger)), tuple(texts), today)
    unread: list[str] = []
    if of.is_base:
        rows = list(rows_about(asked, table))
        decision = begun_with(asked, tuple(rows), today)
        unread = [asked.model] if is_unread(asked, tuple(rows)) else []
    else:
        decision = resting_on(decide(asked, rows, by.permissions, by.declarations, today, further=0), offers)
    upstream: dict[str, Any] = {}
    if of.lineage is not None:
        upstream = {"upstream": of.lineage.record(), "teacher_permissions": list(decision.permissions)}
        found, further = _weighed(decision, of, of.lineage, by, ledger)
        decision = resting_on(found.decision, [each for each in further if each not in offers])
        upstream["weighed"] = [dict(each) for each in found.record]
        unread += found.unread
        rows = list({row.key: row for row in (*rows, *found.rows)}.values())
        offers = list(dict.fromkeys([*offers, *further]))
    if not decision.allowed:
        lifts = dict.fromkeys((*decision.lifts, *(lift for each in offers for lift in each.lifts)))
        topics = dict.fromkeys((*decision.to_declare, *(one for each in offers for one in each.to_declare)))
        decision = replace(decision, lifts=tuple(lifts), to_declare=tuple(topics))
    body: dict[str, Any] = {
        "on": today.isoformat(),
        "teacher": named,
        "use": BASE if of.is_base else asked.use,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "reasons": [_plain(asdict(reason)) for reason in decision.reasons],
        "obligations": all_owed(decision, ()),
        "lifts": list(decision.lifts),
        "asked": _plain(asdict(asked)),
        "layers": [_layer(row, row.key in table.own) for row in rows],
        "terms": decision.terms,
        "read_on": decision.read_on.isoformat() if decision.read_on else None,
        "basis": decision.basis,
        "policy": POLICY,
        "registry_sha256": table.digest,
        **upstream,
    }
    if of.is_base:
        body["unread"] = list(dict.fromkeys(unread))
    if offers:
        body["offered"] = list(dict.fromkeys(leaf for each in offers for leaf in each.leaves))
    return Considered(decision, body, texts, declared_of)


def _weighed(
    decision: Decision, of: Question, lineage: Lineage, by: Grounds, ledger: Ledger
) -> tuple[Weighed, list[Heard]]:
    """The decision together with those about who taught the model, and what the servers forbid at which
    these were asked."""
    if of.is_base and lineage.unknown:
        unknown = f"who taught {lineage.release} is unknown: {lineage.unknown}"
        decision = replace(decision, reason=f"{decision.reason}; {unknown}")
        # Where the record is lost nobody can know; one that is only long is for a person to look at.
        lineage = lineage if lineage.too_long else replace(lineage, unknown="")
    about = [each for each in by.declarations if each.about]
    heard_at: dict[tuple[str, bool], list[Heard]] = {}  # each server is looked up once
    banned: dict[Past, list[Row]] = {}
    for past in lineage.teachers:
        server = (past.host, past.access in OPEN)
        if server not in heard_at:
            heard_at[server] = heard_since(ledger, asked_of_past(of.asked, past), about, by.today)
        banned[past] = [each.row for each in heard_at[server] if each.row is not None]
    found = weigh(decision, of.asked, lineage, by, bygone(lineage, ledger), banned, of.is_base)
    return found, list(dict.fromkeys(each for said in heard_at.values() for each in said))


def _rows(asked: Asked, teacher: Teacher, ledger: Ledger) -> tuple[list[Row], Registry]:
    """The rows that apply, by every name that it has; and the table that they stand in.

    Of answers that are imported nobody else knows how they were come by: what a recipe says adds rows, and
    takes none away.
    """
    table = registry.load(ledger.workspace.terms)
    ways = [asked, *([replace(asked, access="import")] if teacher.imported else [])]
    found = {row.key: row for way in ways for row in table.matching(way)}
    return list(found.values()), table


def _shortly(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same decision with no more of its reasons, strictest first, and of what would lift it than a leaf
    has room for, and how many reasons it leaves out; what it says and what is owed stay whole."""
    reason = body["reason"] if len(body["reason"]) <= LINE else f"{body['reason'][:LINE]}..."
    told = {**body, "reason": reason, "reasons": [], "lifts": [], "reasons_left_out": len(body["reasons"])}
    strictest_first = sorted(body["reasons"], key=lambda each: -STRICTEST.index(each["verdict"]))
    for name, items in (("lifts", body["lifts"]), ("reasons", strictest_first)):
        left = ROOM - len(canonical(told))
        lengths = accumulate(len(canonical({"": each})) for each in items)
        told[name] = [each for each, length in zip(items, lengths, strict=True) if length <= left]
    return {**told, "reasons_left_out": len(body["reasons"]) - len(told["reasons"])}


def _layer(row: Row, own: bool) -> dict[str, Any]:
    read_on = None if row.read_on is None else row.read_on.isoformat()
    return {"row": row.key, "version": row.version, "read_on": read_on, "source": row.source, "own": own}


def _plain(value: Any) -> Any:
    """As JSON has it: dates in ISO 8601, tuples as lists."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value.isoformat() if isinstance(value, date) else value
