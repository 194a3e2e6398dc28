"""The gate: no request leaves before it has decided, and every decision, refusals too, is a leaf.

It reads what it decides by, lets `deciding` decide, and writes down all of it: what was asked, by which
table, what each text came to, what is owed, and on whose word it rests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.permissions import decide_by
from stillhouse.recipe import Declaration, Recipe, Teacher
from stillhouse.terms.asking import asked_of, base_named, base_of, name_of
from stillhouse.terms.considering import Considered, Question, all_owed, considered, lineage_of
from stillhouse.terms.deciding import Decision
from stillhouse.terms.declaring import once, record_declaration, recorded_as
from stillhouse.terms.facts import STRICTEST, Asked, Student, Use, Verdict
from stillhouse.terms.lineage import Lineage
from stillhouse.terms.obligations import BASE, the_base
from stillhouse.terms.operator import read_operator
from stillhouse.terms.ruling import ALLOWED, TRAINS


def admit(recipe: Recipe, teacher: Teacher, use: Use, ledger: Ledger, now: datetime) -> int:
    """Decide about a teacher of a recipe and record it; returns the decision's leaf, which exchanges name.

    Records a declared document (as erasable content) and the declaration once for each distinct one; an equal
    decision of the same UTC day is used again, unless it is recalled. How many exchanges a permission still
    covers is no question here: that is asked of each one. Raises GateRefused, after recording the refusal.
    """
    of = _question(recipe, teacher, use, ledger)
    found = considered(of, ledger, now)
    leaf = _record(found, ledger)
    _must_be_allowed(of.asked, teacher.model, found.decision, _recipe_lines(found.decision, now))
    return leaf


def admit_import(model: str, declaration: Declaration | None, ledger: Ledger, now: datetime) -> int:
    """As `admit`, for answers that were collected elsewhere and are to be training targets, of a student that
    nobody has described yet.

    The name is the importer's claim, so a shipped teacher's name needs a declaration like any other.
    """
    operator = read_operator(ledger.workspace)
    asked = Asked(model, "", "import", "", "train_target", Student("", ""), operator)
    claimed = Teacher(model=model).model_copy(update={"imported": True})
    declarations = [] if declaration is None else [declaration]
    found = considered(Question(asked, claimed, declarations, None), ledger, now)
    leaf = _record(found, ledger)
    _must_be_allowed(asked, model, found.decision, _import_lines(found.decision, now))
    return leaf


def admit_release(recipe: Recipe, collected: Iterable[int], ledger: Ledger, now: datetime) -> list[int]:
    """Decide again about all that a release was made of; returns the new decisions' leaves, of the base last.

    `collected` are the decisions under which the answers were had; what was owed then is owed still, and so
    is what this run ever knew to be owed for the base and to who taught it. Raises GateRefused where a
    teacher may not be learned from today, and where the terms became stricter, or the base's record was lost,
    and nobody signed that off.
    """
    before = [ledger.leaf(index) for index in sorted(set(collected))]
    leaves = []
    for teacher, use in uses_of(recipe):
        if use not in TRAINS:
            continue
        of = _question(recipe, teacher, use, ledger)
        found = considered(of, ledger, now)
        wanted = (name_of(teacher), use)
        then = [leaf for leaf in before if (leaf.body["teacher"]["model"], leaf.body["use"]) == wanted]
        bodies = [leaf.body for leaf in then]
        stricter = _stricter(found.decision, bodies)
        found.body.update(
            at="release",
            collected_under=[leaf.index for leaf in then],
            obligations=all_owed(found.decision, bodies),
            stricter=stricter,
            signed_off_by=recipe.release.signed_off_by,
        )
        leaves.append(_record(found, ledger))
        _must_be_allowed(of.asked, teacher.model, found.decision, _recipe_lines(found.decision, now))
        if stricter and not recipe.release.signed_off_by:
            raise GateRefused(
                f"what is known of {teacher.model} has become stricter since its answers were collected",
                "; ".join(stricter),
                'see to that, then answer for it: [release] signed_off_by = "NAME, ROLE"',
            )
    base = _base_again(recipe, ledger, now)
    return leaves if base is None else [*leaves, base]


def admit_base(recipe: Recipe, ledger: Ledger, now: datetime) -> int | None:
    """Decide about the model that the student begins with, and who taught it, and record that; returns the
    decision's leaf, None where it begins with nobody else's weights.

    What the licence of its weights asks is owed. That licence may be unknown, and so may who taught it: that
    is said, and stops nothing. Raises GateRefused where one is known who may not be learned from.
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
    ]
    taught = [body for body in before if (body.get("upstream") or {}).get("teachers")]
    found = _base(recipe, ledger, now, taught[-1]["upstream"]["release"] if taught else "")
    if found is None:
        return None
    upstream = found.body.get("upstream") or {"teachers": [], "unknown": "it is no release"}
    lost = bool(taught) and not upstream["teachers"]
    why = f"who taught the base was known, and is not: {upstream['unknown']}"
    signed = recipe.release.signed_off_by
    more = {
        "at": "release",
        "obligations": all_owed(found.decision, before),
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
    found: Considered, recipe: Recipe, ledger: Ledger, now: datetime, more: Mapping[str, Any]
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
    return considered(_question(recipe, teacher, use, ledger), ledger, now).decision


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


def _question(recipe: Recipe, teacher: Teacher, use: Use, ledger: Ledger) -> Question:
    asked = asked_of(recipe, teacher, use, ledger.workspace)
    return Question(asked, teacher, teacher.terms, lineage_of(teacher, ledger))


def _base(recipe: Recipe, ledger: Ledger, now: datetime, was: str = "") -> Considered | None:
    """What is decided about the model that the student begins with, and its teachers. Declarations about
    these stand among those of the recipe's teachers. `was` is the release that it was, if it was one."""
    base = base_of(recipe)
    if base is None:
        return None
    lineage = lineage_of(base, ledger)
    if lineage is None and was:
        lineage = Lineage(was, "", "", False, "its record is there no more")
    asked = asked_of(recipe, base, "train_target", ledger.workspace)
    declared = [
        each for teacher in (recipe.teacher, *recipe.teachers) for each in teacher.terms if each.about
    ]
    return considered(Question(asked, base, declared, lineage, is_base=True), ledger, now)


def _record(found: Considered, ledger: Ledger) -> int:
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
    for owed in all_owed(decision, ()):
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
