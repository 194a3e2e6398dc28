"""Written permissions as their leaves have them: who signed them, and whether they cover what was decided."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from datetime import date
from typing import Any

from stillhouse.audit.trail import ALLOWS, Trail, permissions_of
from stillhouse.ledger.keys import signed_by
from stillhouse.terms.facts import Asked, Operator, Student
from stillhouse.terms.lineage import pasts_of
from stillhouse.terms.permissions import from_statement, to_sign, why_not
from stillhouse.terms.weighing import asked_of_past


def not_covered(trail: Trail, keys: Collection[bytes]) -> list[str]:
    """Where a decision that allows rests on a permission that is shown and does not cover it, by the rule
    that the gate itself goes by. `keys` are the public keys (32 bytes each) that this log had.

    A permission must cover the teacher itself, or, where the decision says that it was for one of those who
    taught the teacher, that one as the decision's record of them has it. What is decided for a release must
    hold for the name and the mode that it was released with.
    """
    found = []
    for index, decision in trail.decisions.items():
        body = decision.body
        if body["verdict"] not in ALLOWS:
            continue
        if not any(number in trail.permissions for number in permissions_of(body)):
            continue
        rests = f"the decision at leaf {index} rests on"
        try:
            asked = _asked(body["asked"])
            if trail.release is not None and index in trail.release.body["decisions"]:
                out = trail.release.body
                asked = replace(asked, student=replace(asked.student, name=out["name"], mode=out["mode"]))
            covers = _covers(body, asked)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found.append(f"{rests} permissions, and for whom cannot be read ({error})")
            continue
        for number, whom in covers:
            permission = trail.permissions.get(number)
            if permission is None:
                continue
            try:
                ended = trail.revoked.get(number)
                said = replace(
                    from_statement(permission.body["permission"]),
                    revoked=ended.index if ended is not None and ended.index < index else None,
                    fault=signature_fault(permission.body, keys),
                )
                on = date.fromisoformat(body["on"])
                late = (date.fromisoformat(decision.time[:10]) - on).days
                why = why_not(said, whom, on, further=0)
                if late not in (0, 1):  # 1 where midnight passed before it was recorded
                    why = f"it is dated {on}, and was recorded on {decision.time[:10]}"
            except (KeyError, TypeError, ValueError) as error:
                why = f"it cannot be read ({error})"
            if why:
                found.append(f"{rests} the permission at leaf {number}: {why}")
    return found


def _covers(body: Mapping[str, Any], asked: Asked) -> list[tuple[int, Asked]]:
    """Each permission that a decision rests on, with what was asked of those whom it is for.

    Raises ValueError where it is for nobody, or for one whom the record of the teacher's teachers lacks.
    """
    if "weighed" not in body:
        return [(number, asked) for number in permissions_of(body)]
    pasts: dict[tuple[str, ...], list[Asked]] = {}
    for past in pasts_of(body["upstream"]):
        theirs = asked_of_past(asked, past)
        pasts.setdefault((theirs.model, past.access, past.host, past.revision), []).append(theirs)
    found = [(number, asked) for number in body["teacher_permissions"]]
    for each in body["weighed"]:
        whom = pasts.get((each["model"], each["access"], each["host"], each["revision"]))
        if whom is None:
            raise ValueError(f"its record names no {each['model']}")
        found += [(number, theirs) for number in each["permissions"] for theirs in whom]
    if nobodys := {*permissions_of(body)} - {number for number, _ in found}:
        raise ValueError(f"leaf {min(nobodys)} is for nobody")
    return found


def signature_fault(body: Mapping[str, Any], keys: Collection[bytes]) -> str:
    """What is wrong with the signatures of a permission's record; empty where all hold."""
    message = to_sign(body["permission"])
    if not any(each["by"] == "workspace" for each in body["signatures"]):
        return "nobody signed its record"
    for each in body["signatures"]:
        public, signature = base64.b64decode(each["key"]), base64.b64decode(each["sig"])
        if each["by"] == "workspace" and public not in keys:
            return "its record was signed with a key that this log never had"
        if not signed_by(public, signature, message):
            return f"the signature of the {each['by']} does not hold"
    return ""


def _asked(said: Mapping[str, Any]) -> Asked:
    """What was asked of the gate; facts of the operator that the leaf leaves out are unknown."""
    known = {field.name: said[field.name] for field in fields(Asked) if field.name in said}
    operator = {name: value for name, value in (said.get("operator") or {}).items() if name in _OPERATOR}
    return Asked(**{**known, "student": Student(**said["student"]), "operator": Operator(**operator)})


_OPERATOR = frozenset(field.name for field in fields(Operator))
