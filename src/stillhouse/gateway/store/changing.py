"""One change of an organisation, an account or a key, and its entry in the log."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.gateway.store.rows import TABLE, Holder, Kind
from stillhouse.guard import config
from stillhouse.guard.accounts import Account, Key, Organisation, harms
from stillhouse.guard.orders import AccountChange, KeyChange, OrganisationChange
from stillhouse.ledger.database import Connection


class Conflict(UsageError):
    """What is there does not allow it."""


@dataclass(frozen=True, slots=True)
class Act:
    """Who does something, when (unix seconds) and why."""

    who: str
    at: float
    reason: str = ""


def change(db: Connection, act: Act, what: str, before: Holder, changed: Mapping[str, Any]) -> None:
    """Raises Conflict for what is closed, UsageError where a reason is missing."""
    refuse_ended(before)
    kind = _kind(before)
    was = {name: getattr(before, name) for name in changed}
    if harms(was, changed) and not act.reason:
        raise needs_reason(what)
    if all(was[name] == value for name, value in changed.items()):
        return
    columns = ", ".join(f"{name} = ?" for name in changed)
    db.execute(
        f"UPDATE {TABLE[kind]} SET {columns} WHERE id = ?",
        [*(_stored(value) for value in changed.values()), before.id],
    )
    log(db, act, what, f"{kind}:{before.id}", was, changed)


def _kind(holder: Holder) -> Kind:
    if isinstance(holder, Organisation):
        return "organisation"
    return "account" if isinstance(holder, Account) else "key"


def refuse_ended(holder: Holder) -> None:
    """Raises Conflict where it is closed or revoked, which is for ever."""
    if holder.state == "closed" or (isinstance(holder, Key) and holder.revoked is not None):
        raise Conflict(
            f"the {_kind(holder)} {holder.id} is {'revoked' if isinstance(holder, Key) else 'closed'}",
            holder.why or "it was ended for ever",
            "add a new one",
        )


def needs_reason(what: str) -> UsageError:
    return UsageError(
        f"to {what} needs a reason", "it takes something from whom it concerns", "say why, it is recorded"
    )


def changed_by(order: OrganisationChange | AccountChange | KeyChange) -> dict[str, Any]:
    """The fields that the order gives. What cannot be null there is left as it is where it is null."""
    given: dict[str, Any] = {name: getattr(order, name) for name in order.model_fields_set - {"reason"}}
    given = {n: v for n, v in sorted(given.items()) if v is not None or n in ("budget", "expires")}
    if "limits" in given:
        given["limits"] = given_limits(given["limits"])
    if "models" in given:
        given["models"] = tuple(given["models"])
    return given


def given_limits(limits: config.Limits) -> dict[str, int]:
    return limits.model_dump(exclude_none=True)


def _stored(value: Any) -> Any:
    if isinstance(value, Mapping | tuple):
        return json_of(value)
    return int(value) if isinstance(value, bool) else value


def json_of(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def log(
    db: Connection, act: Act, what: str, subject: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    db.execute(
        "INSERT INTO change (at, who, what, subject, reason, before, after) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (act.at, act.who, what, subject, act.reason, json_of(before), json_of(after)),
    )


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(8)}"
