"""The gate: no request leaves before it has decided, and every decision, refusals too, is a leaf.

It reads what it decides by, lets `deciding` decide, and writes down all of it: what was asked, by which
table, what each text came to, what is owed, and on whose word it rests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from itertools import accumulate
from typing import Any, NamedTuple

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.leaves import canonical
from stillhouse.ledger.permissions import decide_by
from stillhouse.recipe import WORDS, Declaration, Recipe, Teacher
from stillhouse.terms import registry
from stillhouse.terms.asking import asked_of, base_named, name_of
from stillhouse.terms.authorising import recorded
from stillhouse.terms.deciding import Decision, DeclaredTerms, decide
from stillhouse.terms.declaring import once, read_declaration, record_declaration, recorded_as
from stillhouse.terms.facts import OPEN, STRICTEST, Asked, Row, Student, Use, Verdict
from stillhouse.terms.lineage import Lineage, Past, folder_of, read_lineage
from stillhouse.terms.obligations import BASE, the_base
from stillhouse.terms.offered import Heard, heard, heard_since, resting_on
from stillhouse.terms.operator import read_operator
from stillhouse.terms.ruling import ALLOWED, TRAINS
from stillhouse.terms.weighing import asked_of_past, bygone, weigh

ROOM = 48 << 10  # bytes of a decision's leaf that leave room for what is added to it; it has under 64 KiB
LINE = 2 << 10  # characters of its reason where it has no room for all of them
POLICY = "rows-4"  # changes with every change of what `deciding` makes of the same input


class _Considered(NamedTuple):
    """A decision, what is to be recorded of it, and the declared documents that it may rest on; `declared_of`
    is whom these are about, in the same words whether it teaches or is what the student begins with."""

    decision: Decision
    body: dict[str, Any]
    texts: dict[DeclaredTerms, bytes]
    declared_of: dict[str, str]


def admit(recipe: Recipe, teacher: Teacher, use: Use, ledger: Ledger, now: datetime) -> int:
    """Decide about a teacher of a recipe and record it; returns the decision's leaf, which exchanges name.

    Records a declared document (as erasable content) and the declaration once for each distinct one; an equal
    decision of the same UTC day is used again, unless it is recalled. How many exchanges a permission still
    covers is no question here: that is asked of each one. Raises GateRefused, after recording the refusal.
    """
    asked = asked_of(recipe, teacher, use, ledger.workspace)
    found = _consider(asked, teacher, teacher.terms, ledger, now)
    leaf = _record(found, ledger)
    _must_be_allowed(asked, teacher.model, found.decision, _recipe_lines(found.decision, now))
    return leaf


def admit_import(model: str, declaration: Declaration | None, ledger: Ledger, now: datetime) -> int:
    """As `admit`, for answers that were collected elsewhere and are to be training targets, of a student that
    nobody has described yet.

    The name is the importer's claim, so a shipped teacher's name needs a declaration like any other.
    """
    operator = read_operator(ledger.workspace)
    asked = Asked(model, "", "import", "", "train_target", Student("", ""), operator)
    claimed = Teacher(model=model).model_copy(update={"imported": True})
    found = _consider(asked, claimed, [] if declaration is None else [declaration], ledger, now)
    leaf = _record(found, ledger)
    _must_be_allowed(asked, model, found.decision, _import_lines(found.decision, now))
    return leaf


def admit_release(recipe: Recipe, collected: Iterable[int], ledger: Ledger, now: datetime) -> list[int]:
    """Decide again about all that a release was made of; returns the new decisions' leaves, of the base last.

    `collected` are the decisions under which the answers were had; what was owed then is owed still, and so
    is what was owed for the base when this run last knew who taught it. Raises GateRefused where a teacher
    may not be learned from today, and where the terms became stricter, or the base's record was lost, and
    nobody signed that off.
    """
    before = [ledger.leaf(index) for index in sorted(set(collected))]
    leaves = []
    for teacher, use in uses_of(recipe):
        if use not in TRAINS:
            continue
        asked = asked_of(recipe, teacher, use, ledger.workspace)
        found = _consider(asked, teacher, teacher.terms, ledger, now)
        wanted = (name_of(teacher), use)
        then = [leaf for leaf in before if (leaf.body["teacher"]["model"], leaf.body["use"]) == wanted]
        bodies = [leaf.body for leaf in then]
        stricter = _stricter(found.decision, bodies)
        found.body.update(
            at="release",
            collected_under=[leaf.index for leaf in then],
            obligations=_all_owed(found.decision, bodies),
            stricter=stricter,
            signed_off_by=recipe.release.signed_off_by,
        )
        leaves.append(_record(found, ledger))
        _must_be_allowed(asked, teacher.model, found.decision, _recipe_lines(found.decision, now))
        if stricter and not recipe.release.signed_off_by:
            raise GateRefused(
                f"what is known of {teacher.model} has become stricter since its answers were collected",
                "; ".join(stricter),
                'see to that, then answer for it: [release] signed_off_by = "NAME, ROLE"',
            )
    base = _base_again(recipe, ledger, now)
    return leaves if base is None else [*leaves, base]


def admit_base(recipe: Recipe, ledger: Ledger, now: datetime) -> int | None:
    """Decide about those who taught the model that the student begins with, where that is a release of
    stillhouse, and record it; returns the decision's leaf, None where it is no release.

    What the licence of its own weights asks is for `base` to say. Who taught it may be unknown, as of any
    base: that is said, and stops nothing. Raises GateRefused where one is known who may not be learned from.
    """
    found = _base(recipe, ledger, now)
    return None if found is None else _admit_base(found, recipe, ledger, now, {})


def _base_again(recipe: Recipe, ledger: Ledger, now: datetime) -> int | None:
    """The decision about the base at the release."""
    before = [
        leaf.body
        for leaf in ledger.leaves("decision")
        if leaf.body.get("use") == BASE
        and leaf.body.get("run") == recipe.run.name
        and the_base(leaf.body["teacher"]["model"]) == base_named(recipe)
        and leaf.body["verdict"] in ALLOWED
        and leaf.body["upstream"]["teachers"]
    ]
    then = before[-1:]
    found = _base(recipe, ledger, now, then[0]["upstream"]["release"] if then else "")
    if found is None:
        return None
    lost = bool(then) and not found.body["upstream"]["teachers"]
    why = f"who taught the base was known, and is not: {found.body['upstream']['unknown']}"
    signed = recipe.release.signed_off_by
    more = {
        "at": "release",
        "obligations": _all_owed(found.decision, then),
        "stricter": [why] if lost else [],
    }
    leaf = _admit_base(found, recipe, ledger, now, {**more, "signed_off_by": signed})
    if lost and not signed:
        raise GateRefused(
            f"the record of {recipe.student.init} was there when this run began, and is lost",
            why,
            'put it back; or answer for it: [release] signed_off_by = "NAME, ROLE"',
        )
    return leaf


def _admit_base(
    found: _Considered, recipe: Recipe, ledger: Ledger, now: datetime, more: Mapping[str, Any]
) -> int:
    found.body.update(run=recipe.run.name, **more)
    leaf = _record(found, ledger)
    if not found.decision.allowed:
        why, mend = _barred(found.decision, _recipe_lines(found.decision, now))
        raise GateRefused(
            f"the student may not begin with {recipe.student.init}, by who taught it", why, mend
        )
    return leaf


def consider_base(recipe: Recipe, ledger: Ledger, now: datetime) -> Decision | None:
    """What `admit_base` would decide; records nothing."""
    found = _base(recipe, ledger, now)
    return None if found is None else found.decision


def consider(recipe: Recipe, teacher: Teacher, use: Use, ledger: Ledger, now: datetime) -> Decision:
    """What `admit` would decide; records nothing."""
    asked = asked_of(recipe, teacher, use, ledger.workspace)
    return _consider(asked, teacher, teacher.terms, ledger, now).decision


def uses_of(recipe: Recipe) -> list[tuple[Teacher, Use]]:
    """Every use that a recipe makes of every teacher; what is learned from comes first."""
    uses: list[tuple[Teacher, Use]] = [
        (teacher, "train_target") for teacher in (recipe.teacher, *recipe.teachers)
    ]
    if recipe.prompts.grow is not None or recipe.prompts.focus is not None:
        uses.append((recipe.teacher, "prompt_seed"))
    uses.append((recipe.teacher, "evaluation"))
    if recipe.evaluate.judge is not None:
        uses.append((recipe.evaluate.judge, "evaluation"))
    return uses


def _consider(
    asked: Asked,
    teacher: Teacher,
    declarations: Sequence[Declaration],
    ledger: Ledger,
    now: datetime,
    base: Lineage | None = None,
) -> _Considered:
    """`base` is who taught the model, where it is what the student begins with."""
    lineage, is_base = base or _lineage(teacher, ledger), base is not None
    found = _weighed(asked, teacher, declarations, ledger, now, lineage, is_base)
    if lineage is None or len(canonical(found.body)) <= ROOM:
        return found
    told = _shortly(found.body)
    if len(canonical(told)) <= ROOM:
        return found._replace(body=told)
    why = f"what {lineage.release} owes to those who taught it is too long for one decision"
    short = _weighed(asked, teacher, declarations, ledger, now, lineage.shortened(why), is_base)
    decision = replace(short.decision, verdict="refuse", reason=why, reasons=(), lifts=(), to_declare=())
    body = short.body | {"verdict": "refuse", "reason": why, "reasons": [], "lifts": []}
    return short._replace(decision=decision, body=body)


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


def _base(recipe: Recipe, ledger: Ledger, now: datetime, was: str = "") -> _Considered | None:
    """What is decided about the teachers of the model that the student begins with. Declarations about them
    stand among those of the recipe's teachers. `was` is the release that the model was, if it was one."""
    init = recipe.student.init
    if init in WORDS:
        return None
    base = Teacher(model=init)
    lineage = _lineage(base, ledger)
    if lineage is None and was:
        lineage = Lineage(was, "", "", False, "its record is there no more")
    if lineage is None:
        return None
    asked = asked_of(recipe, base, "train_target", ledger.workspace)
    declared = [
        each for teacher in (recipe.teacher, *recipe.teachers) for each in teacher.terms if each.about
    ]
    return _consider(asked, base, declared, ledger, now, lineage)


def _weighed(
    asked: Asked,
    teacher: Teacher,
    declarations: Sequence[Declaration],
    ledger: Ledger,
    now: datetime,
    lineage: Lineage | None,
    is_base: bool,
) -> _Considered:
    today = now.astimezone(UTC).date()
    named = _named(asked, asked.student.base if is_base else name_of(teacher))
    declared_of = _named(asked, name_of(teacher))
    texts = dict(read_declaration(declaration, declared_of, ledger) for declaration in declarations)
    rows, table = _rows(asked, teacher, ledger)
    offers = heard(ledger, asked, tuple(texts), today)
    rows += [each.row for each in offers if each.row is not None]
    permissions = recorded(ledger)
    heard_of = lineage
    if is_base and lineage is not None:
        # Where the record is lost nobody can know; one that is only long is for a person to look at.
        heard_of = lineage if lineage.too_long else replace(lineage, unknown="")
        unknown = lineage.unknown and f"who taught {lineage.release} is unknown: {lineage.unknown}"
        rows, decision = [], Decision("allow", unknown or "its own licence is looked up apart")
    else:
        decision = decide(asked, rows, permissions, tuple(texts), today, further=0)
        decision = resting_on(decision, offers)
    beside: dict[str, Any] = {}
    if lineage is not None and heard_of is not None:
        beside = {"upstream": lineage.record(), "teacher_permissions": list(decision.permissions)}
        before = bygone(lineage, ledger)
        since = _since(heard_of, asked, tuple(texts), ledger, today)
        banned = {past: [one.row for one in said if one.row is not None] for past, said in since.items()}
        found = weigh(decision, asked, heard_of, table, permissions, tuple(texts), today, before, banned)
        further = list(dict.fromkeys(one for said in since.values() for one in said))
        decision = resting_on(found.decision, [each for each in further if each not in offers])
        offers = list(dict.fromkeys([*offers, *further]))
        beside["weighed"] = [dict(each) for each in found.record]
        rows = list({row.key: row for row in (*rows, *found.rows)}.values())
    if not decision.allowed:
        lifts = dict.fromkeys((*decision.lifts, *(lift for each in offers for lift in each.lifts)))
        topics = dict.fromkeys((*decision.to_declare, *(one for each in offers for one in each.to_declare)))
        decision = replace(decision, lifts=tuple(lifts), to_declare=tuple(topics))
    body: dict[str, Any] = {
        "on": today.isoformat(),
        "teacher": named,
        "use": BASE if is_base else asked.use,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "reasons": [_plain(asdict(reason)) for reason in decision.reasons],
        "obligations": _all_owed(decision, ()),
        "lifts": list(decision.lifts),
        "asked": _plain(asdict(asked)),
        "layers": [_layer(row, row.key in table.own) for row in rows],
        "terms": decision.terms,
        "read_on": decision.read_on.isoformat() if decision.read_on else None,
        "basis": decision.basis,
        "policy": POLICY,
        "registry_sha256": table.digest,
        **beside,
    }
    if offers:
        body["offered"] = list(dict.fromkeys(leaf for each in offers for leaf in each.leaves))
    return _Considered(decision, body, texts, declared_of)


def _since(
    lineage: Lineage, asked: Asked, declarations: Sequence[DeclaredTerms], ledger: Ledger, today: date
) -> dict[Past, list[Heard]]:
    """What the servers forbid at which a teacher's own teachers were asked; each is looked up once."""
    about = [each for each in declarations if each.about]
    found: dict[tuple[str, bool], list[Heard]] = {}
    said = {}
    for past in lineage.teachers:
        server = (past.host, past.access in OPEN)
        if server not in found:
            found[server] = heard_since(ledger, asked_of_past(asked, past), about, today)
        said[past] = found[server]
    return said


def _lineage(teacher: Teacher, ledger: Ledger) -> Lineage | None:
    """Who taught a teacher that lies here, by what its folder says."""
    if teacher.endpoint or teacher.imported or teacher.model.startswith("embedded:"):
        return None
    return read_lineage(folder_of(teacher.model), ledger.workspace)


def _record(found: _Considered, ledger: Ledger) -> int:
    """Write the decision down, and the declarations that it rests on; returns its leaf."""
    decision, of = found.decision, found.declared_of
    if decision.declared:
        pairs = [record_declaration(of, each, found.texts[each], ledger) for each in decision.declared]
        snapshots, declarations = ([*leaves] for leaves in zip(*pairs, strict=True))
        found.body.update(authorisation=declarations[0], declarations=declarations, terms_snapshots=snapshots)
    if not decision.permissions:
        return once(ledger, "decision", found.body)
    found.body.update(authorisation=decision.permissions[0], permissions=list(decision.permissions))
    there = recorded_as(ledger, "decision", found.body)
    counted = found.body.get("teacher_permissions", decision.permissions)
    return decide_by(ledger, found.body, decision.permissions, counted) if there is None else there


def _must_be_allowed(asked: Asked, model: str, decision: Decision, lines: str) -> None:
    if decision.allowed:
        return
    where = f" at {asked.endpoint}" if asked.endpoint else ""
    why, mend = _barred(decision, lines)
    verb = "may not be" if decision.verdict == "refuse" else "is not yet known to be allowed and may not be"
    raise GateRefused(f"the teacher {model}{where} {verb} used as {asked.use}", why, mend)


def _barred(decision: Decision, lines: str) -> tuple[str, str]:
    """Why a use is not allowed, and what would change that."""
    barred = [reason for reason in decision.reasons if reason.verdict not in ALLOWED]
    why = "\n".join(reason.cited() for reason in barred) or decision.reason
    declares = any("declare so" in lift for lift in decision.lifts)
    return why, "\n".join([*decision.lifts, *([lines] if declares else [])])


def _rows(asked: Asked, teacher: Teacher, ledger: Ledger) -> tuple[list[Row], registry.Registry]:
    """The rows that apply, by every name that it has; and the table that they stand in.

    Of answers that are imported nobody else knows how they were come by: what a recipe says adds rows, and
    takes none away.
    """
    table = registry.load(ledger.workspace.terms)
    ways = [asked, *([replace(asked, access="import")] if teacher.imported else [])]
    found = {row.key: row for way in ways for row in table.matching(way)}
    return list(found.values()), table


def _layer(row: Row, own: bool) -> dict[str, Any]:
    read_on = None if row.read_on is None else row.read_on.isoformat()
    return {"row": row.key, "version": row.version, "read_on": read_on, "source": row.source, "own": own}


def _named(asked: Asked, model: str) -> dict[str, str]:
    return {"model": model, "access": asked.access, "endpoint": asked.endpoint, "revision": asked.revision}


def _all_owed(decision: Decision, before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is owed, by this decision and by those before it, each thing once."""
    now = [{"row": each.row, **_plain(asdict(each.obligation))} for each in decision.obligations]
    then = [owed for body in before for owed in body.get("obligations", ())]
    return list({json.dumps(owed, sort_keys=True): owed for owed in (*now, *then)}.values())


def _stricter(decision: Decision, before: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what a decision asks for more than all of those before it; nothing where there are none."""
    if not before:
        return []
    verdicts: list[Verdict] = [body["verdict"] for body in before]
    mildest = min(verdicts, key=STRICTEST.index)
    found = []
    if decision.allowed and STRICTEST.index(decision.verdict) > STRICTEST.index(mildest):
        found.append(f"it was {mildest}, and is {decision.verdict}")
    owed_then = [list(body.get("obligations", ())) for body in before]
    for owed in _all_owed(decision, ()):
        if not all(owed in each for each in owed_then):
            texts = ", ".join(owed["texts"])
            found.append(f"{owed['row']} asks for {owed['kind']}" + (f" ({texts})" if texts else ""))
    return found


def _recipe_lines(decision: Decision, now: datetime) -> str:
    about = ", ".join(f'"{topic}"' for topic in decision.to_declare)
    return (
        "[teacher.terms]                 # [[teacher.terms]] for each of several texts\n"
        'document = "terms.txt"          # the text that you read, saved as a file\n'
        f"read_on = {now.astimezone(UTC).date()}\n"
        'declared_by = "NAME, ROLE"' + (f"\nabout = [{about}]" if about else "")
    )


def _import_lines(decision: Decision, now: datetime) -> str:
    about = "".join(f" --about {topic}" for topic in decision.to_declare)
    return (
        "stillhouse import ... --terms terms.txt"
        f' --read-on {now.astimezone(UTC).date()} --declared-by "NAME, ROLE"{about}\n'
        "where terms.txt holds the text that you read"
    )


def _plain(value: Any) -> Any:
    """As JSON has it: dates in ISO 8601, tuples as lists."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value.isoformat() if isinstance(value, date) else value
