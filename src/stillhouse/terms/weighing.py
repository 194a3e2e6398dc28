"""A teacher's own teachers, weighed as if each taught here: by the rows of today, for this student.

A student of a student learned from both, so the strictest decision counts and obligations add up. Pure but
for `bygone`, which reads what this workspace decided before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, NamedTuple

from stillhouse.ledger import Ledger
from stillhouse.ledger.quarantine import quarantined, reading_of, recalled_readings
from stillhouse.terms.base import begun_with, is_unread, rows_about
from stillhouse.terms.deciding import Decision, DeclaredTerms, Lifter, Reason, decide, elsewhere, gap_in
from stillhouse.terms.facts import Asked, Row, Verdict
from stillhouse.terms.lineage import Lineage, Past
from stillhouse.terms.permissions import OFFERED, Permission
from stillhouse.terms.registry import Registry
from stillhouse.terms.ruling import ALLOWED, TRAINS, Owed, strictest

TOPIC = "lineage"  # what a declaration is about that speaks for teachers of whom nothing is known


@dataclass(frozen=True, slots=True)
class Bygone:
    """A decision of this workspace's log that its record names, as it stands today. `every` are the leaves of
    the permissions that it rests on, `permissions` the same by the model that each is for, None where its
    leaf does not tell; `declared` are its declarations, `layers` the keys of the table's rows that spoke."""

    model: str
    verdict: Verdict
    recalled: bool
    permissions: Mapping[str, tuple[int, ...]] | None
    every: tuple[int, ...]
    declared: tuple[DeclaredTerms, ...]
    layers: tuple[str, ...]


class Grounds(NamedTuple):
    """What is decided by: the table of rows, the permissions and declarations, and the day (UTC)."""

    table: Registry
    permissions: Sequence[Permission]
    declarations: Sequence[DeclaredTerms]
    today: date


@dataclass(frozen=True, slots=True)
class Weighed:
    """What was decided of a teacher and its own: the joined `decision`, the `rows` of the latter, and of each
    of these the `record` for a leaf: which permissions and earlier decisions are for it. `unread` are those
    whose weights are in the student, and whose terms nobody knows."""

    decision: Decision
    rows: tuple[Row, ...]
    record: tuple[Mapping[str, Any], ...]
    unread: tuple[str, ...]


def weigh(
    decision: Decision,
    asked: Asked,
    lineage: Lineage,
    by: Grounds,
    before: Mapping[int, Bygone],
    banned: Mapping[Past, Sequence[Row]],
    begun: bool,
) -> Weighed:
    """The decision about a teacher together with those about its own teachers.

    `before` are decisions of this log that the record names, `banned` what the servers forbid at which they
    were asked. What the record says was owed for a teacher is owed still, beside what the rows of today ask:
    who learns from a student owes no less than its maker did. Of somebody else's record only what forbids is
    taken: that a LICENSE was read, or access paid for, is for a person to look at. `begun`: the student
    begins with the model, which does not teach; of weights that are in it only what they ask counts.
    """
    table, today = by.table, by.today
    # One about the teacher is not about its teachers.
    named = [each for each in by.declarations if each.about]
    keys = {row.key for row in table.rows()}
    made: list[Decision] = []
    rows: dict[str, Row] = {}
    record: list[Mapping[str, Any]] = []
    unread: list[str] = []
    within = begun or asked.student.base.casefold() == asked.model.casefold()
    if lineage.unknown:
        made.append(_of_unknown(asked, lineage, named, today))
    for past in dict.fromkeys(lineage.teachers):
        theirs = asked_of_past(asked, past)
        if within and past.inside:
            theirs = replace(theirs, student=replace(theirs.student, base=theirs.model))
        heard = theirs if past.ours else _unvouched(theirs)
        leaves: tuple[int, ...] = ()
        if begun and past.inside:
            found = rows_about(theirs, table)
            one = begun_with(heard, found, today)
            unread += [theirs.model] if is_unread(heard, found) else []
        else:
            found = (*table.matching(theirs), *banned.get(past, ()))
            one = decide(heard, found, by.permissions, named, today, further=0)
            if not found and past.is_base:
                one = Decision("allow", "it answered nothing, and no row speaks of its weights")
            elif not found and not one.allowed:
                one = _by_record(one, theirs, lineage, past, before, keys, today)
                leaves = past.decided if one.allowed else ()
        if asked.use in TRAINS:
            one = _still_owed(one, past, lineage)
        made.append(_about(one, past, lineage))
        rows |= {row.key: row for row in found}
        who = {"access": past.access, "host": past.host, "revision": past.revision}
        on = {"permissions": list(one.permissions), "decisions": list(leaves)}
        record.append({"model": theirs.model, **who, **on})
    return Weighed(_joined(decision, made), tuple(rows.values()), tuple(record), tuple(unread))


def asked_of_past(asked: Asked, past: Past) -> Asked:
    """The same use of one that taught the teacher, by all that it was known by when it taught; what is known
    of the teacher alone is left out.

    A name that the record tells beside what it was asked as counts as well, unless it is the end of one.
    """
    endpoint = f"https://{past.host}" if past.host else ""
    theirs = Asked(past.model, past.revision, past.access, endpoint, asked.use, asked.student, asked.operator)
    theirs = replace(theirs, **dict(past.known))
    names = (theirs.model, *theirs.also)
    if any(past.model in (name, name.rpartition("/")[2]) for name in names):
        return theirs
    return replace(theirs, also=(*theirs.also, past.model))


def _unvouched(asked: Asked) -> Asked:
    """Without what may make something freer, for which there is only somebody else's word."""
    free = replace(asked, licence_sha256="", licence_spdx="")
    return replace(free, paid=None, prompt_logging=None, provider_pinned=None)


def bygone(lineage: Lineage, ledger: Ledger) -> dict[int, Bygone]:
    """The decisions of this workspace that a record names, by leaf, with what they rest on as it stands
    today; one whose leaf is another thing, or is not there, is left out."""
    if not lineage.ours:
        return {}
    wanted = {leaf for past in lineage.teachers for leaf in past.decided}
    held, recalled = quarantined(ledger), recalled_readings(ledger)
    found = {}
    for leaf in ledger.pick(wanted):
        body = leaf.body
        if leaf.kind != "decision" or not {"teacher", "verdict"} <= body.keys():
            continue
        several = [*body.get("permissions", ()), *body.get("declarations", ())]
        named = {*several, body.get("authorisation"), body.get("declaration")} - {None}
        grounds = {each.index: each.body for each in ledger.pick(named) if each.kind == "authorisation"}
        lent = tuple(index for index, said in grounds.items() if "permission" in said)
        read = (
            _declared(said, None if (reading := reading_of(said)) is None else recalled.get(reading))
            for said in grounds.values()
            if "read_on" in said
        )
        found[leaf.index] = Bygone(
            body["teacher"]["model"],
            body["verdict"],
            leaf.index in held,
            _for_whom(body, lent),
            lent,
            tuple(read),
            tuple(key for each in body.get("layers", ()) if not (key := each["row"]).startswith(OFFERED)),
        )
    return found


def _for_whom(body: Mapping[str, Any], every: tuple[int, ...]) -> Mapping[str, tuple[int, ...]] | None:
    """The permissions of a decision by whom they are for; None where its leaf does not tell."""
    if "upstream" not in body:
        return {body["teacher"]["model"]: every}
    if "weighed" not in body:
        return None
    found = {body["teacher"]["model"]: tuple(body.get("teacher_permissions", ()))}
    for each in body["weighed"]:
        found[each["model"]] = (*found.get(each["model"], ()), *each["permissions"])
    return found


def _declared(said: Mapping[str, Any], recalled: int | None) -> DeclaredTerms:
    return DeclaredTerms(
        f"the text with SHA-256 {said['document_sha256'][:12]}...",
        said["document_sha256"],
        date.fromisoformat(said["read_on"]),
        said.get("declared_by") or "",
        tuple(said.get("scope") or ()),
        tuple(said.get("about") or ()),
        recalled,
    )


def _of_unknown(
    asked: Asked, lineage: Lineage, declarations: Sequence[DeclaredTerms], today: date
) -> Decision:
    unknown = f"who taught {lineage.release} is unknown: {lineage.unknown}"
    for each in declarations:
        if TOPIC in each.about and not gap_in(each, asked.use, today):
            said = f"{unknown}; {each.says(asked.use, TOPIC)}"
            return Decision("allow", said, basis="declaration", read_on=each.read_on, declared=(each,))
    lift = f'find out who did; if their terms allow this use, declare so, with about = ["{TOPIC}"]'
    return Decision("review", unknown, lifts=(lift,), to_declare=(TOPIC,))


def _by_record(
    decision: Decision,
    asked: Asked,
    lineage: Lineage,
    past: Past,
    before: Mapping[int, Bygone],
    keys: Set[str],
    today: date,
) -> Decision:
    """For one of whom no row speaks. That this workspace decided to let it teach holds as far as what that
    rests on still covers the question of today; what others say they decided is for a person to look at.

    A permission that covers it allows it without its record: so one that does not, and was needed then, is
    ended, revoked, or for something else. A declaration must hold the use, must not be recalled, and must
    have been about the model or its server, not about a row's text; `keys` are of the rows that there are.
    """
    if lineage.ours and past.decided:
        gaps = list(_gaps(asked, past, before, keys, today))
        leaves = ", ".join(map(str, past.decided))
        if not gaps:
            return Decision("allow", f"its teaching was allowed by the decisions in leaves {leaves}")
        recorded = f"; it taught by the decisions in leaves {leaves}, which do not hold for this: "
        recorded += "; ".join(dict.fromkeys(gaps))
    else:
        recorded = "; its maker's record says that it was allowed" if past.decided else ""
    about = f'about = ["{asked.model}"]'
    lift = f"read the terms of {asked.model}; if they allow this use, declare so, with {about}"
    verdict: Verdict = "review" if past.decided and not lineage.ours else "refuse"
    return replace(
        decision,
        verdict=verdict,
        reason=f"{decision.reason}{recorded}",
        lifts=(lift, *decision.lifts[1:]),  # the first is to declare, which must here be about the model
        to_declare=(asked.model,),
    )


def _gaps(
    asked: Asked, past: Past, before: Mapping[int, Bygone], keys: Set[str], today: date
) -> Iterator[str]:
    """Why decisions of then do not cover the question of today; nothing where they do."""
    speaks = False
    for leaf in past.decided:
        then = before.get(leaf)
        if then is None:
            yield f"leaf {leaf} is no decision of this log"
            continue
        if then.recalled:
            yield f"leaf {leaf} was recalled"
        if then.verdict not in ALLOWED:
            yield f"leaf {leaf} says {then.verdict}"
        own = then.model == past.model
        name = past.model if own else asked.model
        for permission in then.every if then.permissions is None else then.permissions.get(name, ()):
            yield f"leaf {leaf} rests on the permission in leaf {permission}, which does not cover this"
        for each in then.declared:
            if gap := gap_in(each, asked.use, today):
                yield f"leaf {leaf} rests on a declaration, and {gap}"
            about_it = (own or each.about) and not elsewhere(each, asked)
            speaks |= bool(about_it) and keys >= {*then.layers}
    if not speaks:
        yield f"what was known of {asked.model} then is not known today"


def _still_owed(decision: Decision, past: Past, lineage: Lineage) -> Decision:
    """With what was owed for it then, but for what a row asks for today in the same words."""

    def asks(now: Owed, then: Owed) -> bool:
        one, other = now.obligation, then.obligation
        return (
            then.row in ("", now.row)
            and (one.kind, one.texts) == (other.kind, other.texts)
            and {*one.modes} >= {*other.modes}
            and one.redistributes <= other.redistributes
        )

    left = (then for then in past.owed if not any(asks(now, then) for now in decision.obligations))
    more = (then if then.row else then._replace(row=f"the record of {lineage.release}") for then in left)
    owed = tuple(dict.fromkeys([*decision.obligations, *more]))
    verdict: Verdict = "allow_with_obligations" if owed and decision.verdict == "allow" else decision.verdict
    return replace(decision, obligations=owed, verdict=verdict)


def _about(decision: Decision, past: Past, lineage: Lineage) -> Decision:
    by = "this workspace's" if lineage.ours else f"the key {lineage.signed_by[:8]}...'s"
    whose = f"{past.model}, which taught {lineage.release} by {by} word"
    reasons = tuple(replace(reason, text=f"{reason.text} ({whose})") for reason in _reasons(decision))
    return replace(decision, reasons=reasons)


def _reasons(decision: Decision) -> tuple[Reason, ...]:
    if decision.reasons:
        return decision.reasons
    lifted: Lifter = "declaration" if decision.declared else "authorisation" if decision.permissions else ""
    text = decision.terms or "terms that no row has"
    return (
        Reason("", decision.verdict, text, "", decision.read_on, "", "", "", "", (decision.reason,), lifted),
    )


def _joined(decision: Decision, others: Iterable[Decision]) -> Decision:
    every = [decision, *others]
    final = strictest(each.verdict for each in every)
    reasons = [reason for each in every for reason in _reasons(each)]
    decisive = [reason for reason in reasons if reason.verdict == final] or reasons
    permissions = dict.fromkeys(leaf for each in every for leaf in each.permissions)
    declared = dict.fromkeys(text for each in every for text in each.declared)
    return replace(
        decision,
        verdict=final,
        reason=" | ".join(reason.words() for reason in decisive),
        reasons=tuple(reasons),
        obligations=tuple(dict.fromkeys(owed for each in every for owed in each.obligations)),
        lifts=tuple(dict.fromkeys(lift for each in every for lift in each.lifts)),
        basis="authorisation" if permissions else "declaration" if declared else decision.basis,
        permissions=tuple(permissions),
        terms="; ".join(dict.fromkeys(each.terms for each in every if each.terms)),
        declared=tuple(declared),
        to_declare=tuple(dict.fromkeys(topic for each in every for topic in each.to_declare)),
    )
