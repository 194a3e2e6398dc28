"""What the holder of a key can see of its own account's standing, and how it appeals, also when stopped."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import orjson

from stillhouse.errors import LedgerError, StorageError, UsageError
from stillhouse.gateway import answers, proxy
from stillhouse.gateway.admin import BODY_BYTES
from stillhouse.gateway.answers import JSON, Receive, Scope, Send
from stillhouse.gateway.patience import Patience
from stillhouse.gateway.state import Gateway
from stillhouse.gateway.steps import CUSTOMER, LADDER, Steps, read_reasons, why
from stillhouse.gateway.store.changing import Conflict
from stillhouse.gateway.store.standings import Step
from stillhouse.gateway.watcher import Watcher
from stillhouse.guard import ladder
from stillhouse.guard.asked import Denied
from stillhouse.guard.config import Detection
from stillhouse.guard.ladder import Standing

STEPS = 20  # the newest that are told
FINDINGS = ("cluster", "dismiss")  # of the trail: they take nothing, and speak of other accounts


async def tell_standing(gateway: Gateway, path: str, scope: Scope, receive: Receive, send: Send) -> None:
    """GET the standing, or POST an appeal. Raises Denied, StoreDown."""
    appeals = path == ladder.APPEAL
    method = "POST" if appeals else "GET"
    if scope["method"] != method:
        allowed = ((b"allow", method.encode()),)
        raise Denied(405, "method_not_allowed", "another method is needed", headers=allowed)
    caller = await proxy.authorised(gateway, scope["headers"], reading=True, accepting=True)
    watching, account = gateway.watching, caller.account.id
    if watching is None or gateway.config.detection.mode == "off":
        raise Denied(404, "not_watched", "no account is watched here")
    if not watching.may_look(account):
        raise Denied(429, "rate_limit_exceeded", "look again in a second", headers=((b"retry-after", b"1"),))
    try:
        if appeals:
            await _appeal(gateway, watching, account, scope, receive)
        now, steps = await watching.ask(lambda held: _look(held, account))
    except (StorageError, LedgerError) as error:
        raise proxy.store_down() from error
    told = said(now, steps, gateway.config.detection)
    await answers.respond(send, 201 if appeals else 200, orjson.dumps(told), [JSON])


async def _appeal(gateway: Gateway, watching: Watcher, account: str, scope: Scope, receive: Receive) -> None:
    with closing(Patience()) as patience:
        seconds = gateway.config.server.head_seconds
        raw = await proxy.body_of(receive, scope["headers"], BODY_BYTES, seconds, patience)
    text = proxy.parsed(raw).get("text")
    if not isinstance(text, str):
        raise Denied(400, "invalid_value", "text must say what your requests are for", "text")
    try:
        await watching.ask(lambda held: held.appeal(account, text, gateway.wall()))
    except Conflict as error:
        raise Denied(409, "no_appeal_now", f"{error.what}: {error.why or 'see your standing'}") from error
    except UsageError as error:
        raise Denied(400, "invalid_value", f"{error.what}: {error.why}; {error.mend}", "text") from error


def _look(held: Steps, account: str) -> tuple[Standing, list[Step]]:
    return held.standings.standing(account), held.standings.steps(account, STEPS)


def said(now: Standing, steps: list[Step], settings: Detection) -> dict[str, Any]:
    """What a customer is told of its own account: every step with its reasons, what was appealed and what a
    person answered. Who that person is stays with the operator."""
    force = ladder.in_force(now, settings)
    return {
        "account": now.account,
        "standing": now.rung,
        "in_force": force != "observe" or now.rung == "observe",
        "effect": ladder.DOES[force],
        "code": now.code,
        "since": _stamp(now.since) if now.since else None,
        "declared_use": now.declared or None,
        "appeal": {
            "post": ladder.APPEAL,
            "open": bool(now.appeal),
            "contact": settings.contact or None,
        },
        "steps": [
            {
                "at": _stamp(step.at),
                "act": step.act,
                "by": step.who if step.who in (LADDER, CUSTOMER) else "a person",
                "from": step.was,
                "to": step.rung,
                "shadow": step.shadow,
                "code": step.code,
                "why": why(read_reasons(step)) or step.said,
            }
            for step in steps
            if step.act not in FINDINGS
        ],
    }


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
