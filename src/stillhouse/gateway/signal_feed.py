"""A feed of signals in the shape of TAXII 2.1: each recipient reads one collection, its own copies.

Reading only. Who asks shows the key of its invitation by HTTP Basic, which TAXII asks for; before anything
but loopback stands a server that speaks TLS. https://docs.oasis-open.org/cti/taxii/v2.1/taxii-v2.1.html
"""

from __future__ import annotations

import base64
import hmac
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillhouse.errors import StillhouseError
from stillhouse.guard.signals import form, private, shelf
from stillhouse.workspace import Workspace

TAXII = "application/taxii+json;version=2.1"
PAGE = 100
ASKED_A_DAY = 16_384  # blinded elements of one recipient: 256 sketches
_MOST_ASKED_BYTES = 64 * private.MOST_ASKED
_SPACE = uuid.UUID("5b0b7c2c-8a55-5d30-8f3e-a0ed4a3d7c0f")

Clock = Callable[[], datetime]
Handler = Callable[[Request, str], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Page:
    """Entries as `shelf.sent_to` gives them; `next` continues them, None at the end."""

    entries: Sequence[Mapping[str, Any]]
    next: str | None


class Refused(Exception):
    def __init__(self, status: int, title: str) -> None:
        super().__init__(title)
        self.status = status
        self.title = title


def page(
    sent: Sequence[Mapping[str, Any]], now: datetime, *, added_after: str, after: str, limit: int
) -> Page:
    """What is next of a recipient's copies, in the order in which they were added. Expired ones are left out
    unless they are revoked. `after` is an earlier page's `next`."""
    moment = form.stamp(now)
    held = [
        each
        for each in sorted(sent, key=_place)
        if each["added"] > added_after
        and _place(each) > after
        and (each["object"]["revoked"] or each["object"]["valid_until"] > moment)
    ]
    return Page(held[:limit], _place(held[limit - 1]) if len(held) > limit else None)


def app(workspace: Workspace, clock: Clock = lambda: datetime.now(UTC)) -> Starlette:
    """The feed of a workspace's signals. Copies made while it runs are served at once."""
    one = "/signals/collections/{collection}/"
    routes = {
        "/taxii2/": _discovery,
        "/signals/": _api_root,
        "/signals/collections/": _collections,
        one: _one_collection,
        one + "manifest/": _objects,
        one + "objects/": _objects,
        one + "objects/{object}/": _objects,
        "/signals/private/": _filter,
    }
    made = [Route(path, _guarded(handler), methods=["GET"]) for path, handler in routes.items()]
    made.append(Route("/signals/private/evaluate/", _guarded(_evaluated), methods=["POST"]))
    feed = Starlette(routes=made)
    feed.state.workspace, feed.state.clock = workspace, clock
    feed.state.asked = {}  # blinded elements by recipient and day, of this process
    feed.state.filter = None  # made again when signals changed, and every hour for those that expire
    return feed


def serve(workspace: Workspace, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called with the address once connections are accepted."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                at = self.servers[0].sockets[0].getsockname()
                ready(f"http://{at[0]}:{at[1]}/signals/")

    settings = uvicorn.Config(
        app(workspace),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=64,
        timeout_keep_alive=5,
    )
    Server(settings).run()


def _guarded(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Answers only recipients, each only of its own collection."""

    async def answer(request: Request) -> Response:
        try:
            keys = await run_in_threadpool(shelf.feed_keys, request.app.state.workspace)
            recipient = _recipient(request, keys)
            if request.path_params.get("collection", _id(recipient)) != _id(recipient):
                raise Refused(404, "no such collection")
            if not _accepts(request.headers.get("accept", "*/*")):
                raise Refused(406, f"answers are {TAXII}")
            return await handler(request, recipient)
        except Refused as refused:
            headers = {"WWW-Authenticate": 'Basic realm="signals"'} if refused.status == 401 else {}
            return _error(refused.status, refused.title, headers)
        except StillhouseError as error:
            return _error(400, error.what, {})

    return answer


async def _discovery(request: Request, recipient: str) -> Response:
    root = str(request.base_url) + "signals/"
    return _answer({"title": "Signals of distillation", "default": root, "api_roots": [root]})


async def _api_root(request: Request, recipient: str) -> Response:
    about = {"title": "Signals of distillation", "versions": [TAXII]}
    return _answer({**about, "max_content_length": _MOST_ASKED_BYTES})


async def _collections(request: Request, recipient: str) -> Response:
    return _answer({"collections": [_collection(recipient)]})


async def _one_collection(request: Request, recipient: str) -> Response:
    return _answer(_collection(recipient))


async def _objects(request: Request, recipient: str) -> Response:
    """The objects of a collection or one of them, or what the manifest says of them."""
    state = request.app.state
    sent = await run_in_threadpool(shelf.sent_to, state.workspace, recipient)
    if (id := request.path_params.get("object")) is not None:
        sent = [each for each in sent if each["object"]["id"] == id]
        if not sent:
            raise Refused(404, "no such object")
    after = request.query_params.get("next", "")
    cut = page(sent, state.clock(), added_after=_added_after(request), after=after, limit=_limit(request))
    short = request.url.path.endswith("/manifest/")
    shown = [_manifest(each) if short else each["object"] for each in cut.entries]
    body: dict[str, Any] = {"more": cut.next is not None}
    if cut.next is not None:
        body["next"] = cut.next
    if not shown:
        return _answer(body)
    ends = {"First": cut.entries[0]["added"], "Last": cut.entries[-1]["added"]}
    headers = {f"X-TAXII-Date-Added-{end}": added for end, added in ends.items()}
    return _answer({**body, "objects": shown}, headers=headers)


async def _filter(request: Request, recipient: str) -> Response:
    state, now = request.app.state, request.app.state.clock()
    holds_for = await run_in_threadpool(shelf.changed, state.workspace), f"{now:%Y-%m-%d %H}"
    if state.filter is None or state.filter[0] != holds_for:
        state.filter = holds_for, await run_in_threadpool(shelf.private_filter, state.workspace, now)
    made = state.filter[1]
    return _answer({"bits": base64.b64encode(made.bits).decode(), "hashes": made.hashes})


async def _evaluated(request: Request, recipient: str) -> Response:
    """Answers to blinded elements, as many a day as `ASKED_A_DAY`: each could be a guess."""
    state, data = request.app.state, b""
    async for part in request.stream():
        data += part
        if len(data) > _MOST_ASKED_BYTES:
            raise Refused(413, "the question is too long")
    try:
        elements = [base64.b64decode(each, validate=True) for each in orjson.loads(data)["elements"]]
    except (ValueError, KeyError, TypeError):
        raise Refused(400, "a question is {elements: [base64, ...]}") from None
    today = f"{state.clock():%Y-%m-%d}"
    state.asked = {who: count for who, count in state.asked.items() if who[1] == today}
    count = state.asked.get((recipient, today), 0) + len(elements)
    if count > ASKED_A_DAY:
        raise Refused(429, f"{ASKED_A_DAY} elements a day are answered")
    state.asked[recipient, today] = count
    answers = await run_in_threadpool(shelf.private_answers, state.workspace, elements)
    return _answer({"elements": [base64.b64encode(each).decode() for each in answers]})


def _recipient(request: Request, keys: Mapping[str, str]) -> str:
    scheme, _, said = request.headers.get("authorization", "").partition(" ")
    try:
        name, _, key = base64.b64decode(said, validate=True).decode().partition(":")
    except ValueError:
        name, key = "", ""
    # An unknown name takes as long as a wrong key
    expected = keys.get(name, "0" * 64)
    if not hmac.compare_digest(expected.encode(), key.encode()) or name not in keys:
        raise Refused(401, "the key of an invitation is needed")
    if scheme.lower() != "basic":
        raise Refused(401, "the key of an invitation is needed")
    return name


def _accepts(header: str) -> bool:
    wanted = [part.replace(" ", "").lower() for part in header.split(",")]
    taken = {"*/*", "application/*", "application/taxii+json", TAXII}
    return any(part.split(";q=")[0] in taken for part in wanted)


def _added_after(request: Request) -> str:
    said = request.query_params.get("added_after", "")
    if not said:
        return ""
    try:
        return form.stamp(datetime.fromisoformat(said))
    except (ValueError, OverflowError):
        raise Refused(400, "added_after is a moment such as 2026-11-22T09:00:00.000Z") from None


def _limit(request: Request) -> int:
    said = request.query_params.get("limit", str(PAGE))
    if not (said.isascii() and said.isdigit() and int(said[:9]) > 0):
        raise Refused(400, "limit is a number above 0")
    return min(int(said[:9]), PAGE)


def _place(each: Mapping[str, Any]) -> str:
    return f"{each['added']} {each['object']['id']}"


def _manifest(each: Mapping[str, Any]) -> dict[str, Any]:
    copy = each["object"]
    said = {"id": copy["id"], "date_added": each["added"], "version": copy["modified"]}
    return {**said, "media_type": form.PAYLOAD}


def _id(recipient: str) -> str:
    return str(uuid.uuid5(_SPACE, recipient))


def _collection(recipient: str) -> dict[str, Any]:
    may = {"can_read": True, "can_write": False, "media_types": [form.PAYLOAD]}
    return {"id": _id(recipient), "title": f"Signals for {recipient}", **may}


def _answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type=TAXII)


def _error(status: int, title: str, headers: Mapping[str, str]) -> Response:
    return _answer({"title": title, "http_status": str(status)}, status, headers)
