"""The gateway as an ASGI application: which route does what."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import orjson

from stillhouse.gateway import answers, logs, proxy
from stillhouse.gateway.admin import BODY_BYTES, accept_terms
from stillhouse.gateway.answers import JSON, Receive, Scope, Send
from stillhouse.gateway.customers import tell_standing
from stillhouse.gateway.metrics import CONTENT_TYPE
from stillhouse.gateway.patience import Patience
from stillhouse.gateway.state import Gateway
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.guard import accounts as who
from stillhouse.guard import ladder
from stillhouse.guard.asked import Denied, Route

App = Callable[[Scope, Receive, Send], Awaitable[None]]

ASKING: dict[str, Route] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}


@dataclass(slots=True)
class Standing:
    """What answers now: `gateway` is replaced by a reload. Nothing new is taken while `draining`."""

    gateway: Gateway
    admin_secret: bytes
    origin: str = ""
    documents: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # path: content type, content
    draining: bool = False


def application(standing: Standing, admin: App) -> App:
    """Requests to models go the short way; the console and the admin API lie behind `/admin`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        route = ASKING.get(path)
        if route is not None:
            if scope["method"] == "POST":
                await proxy.answer(standing.gateway, route, scope, receive, send)
            else:
                await answers.deny(send, _method(b"POST"))
        elif path == "/admin" or path.startswith("/admin/"):
            seconds = standing.gateway.config.server.head_seconds
            await admin(scope, _in_time(receive, seconds), send)
        else:
            await _other(standing, path, scope, receive, send)

    return app


def _in_time(receive: Receive, seconds: float) -> Receive:
    """Anybody may begin to send a login: who has not sent all of it within `seconds` counts as gone, and its
    connection is closed soon after the answer."""
    due = asyncio.get_running_loop().time() + seconds

    async def received() -> Any:
        try:
            async with asyncio.timeout_at(due):
                return await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}

    return received


async def _other(standing: Standing, path: str, scope: Scope, receive: Receive, send: Send) -> None:
    gateway = standing.gateway
    try:
        if path == "/v1/terms/acceptance" and scope["method"] == "POST":
            await _accept(gateway, scope, receive, send)
            return
        if path in (ladder.STANDING, ladder.APPEAL):
            await tell_standing(gateway, path, scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            raise _method(b"GET") if _known(standing, path) else _nothing(path)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            await _models(gateway, path.removeprefix("/v1/models").removeprefix("/"), scope, send)
        elif path == "/health":
            await answers.respond(send, 200, b'{"status":"ok"}', [JSON])
        elif path == "/ready":
            ready = not standing.draining and gateway.record.healthy()
            body = b'{"status":"ready"}' if ready else b'{"status":"not ready"}'
            await answers.respond(send, 200 if ready else 503, body, [JSON])
        elif path == "/metrics":
            _check_admin(standing, scope)
            for model in gateway.models.values():
                student = () if model.cascade is None else model.cascade.behind
                for each in (*model.behind, *student):
                    gateway.metrics.upstream(model.config.name, each.url, each.failures == 0)
            kind = (b"content-type", CONTENT_TYPE.encode())
            await answers.respond(send, 200, gateway.metrics.text(), [kind])
        elif path in standing.documents:
            kind_of, content = standing.documents[path]
            await answers.respond(send, 200, content, [(b"content-type", kind_of)])
        else:
            raise _nothing(path)
    except Denied as denied:
        await answers.deny(send, denied)
    except StoreDown:
        await answers.deny(send, proxy.store_down())
    except Exception as error:
        logs.fault(error)
        await answers.deny(send, answers.INTERNAL)


def _known(standing: Standing, path: str) -> bool:
    return path in ("/health", "/ready", "/metrics", "/v1/models") or path in standing.documents


async def _models(gateway: Gateway, name: str, scope: Scope, send: Send) -> None:
    """What this key may ask; free of charge, and not counted."""
    caller = await proxy.authorised(gateway, scope["headers"], reading=True)
    tier = gateway.config.tiers.get(caller.account.tier)
    rows = [
        {"id": model, "object": "model", "created": 0, "owned_by": "stillhouse"}
        for model in gateway.models
        if tier is not None and who.may_ask(caller, tier, model)
    ]
    if not name:
        await answers.respond(send, 200, orjson.dumps({"object": "list", "data": rows}), [JSON])
        return
    row = next((row for row in rows if row["id"] == name), None)
    if row is None:
        raise Denied(404, "model_not_found", "there is no such model for this key", "model")
    await answers.respond(send, 200, orjson.dumps(row), [JSON])


async def _accept(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """The holder of a key accepts the terms in force, by naming their version."""
    caller = await proxy.authorised(gateway, scope["headers"], accepting=True)
    with closing(Patience()) as patience:
        seconds = gateway.config.server.head_seconds
        raw = await proxy.body_of(receive, scope["headers"], BODY_BYTES, seconds, patience)
    terms = gateway.config.terms
    status, said = await accept_terms(gateway.accounts, caller, terms, raw, gateway.wall())
    await answers.respond(send, status, orjson.dumps(said), [JSON])


def _check_admin(standing: Standing, scope: Scope) -> None:
    given = answers.bearer(scope["headers"])
    digests = (hashlib.sha256(each).digest() for each in (given, standing.admin_secret))
    if not hmac.compare_digest(*digests):
        raise Denied(401, "admin_only", "this is for the operator", kind="authentication_error")


def _method(allowed: bytes) -> Denied:
    return Denied(405, "method_not_allowed", "another method is needed", headers=((b"allow", allowed),))


def _nothing(path: str) -> Denied:
    return Denied(404, "not_found", "nothing is served at this path")
