"""What an operator does here: a form, a reason, a look at what will change, and then the act.

The acts are those of the admin API; here are only their forms. An act that takes or gives is shown with its
differences before it is done. A form that makes something new is taken once.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import ValidationError
from starlette.responses import RedirectResponse, Response

from stillhouse.errors import StillhouseError
from stillhouse.gateway.console.forms import Field, Wrong, faults, fields_of, order_of
from stillhouse.gateway.console.shown import differences, money
from stillhouse.gateway.console.visit import Visit, page, problem, status_of
from stillhouse.gateway.operations import BY_NAME, Desk, NewSecret
from stillhouse.gateway.store.changing import Act
from stillhouse.gateway.store.register import Register
from stillhouse.gateway.store.rows import ONE, Holder, Kind
from stillhouse.guard import orders

ONCE = 1000  # forms that are remembered as taken


@dataclass(frozen=True, slots=True)
class Verb:
    """What can be done to a holder: an operation of the admin API. `looks`: its differences are shown before
    it is done; `grave`: it needs a tick, for it is for ever; `once`: it makes something new."""

    operation: str
    title: str
    says: str
    button: str
    looks: bool = False
    grave: bool = False
    once: bool = False


_LIMITS = "An empty field is no limit of its own: the tier’s holds. It holds for requests from now on."
VERBS: Mapping[Kind, Mapping[str, Verb]] = {
    "account": {
        "block": Verb("block_account", "Block", "Requests of all its keys are refused at once.", "Block"),
        "unblock": Verb("unblock_account", "Unblock", "Its keys work again at once.", "Unblock"),
        "close": Verb(
            "close_account", "Close", "It can never be opened again.", "Close for ever", grave=True
        ),
        "change": Verb("change_account", "Change limits and budget of", _LIMITS, "Look at it", looks=True),
        "pay": Verb("pay_in", "Pay in for", "Each reference counts once.", "Look at it", looks=True),
        "accept": Verb(
            "accept_terms", "Accept the terms for", "As when it signed on paper.", "Record the acceptance"
        ),
        "training": Verb(
            "agree_training",
            "Consent to training of",
            "Models may then be trained on its texts, until it takes that back. Record what it said.",
            "Record the consent",
        ),
        "withdraw": Verb(
            "withdraw_training",
            "Take back the consent to training of",
            "Nothing of it is taken for training from now on. What was kept is erased by another order.",
            "Record it",
        ),
        "key": Verb(
            "add_key", "New key of", "Its secret is shown once, on the next page.", "Make it", once=True
        ),
    },
    "organisation": {
        "block": Verb(
            "block_organisation", "Block", "Requests of all its accounts are refused at once.", "Block"
        ),
        "unblock": Verb("unblock_organisation", "Unblock", "Its accounts work again at once.", "Unblock"),
        "close": Verb(
            "close_organisation", "Close", "It can never be opened again.", "Close for ever", grave=True
        ),
        "change": Verb(
            "change_organisation",
            "Change limits of",
            "They are over all of its accounts. An empty field is no limit.",
            "Look at it",
            looks=True,
        ),
    },
    "key": {
        "block": Verb("block_key", "Block", "Requests with it are refused at once.", "Block"),
        "unblock": Verb("unblock_key", "Unblock", "It works again at once.", "Unblock"),
        "revoke": Verb("revoke_key", "Revoke", "It never works again.", "Revoke for ever", grave=True),
        "change": Verb("change_key", "Change", _LIMITS, "Look at it", looks=True),
        "rotate": Verb(
            "rotate_key",
            "New secret for",
            "It is shown once, on the next page. The old one goes on for a while.",
            "Make it",
            once=True,
        ),
    },
}
NEW: Mapping[Kind, Verb] = {
    "account": Verb("add_account", "New account", "Its keys come after it.", "Add it", once=True),
    "organisation": Verb(
        "add_organisation", "New organisation", "Its accounts come after it.", "Add it", once=True
    ),
}


async def act(visit: Visit) -> Response:
    """Show the form of an act, or do it."""
    kind, verb_name = _kind(visit), visit.request.path_params["verb"]
    verb = VERBS[kind].get(verb_name)
    if verb is None:
        return problem(visit, 404, "There is no such act.")
    id = visit.request.path_params["id"]
    holder = await visit.gateway.accounts.ask(lambda register: _holder(register, kind, id))
    return await _form_or_act(visit, kind, verb_name, verb, holder)


async def add(visit: Visit) -> Response:
    kind = _kind(visit)
    return await _form_or_act(visit, kind, "new", NEW[kind], None)


async def _form_or_act(visit: Visit, kind: Kind, name: str, verb: Verb, holder: Holder | None) -> Response:
    config = visit.gateway.config
    fields = fields_of(kind, name, holder, config, visit.asked("organisation", 64))
    if visit.request.method == "GET":
        return _form(visit, kind, verb, holder, fields)
    given = {field.name: visit.form.get(field.name, "").strip() for field in fields}
    fields = [field.with_value(given[field.name]) for field in fields]
    reason = visit.form.get("reason", "").strip()
    operation = BY_NAME[verb.operation]
    try:
        orders.Because(reason=reason)
        if holder is not None and visit.form.get("seen") != _seen(holder):
            told = ["It was changed while you looked at it: this is how it is now."]
            return _form(visit, kind, verb, holder, fields_of(kind, name, holder, config), told, reason, 409)
        if verb.grave and visit.form.get("sure") != "yes":
            raise Wrong("sure", "tick that you are sure: it is for ever")
        assert operation.order is not None
        tree = order_of(name, given, holder, config)
        if "reason" in operation.order.model_fields:
            tree["reason"] = reason
        order = operation.order.model_validate(tree)
    except (ValidationError, Wrong) as error:
        return _form(visit, kind, verb, holder, fields, faults(error, fields), reason, 422)
    if verb.looks and visit.form.get("sure") != "yes":
        assert holder is not None
        return _look(visit, kind, verb, holder, fields, order, reason)
    if verb.once and not _first(visit):
        return problem(
            visit, 409, "This was done already.", "The same form was sent twice.", "See the changes."
        )
    try:
        return await _done(visit, kind, name, verb, holder, order, reason)
    except StillhouseError as error:
        told = [": ".join(part for part in (error.what, error.why) if part)]
        return _form(visit, kind, verb, holder, fields, told, reason, status_of(error))


async def _done(
    visit: Visit, kind: Kind, name: str, verb: Verb, holder: Holder | None, order: Any, reason: str
) -> Response:
    act = Act(visit.session.operator, visit.at, reason)
    gateway = visit.gateway
    id = "" if holder is None else holder.id
    run = BY_NAME[verb.operation].run
    made = await gateway.accounts.order(
        lambda register: run(
            Desk(register, gateway.config, gateway.pepper, gateway.record.erase, gateway.forget),
            id,
            order,
            act,
        )
    )
    visit.console.log("console: act", operator=act.who, act=verb.operation, subject=f"{kind}:{id or made.id}")
    if isinstance(made, NewSecret):
        return page(visit, "secret.html", made=made, rotated=name == "rotate")
    done = "add" if name == "new" else name
    return RedirectResponse(f"{_home(kind, holder or made)}?done={done}", 303)


def _form(
    visit: Visit,
    kind: Kind,
    verb: Verb,
    holder: Holder | None,
    fields: list[Field],
    told: list[str] = [],  # noqa: B006
    reason: str = "",
    status: int = 200,
) -> Response:
    return page(
        visit,
        "act.html",
        status,
        kind=kind,
        verb=verb,
        holder=holder,
        fields=fields,
        faults=told,
        reason=reason,
        seen=_seen(holder) if holder else "",
        once=secrets.token_urlsafe(12) if verb.once else "",
        home=f"/admin/{kind}s" if holder is None else _home(kind, holder),
    )


def _look(
    visit: Visit, kind: Kind, verb: Verb, holder: Holder, fields: list[Field], order: Any, reason: str
) -> Response:
    """What will change, before it does."""
    if verb.operation == "pay_in":
        paid: int = holder.paid  # type: ignore[union-attr]
        rows = [("paid in", money(paid), money(paid + order.billionths))]
    else:
        after = {name: getattr(order, name) for name in order.model_fields_set - {"reason"}}
        if "limits" in after:
            after["limits"] = order.limits.model_dump(exclude_none=True)
        rows = differences({name: getattr(holder, name) for name in after}, after)
    if not rows:
        return _form(visit, kind, verb, holder, fields, ["Nothing is changed yet."], reason, 422)
    return page(
        visit,
        "look.html",
        kind=kind,
        verb=verb,
        holder=holder,
        fields=fields,
        reason=reason,
        rows=rows,
        seen=_seen(holder),
        home=_home(kind, holder),
    )


def _first(visit: Visit) -> bool:
    """Whether this form was not taken before."""
    once, done = visit.form.get("once", "")[:64], visit.console.done
    if not once or once in done:
        return False
    done[once] = None
    while len(done) > ONCE:
        del done[next(iter(done))]
    return True


def _holder(register: Register, kind: Kind, id: str) -> Holder:
    match kind:
        case "organisation":
            return register.organisation(id)
        case "account":
            return register.account(id)
        case "key":
            return register.key(id)


def _kind(visit: Visit) -> Kind:
    """Of the path's second part: `/admin/accounts/…`."""
    word = visit.request.url.path.split("/")[2]
    return next(kind for kind in ONE if word == f"{kind}s")


def _seen(holder: Holder) -> str:
    """Which state of it the form was made from."""
    return sha256(repr(holder).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _home(kind: Kind, holder: Any) -> str:
    return f"/admin/accounts/{holder.account}" if kind == "key" else f"/admin/{kind}s/{holder.id}"
