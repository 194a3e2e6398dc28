"""The admin API: organisations, accounts and keys over HTTP, for whoever holds the admin secret.

The routes and their OpenAPI document are made from the same operations.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from hmac import compare_digest
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from stillhouse.errors import StillhouseError, UsageError
from stillhouse.gateway import detecting, logs
from stillhouse.gateway.answers import bearer
from stillhouse.gateway.decisions import DECISIONS
from stillhouse.gateway.operations import OPERATIONS, Desk, Operation
from stillhouse.gateway.steps import Steps
from stillhouse.gateway.store.accounts import Accounts
from stillhouse.gateway.store.changing import Act, Conflict
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.register import Register
from stillhouse.gateway.store.rows import NotThere
from stillhouse.gateway.texts import Erased
from stillhouse.guard import orders
from stillhouse.guard.accounts import Caller
from stillhouse.guard.config import Guard, Terms
from stillhouse.guard.reading import weakness
from stillhouse.recipe.base import Table

BODY_BYTES = 64 << 10
OPERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}")
ID = re.compile(r"[A-Za-z0-9_-]{0,64}")
ROUTES = (*OPERATIONS, *DECISIONS)
USAGE_PATH = "/admin/api/usage"
WATERMARK_PATH = "/admin/api/watermark"


class Period(Table):
    """Of whom, and on which days (UTC), both included; this month where they are left out."""

    account: orders.Id | None = None
    organisation: orders.Id | None = None
    since: date | None = None
    until: date | None = None


@dataclass(frozen=True, slots=True)
class Api:
    """What the routes work with. `config` gives the settings as they are now; `usage` what was used in a
    period; `erase` erases the kept texts of an account, `forget` what is known of its requests; `steps`
    answers questions about where accounts stand."""

    accounts: Accounts
    config: Callable[[], Guard]
    pepper: bytes
    secret: str
    usage: Callable[[Period], Awaitable[Mapping[str, Any]]]
    erase: Callable[[str], Erased]
    forget: Callable[[str, Act], object]
    now: Callable[[], float] = time.time
    steps: Callable[[Callable[[Steps], Any]], Any] | None = None


def admin_routes(api: Api) -> list[Route]:
    """The routes under /admin/api. Raises UsageError for a weak admin secret."""
    if why := weakness(api.secret):
        raise UsageError("the admin secret is weak", why, "set it to the output of: openssl rand -base64 32")
    known = sha256(api.secret.encode()).digest()

    def route(operation: Operation) -> Route:
        async def endpoint(request: Request) -> Response:
            return _refused(request, known, operation.method) or await _answered(request, operation, api)

        return Route(operation.path, endpoint, methods=[operation.method], name=operation.name)

    async def usage(request: Request) -> Response:
        return _refused(request, known, "GET") or await _usage(request, api)

    one_look = asyncio.Lock()  # each keeps a core busy for some seconds

    async def watermark(request: Request) -> Response:
        return _refused(request, known, "POST") or await _watermark(request, api, one_look)

    return [
        *map(route, ROUTES),
        Route(USAGE_PATH, usage, methods=["GET"], name="usage"),
        Route(WATERMARK_PATH, watermark, methods=["POST"], name="watermark"),
    ]


async def accept_terms(
    accounts: Accounts, caller: Caller, terms: Terms | None, body: bytes, now: float
) -> tuple[int, dict[str, Any]]:
    """POST /v1/terms/acceptance by the holder of a key: the status and the answer.

    The caller must stand well but for the acceptance itself: `standing(..., must_accept=False)`.
    """
    if terms is None:
        return 404, _error("There are no terms to accept.", "no_terms")
    try:
        order = orders.Acceptance.model_validate_json(body, strict=True)
    except ValidationError as error:
        return 400, _error(_first_fault(error), "invalid_request")
    if order.version != terms.version:
        return 409, _error(f"The terms are in version {terms.version} now.", "other_version")
    accepted = {"account": caller.account.id, "accepted": order.version}
    if caller.account.accepted == order.version:
        return 200, accepted  # it costs its sender nothing, so the store is not asked each time
    act = Act(f"key:{caller.key.id}", now)
    try:
        await accounts.order(lambda register: register.accept(act, caller.account.id, order.version))
    except StillhouseError as error:
        return _fault(error)
    return 200, accepted


def openapi_paths() -> dict[str, Any]:
    """`paths` and `components` of these routes, to be joined with others in one OpenAPI 3.1 document."""
    named: dict[str, Any] = {one.name: one.answer for one in ROUTES}
    named |= {f"{one.name} order": one.order for one in ROUTES if one.has_body}
    refs, document = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(model)) for name, model in named.items()],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for one in ROUTES:
        entry = _entry(one.name, one.summary, one.status, refs[one.name, "validation"])
        entry["parameters"] = [_OPERATOR_PARAMETER] if one.method != "GET" else []
        if "{id}" in one.path:
            entry["parameters"].append(_ID_PARAMETER)
        if one.has_body:
            body = refs[f"{one.name} order", "validation"]
            entry["requestBody"] = {"required": True, "content": _json_of(body)}
        elif one.order is not None:
            entry["parameters"] += _query(one.order)
        paths.setdefault(one.path, {})[one.method.lower()] = entry
    usage = _entry("usage", "What a subject used in a period.", 200, {"type": "object"})
    paths[USAGE_PATH] = {"get": usage | {"parameters": _query(Period)}}
    look = _entry("watermark", "Whether texts bear the marks of accounts.", 200, {"type": "object"})
    body = {"required": True, "content": _json_of(detecting.Wanted.model_json_schema())}
    paths[WATERMARK_PATH] = {"post": look | {"parameters": [_OPERATOR_PARAMETER], "requestBody": body}}
    return {
        "paths": paths,
        "components": {
            "schemas": document.get("$defs", {}) | {"Error": _ERROR},
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer"}},
        },
    }


def _entry(name: str, summary: str, status: int, answer: Any) -> dict[str, Any]:
    error = _json_of({"$ref": "#/components/schemas/Error"})
    responses = {status: {"description": why, "content": error} for status, why in _REFUSALS.items()}
    return {
        "summary": summary,
        "operationId": name,
        "security": [{"admin": []}],
        "responses": {str(status): {"description": "Done.", "content": _json_of(answer)}} | responses,
    }


def _query(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": value}
        for name, value in schema["properties"].items()
    ]


# How a request is answered


def _refused(request: Request, known: bytes, method: str) -> Response | None:
    given = bearer(request.scope["headers"])
    if not compare_digest(sha256(given).digest(), known):
        return _response(401, _error("The admin secret is missing or wrong.", "unauthorised"))
    if method != "GET" and OPERATOR.fullmatch(request.headers.get("x-operator", "")) is None:
        return _response(
            400, _error("Say who you are in the header X-Operator: it is recorded.", "operator_needed")
        )
    return None


async def _answered(request: Request, operation: Operation, api: Api) -> Response:
    try:
        order: Any = None
        if operation.order is not None and not operation.has_body:
            order = operation.order.model_validate(dict(request.query_params))
        elif operation.order is not None:
            body = await _body(request, BODY_BYTES)
            if body is None:
                return _too_long(BODY_BYTES)
            order = operation.order.model_validate_json(body, strict=True)
        act = Act(request.headers.get("x-operator", ""), api.now(), getattr(order, "reason", ""))
        id, config = request.path_params.get("id", ""), api.config()
        if ID.fullmatch(id) is None:
            return _response(404, _error("There is no such id.", "not_found"))

        def work(register: Register) -> Any:
            desk = Desk(register, config, api.pepper, api.erase, api.forget, api.steps)
            return operation.run(desk, id, order, act)

        done = await (api.accounts.ask(work) if operation.method == "GET" else api.accounts.order(work))
    except ClientDisconnect:
        return _response(499, _error("The client has left.", "client_left"))
    except ValidationError as error:
        return _response(400, _error(_first_fault(error), "invalid_request"))
    except StillhouseError as error:
        return _response(*_fault(error))
    return _response(operation.status, done)


async def _usage(request: Request, api: Api) -> Response:
    try:
        return _response(200, await api.usage(Period.model_validate(dict(request.query_params))))
    except ValidationError as error:
        return _response(400, _error(_first_fault(error), "invalid_request"))
    except StillhouseError as error:
        return _response(*_fault(error))


async def _watermark(request: Request, api: Api, one_look: asyncio.Lock) -> Response:
    try:
        body = await _body(request, detecting.BODY_BYTES)
        if body is None:
            return _too_long(detecting.BODY_BYTES)
        wanted = detecting.Wanted.model_validate_json(body, strict=True)
        accounts, config = wanted.accounts, api.config()
        if accounts is None:
            most = detecting.ACCOUNTS
            found = await api.accounts.ask(lambda register: register.accounts(limit=most + 1))
            if len(found) > most:
                return _response(422, _error(f"Name the accounts, at most {most:,}.", "not_usable"))
            accounts = [account.id for account in found]

        def look() -> dict[str, Any]:
            return detecting.detected(detecting.known_keys(config), accounts, wanted.texts)

        async with one_look:
            done = await asyncio.to_thread(look)
    except ClientDisconnect:
        return _response(499, _error("The client has left.", "client_left"))
    except ValidationError as error:
        return _response(400, _error(_first_fault(error), "invalid_request"))
    except StillhouseError as error:
        return _response(*_fault(error))
    who, tried = request.headers.get("x-operator", ""), len(done["keys"])
    logs.say("marks looked for", who=who, texts=len(wanted.texts), keys=tried)
    return _response(200, done)


async def _body(request: Request, most: int) -> bytes | None:
    """None: longer than `most` bytes. No more than that is held."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            return None
    return bytes(body)


def _too_long(most: int) -> Response:
    return _response(413, _error(f"A body has at most {most} bytes.", "too_long"))


def _response(status: int, value: Any) -> Response:
    headers = {"cache-control": "no-store"}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(value), status, headers, "application/json")


def _fault(error: StillhouseError) -> tuple[int, dict[str, Any]]:
    said = ": ".join(part for part in (error.what, error.why) if part) + (
        f" ({error.mend})" if error.mend else ""
    )
    match error:
        case NotThere():
            return 404, _error(said, "not_found")
        case Conflict():
            return 409, _error(said, "conflict")
        case UsageError():
            return 422, _error(said, "not_usable")
        case StoreDown():
            return 503, _error("The accounts cannot be read or written now.", "store_down")
    return 500, _error("This failed.", "failed")


def _error(message: str, code: str) -> dict[str, Any]:
    kind = "server_error" if code in ("store_down", "failed") else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


def _first_fault(error: ValidationError) -> str:
    """Without what was given, which may be a secret in the wrong place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = ".".join(map(str, first["loc"]))
    return f"{name}: {first['msg']}" if name else first["msg"]


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": "null"},
            },
        }
    },
}
_REFUSALS = {
    "400": "The request is not understood.",
    "401": "The admin secret is missing or wrong.",
    "404": "There is no such organisation, account or key.",
    "409": "What is there does not allow it.",
    "413": "The body is too long.",
    "422": "It cannot be done like this; a reason may be missing.",
    "501": "This gateway cannot tell.",
    "503": "The store cannot be reached.",
}
_ID_PARAMETER = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_OPERATOR_PARAMETER = {
    "name": "X-Operator",
    "in": "header",
    "required": True,
    "description": "Who does it: recorded with the change.",
    "schema": {"type": "string", "pattern": f"^{OPERATOR.pattern}$"},
}


def _json_of(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
