"""One request from its key to its settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stillhouse.gateway import answers, cascading, logs
from stillhouse.gateway.answers import Receive, Scope, Send
from stillhouse.gateway.connections import CLIENT, Client
from stillhouse.gateway.exchange import Exchange, object_of, own_headers
from stillhouse.gateway.marking import Marking, Request, marking_of
from stillhouse.gateway.patience import Patience
from stillhouse.gateway.state import Gateway, Served, Trail
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.guard import accounts as who
from stillhouse.guard import breadth, ladder, leaks, subjects
from stillhouse.guard.accounts import Caller
from stillhouse.guard.answers import Cut
from stillhouse.guard.asked import Asked, Denied, Route, read
from stillhouse.guard.config import Limits, Tier
from stillhouse.guard.events import Event
from stillhouse.guard.limits import Refused, Step, Used, Wanted

LONG = 64 << 10  # bytes of a body that is only read of whoever has something left
LEASE = 60.0  # seconds past the longest answer after which a reservation is taken for orphaned


async def answer(gateway: Gateway, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request, count it and write it down, however it ends."""
    began, at = gateway.clock(), gateway.wall()
    trail, patience = Trail(route), Patience()
    gateway.metrics.began()
    try:
        await _answer(gateway, trail, scope, receive, send, patience, began, at)
    except Denied as denied:
        if trail.ended != "upstream_cut":
            trail.ended = "refused"
        trail.reason, trail.status = denied.code, denied.status
        if not trail.began:
            await answers.deny(send, denied, own_headers(trail))
    except StoreDown:
        trail.ended, trail.reason, trail.status = "refused", "store_down", 503
        if not trail.began:
            await answers.deny(send, store_down(), own_headers(trail))
    except Exception as error:
        # Its kind and place, and not its text, in which words of the request could stand
        trail.ended, trail.reason, trail.status = "failed", "internal", 500
        logs.fault(error, trail.id)
        if not trail.began:
            await answers.deny(send, answers.INTERNAL, own_headers(trail))
    finally:
        patience.close()
        event = event_of(trail, at, gateway.clock() - began)
        if trail.caller is not None:  # else whoever has no key could fill the disk; the figures tell of them
            gateway.record.put(event)
        gateway.metrics.ended(event, trail.added)
        logs.ended(event)


async def _answer(
    gateway: Gateway,
    trail: Trail,
    scope: Scope,
    receive: Receive,
    send: Send,
    patience: Patience,
    began: float,
    at: float,
) -> None:
    headers = scope["headers"]
    caller = await _admitted(gateway, trail, headers)
    tier = _tier_of(gateway, caller)
    if _is_long(headers):
        await _refuse_full(gateway, trail, caller, tier)
    server = gateway.config.server
    raw = await body_of(receive, headers, server.body_bytes, server.head_seconds, patience)
    try:
        served, asked, decision = _understood(gateway, trail, caller, tier, raw)
    except Denied:
        await _charge_refused(gateway, trail, caller, tier)
        raise
    trail.changed = decision.changed
    if not gateway.record.healthy():
        raise StoreDown("events cannot be written down", "their queue is full", "see the gateway's log")
    cut = Cut(decision.filter) if decision.filter is not None else None
    exchange = Exchange(gateway, trail, served, asked, cut, began, patience)
    if caller.account.consent and gateway.config.record.text == "with_consent":
        exchange.kept = []
    marking = marking_of(gateway.config.detection, served, trail, decision)
    granted = await gateway.counts.reserve(_wanted(gateway, trail, caller, served, tier, marking))
    if isinstance(granted, Refused):
        raise answers.over_limit(granted)
    client: Client = scope[CLIENT]
    client.work = task = asyncio.current_task()
    span = None
    try:
        if client.left:
            raise asyncio.CancelledError
        exchange.reserved = granted.cost
        exchange.headers = [*own_headers(trail), *answers.room_headers(granted.room)]
        exchange.parent, span = gateway.traces.began(_header(headers, b"traceparent"))
        await cascading.run(
            served.cascade,
            Request(gateway, trail, served, asked, exchange, patience, decision.body, headers, send, marking),
        )
    except asyncio.CancelledError:
        if not client.left:
            trail.reason = "shutdown"
            raise
        trail.ended = "client_left"
        if task is not None:
            task.uncancel()
    finally:
        client.work = None
        await exchange.settle()
        if span is not None:
            gateway.traces.ended(span, event_of(trail, at, gateway.clock() - began))
        if exchange.kept is not None:
            gateway.record.put_text(trail.id, caller.account, raw, b"".join(exchange.kept))
        if trail.began and trail.status < 400:
            _look_at(gateway, trail, caller, at, raw)


async def authorised(
    gateway: Gateway,
    headers: Sequence[tuple[bytes, bytes]],
    reading: bool = False,
    accepting: bool = False,
) -> Caller:
    """Whose key the request bears. `reading` says that nothing is spent, so that a key known of late will do
    while the store is down; `accepting` that the terms are not yet to have been accepted.

    Raises Denied, StoreDown.
    """
    secret = answers.bearer(headers)
    digest = who.digest_of(gateway.pepper, secret.decode("latin-1")) if secret else None
    caller = await gateway.accounts.find(digest, costs=not reading) if digest is not None else None
    if caller is None:
        raise Denied(
            401,
            "invalid_api_key",
            "no valid API key was given; send it as `Authorization: Bearer KEY`",
            kind="authentication_error",
            headers=((b"www-authenticate", b"Bearer"),),
        )
    terms = gateway.config.terms
    version = terms.version if terms is not None else None
    must = terms is not None and terms.must_accept and not accepting
    reason = who.standing(caller, gateway.wall(), version, must)
    if reason:
        raise Denied(403, reason, who.STANDINGS[reason], kind="permission_error")
    return caller


async def _admitted(gateway: Gateway, trail: Trail, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
    """Who asks, and what is taken from its account. Raises Denied, also for an account that was stopped."""
    caller = await authorised(gateway, headers)
    if gateway.watching is not None:
        trail.standing = standing = gateway.watching.in_force(caller.account.id)
        if standing is not None and standing.rung == "kill":
            raise ladder.stopped(standing, gateway.config.detection.contact)
    trail.caller = caller
    return caller


def _header(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)


def _tier_of(gateway: Gateway, caller: Caller) -> Tier:
    tier = gateway.config.tiers.get(caller.account.tier)
    if tier is None:
        raise Denied(403, "no_such_tier", "this account's tier is not served here", kind="permission_error")
    return tier


def _look_at(gateway: Gateway, trail: Trail, caller: Caller, at: float, raw: bytes) -> None:
    if gateway.watching is not None:
        gateway.watching.put(caller.account.id, trail.route, raw, trail.used[1], at)


async def body_of(
    receive: Receive, headers: Sequence[tuple[bytes, bytes]], most: int, seconds: float, patience: Patience
) -> bytes:
    """The request's body. Raises Denied for more than `most` bytes, and for what takes longer than that."""
    for name, value in headers:
        if name == b"content-length" and int(value) > most:
            raise _too_long(most)
    parts: list[bytes] = []
    size = 0
    try:
        with patience.within(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Denied(499, "client_left", "the client left in the middle of its request")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise _too_long(most)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        late = f"the request took longer than {seconds:g} s to arrive"
        raise Denied(408, "request_timeout", late) from None


def _too_long(most: int) -> Denied:
    return Denied(413, "request_too_large", f"the request is longer than {most:,} bytes")


def parsed(raw: bytes) -> dict[str, Any]:
    told = object_of(raw)
    if told is None:
        raise Denied(400, "invalid_json", "the request's body is no JSON object")
    return told


def _is_long(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Also where its length is not told."""
    return next((int(value) > LONG for name, value in headers if name == b"content-length"), True)


async def _refuse_full(gateway: Gateway, trail: Trail, caller: Caller, tier: Tier) -> None:
    """Else whoever has nothing left could have long bodies read and parsed without end. Raises Denied,
    StoreDown."""
    wanted = replace(_of_no_model(trail, caller, tier), input_tokens=1)
    if all(served.steps for served in gateway.models.values()):
        wanted = replace(wanted, payer=f"account:{caller.account.id}", steps=(Step(0, 1, 1),))
    refused = await gateway.counts.full(wanted)
    if refused is not None:
        raise answers.over_limit(refused)


async def _charge_refused(gateway: Gateway, trail: Trail, caller: Caller, tier: Tier) -> None:
    """A request and no tokens, for what was read and then refused: else whoever has a key could have bodies
    read and refusals written down without end. Raises Denied, StoreDown."""
    granted = await gateway.counts.reserve(_of_no_model(trail, caller, tier))
    if isinstance(granted, Refused):
        raise answers.over_limit(granted)
    await gateway.counts.settle(trail.id, Used(0, 0))


def _of_no_model(trail: Trail, caller: Caller, tier: Tier) -> Wanted:
    """A request of which nothing is known but whose it is."""
    limited = subjects.subjects_of(caller.organisation, caller.account, caller.key, tier, "", Limits())
    return Wanted(trail.id, limited, 0, 0, LEASE)


def _understood(
    gateway: Gateway, trail: Trail, caller: Caller, tier: Tier, raw: bytes
) -> tuple[Served, Asked, leaks.Passed]:
    """Which model is asked, for how much, and what of it may be sent on. Raises Denied."""
    body = parsed(raw)
    breadth.check(body)
    served = _served(gateway, caller, tier, body)
    trail.model = served.config.name
    trail.asked = read(trail.route, body, len(raw), served.config)
    sent: Mapping[str, Any] = body
    rules, withheld = tier.leaks, False
    if trail.standing is not None and ladder.takes(trail.standing.rung, "withhold"):
        rules, sent = ladder.stricter(rules), ladder.without_logprobs(trail.route, body)
        withheld = sent is not body
    decision = leaks.decide(trail.route, sent, rules)
    if isinstance(decision, leaks.Refusal):
        raise Denied(decision.status, decision.code, decision.message, decision.param)
    if withheld:
        decision = replace(decision, changed=("logprobs:withheld", *decision.changed))
    return served, trail.asked, decision


def _served(gateway: Gateway, caller: Caller, tier: Tier, body: Mapping[str, Any]) -> Served:
    name = body.get("model")
    served = gateway.models.get(name) if isinstance(name, str) else None
    if served is None or not who.may_ask(caller, tier, served.config.name):
        raise Denied(404, "model_not_found", "there is no such model for this key", "model")
    return served


def _wanted(
    gateway: Gateway, trail: Trail, caller: Caller, served: Served, tier: Tier, marking: Marking | None
) -> Wanted:
    asked = trail.asked
    assert asked is not None
    limited = subjects.subjects_of(
        caller.organisation, caller.account, caller.key, tier, served.config.name, served.config.limits
    )
    if trail.standing is not None and ladder.takes(trail.standing.rung, "throttle"):
        limited = ladder.slowed(limited, gateway.config.detection)
    seconds = max(each.config.first_byte_seconds + each.config.answer_seconds for each in served.behind)
    asked_of = 1 if marking is None or not marking.customer_pays else marking.answers
    if served.cascade is not None:  # each of two may answer
        asked_of += 1
        seconds += max(
            each.config.first_byte_seconds + each.config.answer_seconds for each in served.cascade.behind
        )
    return Wanted(
        trail.id,
        limited,
        asked_of * asked.input_tokens,
        asked_of * asked.output_tokens,
        seconds + LEASE,
        f"account:{caller.account.id}",
        served.schedule,
        served.steps,
    )


def store_down() -> Denied:
    message = "what has been used cannot be counted at present, so nothing is given; try again shortly"
    return Denied(503, "store_down", message, kind="server_error", headers=((b"retry-after", b"5"),))


def event_of(trail: Trail, at: float, seconds: float) -> Event:
    caller, asked = trail.caller, trail.asked
    return Event(
        id=trail.id,
        at=at,
        organisation=(caller.account.organisation or "") if caller else "",
        account=caller.account.id if caller else "",
        key=caller.key.id if caller else "",
        model=trail.model,
        upstream=trail.behind.url if trail.behind else "",
        route=f"/v1/{trail.route}",
        stream=bool(asked and asked.stream),
        status=trail.status,
        ended=trail.ended,
        reason=trail.reason,
        input_tokens=trail.used[0],
        output_tokens=trail.used[1],
        counted=trail.counted,
        cost=trail.cost,
        first_byte=trail.first_byte,
        seconds=seconds,
        choices=asked.choices if asked else 0,
        changed=(*trail.changed, *trail.marks),
    )
