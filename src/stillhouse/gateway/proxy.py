"""One request from its key to its settlement."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from stillhouse.gateway import answers, upstream
from stillhouse.gateway.answers import Headers, Receive, Scope, Send
from stillhouse.gateway.store.counts import Counts, StoreDown
from stillhouse.gateway.stream import Passing, usage_of
from stillhouse.gateway.upstream import Behind, NoneAnswers
from stillhouse.guard import accounts as who
from stillhouse.guard import leaks, subjects
from stillhouse.guard.accounts import Caller
from stillhouse.guard.answers import Cut
from stillhouse.guard.asked import LENGTHS, Asked, Denied, Route, read
from stillhouse.guard.config import Guard, Model, Server, Tier
from stillhouse.guard.events import Event
from stillhouse.guard.limits import Refused, Step, Used, Wanted

if TYPE_CHECKING:
    from stillhouse.gateway.metrics import Metrics
    from stillhouse.gateway.record import Record
    from stillhouse.gateway.store.accounts import Accounts

LONGEST_ANSWER = 64 << 20
LEASE = 60.0  # seconds past the longest answer after which a reservation is taken for orphaned
LEAKS_OF: Mapping[Route, leaks.Route] = {
    "chat/completions": "chat",
    "completions": "completions",
    "embeddings": "embeddings",
    "responses": "responses",
}
PASSED_ON = ("traceparent", "tracestate", "accept-language", "openai-beta")
PASSED_BACK = ("content-type", "retry-after", "openai-processing-ms", "openai-version")
OURS = frozenset({401, 402, 403})  # statuses that speak of the gateway's own account at the upstream


@dataclass(frozen=True, slots=True)
class Served:
    """A model with the servers behind it and its price."""

    config: Model
    behind: Sequence[Behind]
    schedule: str
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Gateway:
    """All that answering needs. A reload makes another one; requests under way keep theirs."""

    config: Guard
    models: Mapping[str, Served]
    accounts: Accounts
    pepper: bytes
    counts: Counts
    record: Record
    metrics: Metrics
    session: aiohttp.ClientSession
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass(slots=True)
class Trail:
    """What is known so far of one request."""

    route: Route
    id: str = field(default_factory=lambda: "req_" + secrets.token_hex(12))
    caller: Caller | None = None
    model: str = ""
    asked: Asked | None = None
    behind: Behind | None = None
    status: int = 0
    ended: str = "failed"
    reason: str = ""
    used: tuple[int, int] = (0, 0)
    counted: str = "told"
    cost: int = 0
    first_byte: float | None = None
    changed: tuple[str, ...] = ()
    began: bool = False  # the client was sent a first byte


async def answer(gateway: Gateway, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request, count it and write it down, however it ends."""
    began, at = gateway.clock(), gateway.wall()
    trail = Trail(route)
    gateway.metrics.began()
    try:
        await _answer(gateway, trail, scope, receive, send, began)
    except Denied as denied:
        trail.ended, trail.reason, trail.status = "refused", denied.code, denied.status
        if not trail.began:
            await answers.deny(send, denied, _own_headers(trail))
    except StoreDown:
        trail.ended, trail.reason, trail.status = "refused", "store_down", 503
        if not trail.began:
            await answers.deny(send, store_down(), _own_headers(trail))
    finally:
        event = _event(trail, at, gateway.clock() - began)
        gateway.record.put(event)
        gateway.metrics.ended(event)


async def _answer(
    gateway: Gateway, trail: Trail, scope: Scope, receive: Receive, send: Send, began: float
) -> None:
    headers = scope["headers"]
    caller = trail.caller = await authorised(gateway, headers)
    raw = await body_of(receive, headers, gateway.config.server)
    body = parsed(raw)
    served = _served(gateway, caller, body)
    trail.model = served.config.name
    tier = gateway.config.tiers[caller.account.tier]
    asked = trail.asked = read(trail.route, body, len(raw), served.config)
    decision = leaks.decide(LEAKS_OF[trail.route], body, tier.leaks)
    if isinstance(decision, leaks.Refusal):
        raise Denied(decision.status, decision.code, decision.message, decision.param)
    trail.changed = decision.changed
    if not gateway.record.healthy():
        raise StoreDown("events cannot be written down", "their queue is full", "see the gateway's log")
    granted = await gateway.counts.reserve(_wanted(trail, caller, served, tier))
    if isinstance(granted, Refused):
        raise answers.over_limit(granted)
    exchange = _Exchange(gateway, trail, served, asked, decision.filter and Cut(decision.filter), began)
    exchange.headers = [*_own_headers(trail), *answers.granted_headers(granted)]
    watch = asyncio.create_task(_leave(receive, exchange, asyncio.current_task()))
    try:
        await exchange.run(decision.body, headers, send)
    except asyncio.CancelledError:
        trail.ended = "client_left"
        if not exchange.left:
            raise
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
    finally:
        watch.cancel()
        await exchange.settle()


async def _leave(receive: Receive, exchange: _Exchange, work: asyncio.Task[None] | None) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.left = True
    if work is not None:
        work.cancel()


class _Exchange:
    """The part of a request that is sent on."""

    def __init__(
        self,
        gateway: Gateway,
        trail: Trail,
        served: Served,
        asked: Asked,
        cut: Cut | None,
        began: float,
    ) -> None:
        self.left = False
        self.headers: Headers = []
        self._gateway = gateway
        self._trail = trail
        self._served = served
        self._asked = asked
        self._cut = cut
        self._began = began
        self._sent = False
        self._events: int | None = None
        self._told: tuple[int, int] | None = None
        self._settled = False

    async def run(self, body: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]], send: Send) -> None:
        gateway, trail = self._gateway, self._trail
        passed = {name: value for name, value in _texts(headers) if name in PASSED_ON}
        passed |= {"content-type": "application/json", "x-request-id": trail.id}
        self._sent = True
        try:
            behind, response = await upstream.send(
                gateway.session,
                self._served.behind,
                trail.route,
                lambda behind: _body(body, self._asked, behind, trail.route),
                passed,
                gateway.clock,
            )
        except NoneAnswers as error:
            self._sent = False
            message = f"no server of {trail.model} can be reached"
            raise Denied(503, "upstream_unreachable", message, kind="server_error") from error
        except TimeoutError as error:
            message = f"the server of {trail.model} did not answer in time"
            raise Denied(504, "upstream_timeout", message, kind="server_error") from error
        trail.behind = behind
        try:
            await self._pass(response, send)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            trail.ended, trail.reason = "upstream_cut", type(error).__name__
            behind.failed(gateway.clock())
            if not trail.began:
                message = f"the server of {trail.model} broke off its answer"
                raise Denied(502, "upstream_cut", message, kind="server_error") from error
            await self._break_off(send)
        finally:
            response.close() if trail.ended != "whole" else response.release()

    async def _pass(self, response: aiohttp.ClientResponse, send: Send) -> None:
        trail = self._trail
        status = trail.status = response.status
        if status in OURS:
            trail.reason = f"upstream_{status}"
            message = f"the server of {trail.model} does not serve this gateway at present"
            raise Denied(502, "upstream_refused", message, kind="server_error")
        headers = self.headers
        for name in PASSED_BACK:
            value = response.headers.get(name)
            if value is not None:
                headers.append((name.encode(), value.encode("latin-1", "replace")))
        theirs = response.headers.get("x-request-id")
        if theirs is not None and theirs != trail.id:
            headers.append((b"x-upstream-request-id", theirs.encode("latin-1", "replace")))
        streamed = self._asked.stream and response.content_type == "text/event-stream"
        await (self._stream(response, send) if streamed else self._whole(response, send))

    async def _whole(self, response: aiohttp.ClientResponse, send: Send) -> None:
        trail = self._trail
        parts = []
        size = 0
        async with asyncio.timeout(None) as deadline:
            async for part in _heard(response, trail.behind, deadline):
                size += len(part)
                if size > LONGEST_ANSWER:
                    raise aiohttp.ClientPayloadError("the answer is too long")
                parts.append(part)
        data = b"".join(parts)
        trail.first_byte = self._gateway.clock() - self._began
        told = _object(data)
        if response.status < 400:
            if told is None:
                raise aiohttp.ClientPayloadError("the answer is no JSON")
            self._told = usage_of(told)
            cut = self._cut
            if cut is not None and cut.concerns(data) and cut.apply(told):
                data = orjson.dumps(told)
                trail.changed += tuple(sorted(cut.changed))
                self.headers = [each for each in self.headers if each[0] != b"x-stillhouse-changed"]
                self.headers.append(changed_header(trail))
        else:
            self._told = (0, 0)
        trail.ended = "whole"
        await self.settle()
        trail.began = True
        await answers.respond(send, response.status, data, self.headers)

    async def _stream(self, response: aiohttp.ClientResponse, send: Send) -> None:
        trail, gateway = self._trail, self._gateway
        passing = Passing(strip=not self._asked.usage_wanted, cut=self._cut)
        self.headers.append((b"cache-control", b"no-cache"))
        await send({"type": "http.response.start", "status": response.status, "headers": self.headers})
        trail.began = True
        async with asyncio.timeout(None) as deadline:
            async for chunk in _heard(response, trail.behind, deadline):
                if trail.first_byte is None:
                    trail.first_byte = gateway.clock() - self._began
                out = passing.feed(chunk)
                self._events, self._told = passing.events, passing.usage
                if passing.whole and not self._settled:
                    trail.ended = "whole"
                    await self.settle()
                if out:
                    await send({"type": "http.response.body", "body": out, "more_body": True})
        if self._cut is not None:
            trail.changed += tuple(sorted(self._cut.changed))
        if not passing.whole or passing.failed:
            raise aiohttp.ClientPayloadError("the stream ended early")
        await send({"type": "http.response.body", "body": passing.end()})

    async def _break_off(self, send: Send) -> None:
        """Say in the stream that it ends here: a client must not take the part for the whole."""
        denied = Denied(502, "upstream_cut", "the server broke off its answer", kind="server_error")
        told = b"data: " + orjson.dumps(denied.body()) + b"\n\n"
        await send({"type": "http.response.body", "body": told})

    async def settle(self) -> None:
        """Count what was used, once: as told, else what it can have been at most by what is known."""
        if self._settled:
            return
        self._settled = True
        trail, asked, behind = self._trail, self._asked, self._trail.behind
        used = Used(0, 0, sent=False)
        if self._sent:
            if self._told is not None:
                if behind is not None and self._events is not None:
                    behind.learn(asked.input_tokens, self._told, self._events)
                used = Used(*self._told)
            else:
                trail.counted = "bound"
                used = _bound(asked, behind, self._events)
        trail.used = used.input_tokens, used.output_tokens
        trail.cost = await self._gateway.counts.settle(trail.id, used)


async def _heard(
    response: aiohttp.ClientResponse, behind: Behind | None, deadline: asyncio.Timeout
) -> AsyncIterator[bytes]:
    """What arrives of an answer, as it arrives; `deadline` ends a silence or an answer that is too long."""
    assert behind is not None
    now = asyncio.get_running_loop().time
    silent, end = behind.config.silent_seconds, now() + behind.config.answer_seconds
    deadline.reschedule(min(now() + silent, end))
    async for part in response.content.iter_any():
        deadline.reschedule(min(now() + silent, end))
        yield part


def _bound(asked: Asked, behind: Behind | None, events: int | None) -> Used:
    """Of a stream that broke off: as many tokens for a byte and for an event as whole ones of this server
    showed at most. Of what was never told, all that was reserved."""
    if behind is None or events is None or not behind.most_output:
        return Used(asked.input_tokens, asked.output_tokens)
    taken = min(asked.input_tokens, -int(-asked.input_tokens * behind.most_input // 1))
    given = min(asked.output_tokens, -int(-events * behind.most_output // 1))
    return Used(taken, given)


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
    secret = b""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, secret = value.partition(b" ")
            if scheme.lower() != b"bearer":
                secret = b""
            break
    digest = who.digest_of(gateway.pepper, secret.strip().decode("latin-1")) if secret else None
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


async def body_of(receive: Receive, headers: Sequence[tuple[bytes, bytes]], server: Server) -> bytes:
    """The request's body. Raises Denied for one that is too long or takes too long."""
    most = server.body_bytes
    for name, value in headers:
        if name == b"content-length" and int(value) > most:
            raise _too_long(most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(server.head_seconds):
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
        late = f"the request took longer than {server.head_seconds:g} s to arrive"
        raise Denied(408, "request_timeout", late) from None


def _too_long(most: int) -> Denied:
    return Denied(413, "request_too_large", f"the request is longer than {most:,} bytes")


def parsed(raw: bytes) -> dict[str, Any]:
    told = _object(raw)
    if told is None:
        raise Denied(400, "invalid_json", "the request's body is no JSON object")
    return told


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return told if isinstance(told, dict) else None


def _served(gateway: Gateway, caller: Caller, body: Mapping[str, Any]) -> Served:
    name = body.get("model")
    served = gateway.models.get(name) if isinstance(name, str) else None
    tier = gateway.config.tiers.get(caller.account.tier)
    if tier is None:
        raise Denied(403, "no_such_tier", "this account's tier is not served here", kind="permission_error")
    if served is None or not who.may_ask(caller, tier, served.config.name):
        raise Denied(404, "model_not_found", "there is no such model for this key", "model")
    return served


def _wanted(trail: Trail, caller: Caller, served: Served, tier: Tier) -> Wanted:
    asked = trail.asked
    assert asked is not None
    seconds = max(each.config.first_byte_seconds + each.config.answer_seconds for each in served.behind)
    return Wanted(
        trail.id,
        subjects.subjects_of(
            caller.organisation, caller.account, caller.key, tier, served.config.name, served.config.limits
        ),
        asked.input_tokens,
        asked.output_tokens,
        seconds + LEASE,
        f"account:{caller.account.id}",
        served.schedule,
        served.steps,
    )


def _body(body: Mapping[str, Any], asked: Asked, behind: Behind, route: Route) -> bytes:
    """What is sent on: written anew from what was read, so that nothing reaches the server unseen (a field
    that stood twice, say)."""
    sent = dict(body)
    if behind.config.model is not None:
        sent["model"] = behind.config.model
    if asked.set_length is not None:
        sent[LENGTHS[route][0]] = asked.set_length
    if asked.stream and not asked.usage_wanted and route in ("chat/completions", "completions"):
        sent["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return orjson.dumps(sent)


def _texts(headers: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[str, str]]:
    for name, value in headers:
        yield name.decode("latin-1"), value.decode("latin-1")


def _own_headers(trail: Trail) -> Headers:
    headers = [(b"x-request-id", trail.id.encode())]
    if trail.changed:
        headers.append(changed_header(trail))
    return headers


def changed_header(trail: Trail) -> tuple[bytes, bytes]:
    return b"x-stillhouse-changed", ",".join(dict.fromkeys(trail.changed)).encode()


def store_down() -> Denied:
    message = "what has been used cannot be counted at present, so nothing is given; try again shortly"
    return Denied(503, "store_down", message, kind="server_error", headers=((b"retry-after", b"5"),))


def _event(trail: Trail, at: float, seconds: float) -> Event:
    caller, asked = trail.caller, trail.asked
    return Event(
        id=trail.id,
        at=at,
        organisation=(caller.account.organisation or "") if caller else "",
        account=caller.account.id if caller else "",
        key=caller.key.id if caller else "",
        model=trail.model,
        upstream=trail.behind.url if trail.behind else "",
        route=trail.route,
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
        changed=trail.changed,
    )
