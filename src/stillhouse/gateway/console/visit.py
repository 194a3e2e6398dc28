"""What every page is made with: the console, who visits it, and how an answer is written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import HTMLResponse

from stillhouse.errors import StillhouseError, StorageError, UsageError
from stillhouse.gateway.console.doors import Tries, token_of
from stillhouse.gateway.console.shown import environment
from stillhouse.gateway.state import Gateway
from stillhouse.gateway.store.changing import Conflict
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.events import Events
from stillhouse.gateway.store.rows import NotThere
from stillhouse.gateway.store.sessions import Session, Sessions
from stillhouse.guard.config import Store

Answer = TypeVar("Answer")

BODY_BYTES = 32 << 10
FIELDS = 64
DONE = {
    "add": "Added.",
    "block": "Blocked. Its requests are refused from now on.",
    "unblock": "Unblocked.",
    "close": "Closed for ever.",
    "revoke": "Revoked for ever.",
    "change": "Changed. It holds for requests from now on.",
    "pay": "The payment is recorded.",
    "accept": "The acceptance is recorded.",
    "training": "The consent is recorded.",
    "withdraw": "The withdrawal is recorded. Nothing of it is taken from now on.",
    "review": "It stands at review.",
    "keep": "The appeal is turned down.",
    "undo": "All steps are undone. The same pattern makes none for a while.",
    "kill": "The account is stopped.",
    "cluster_review": "All of them stand at review.",
    "cluster_dismiss": "They are left where they are.",
}


class Reading:
    """The stores that the console reads beside the gateway's own, in a thread of their own. Close it."""

    def __init__(self, store: Store) -> None:
        """Raises StorageError when they cannot be opened."""
        self.events = Events(store)
        try:
            self.sessions = Sessions(store)
        except BaseException:
            self.events.close()
            raise
        self._pool = ThreadPoolExecutor(1, "console")

    async def ask(self, question: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._pool, question)

    def close(self) -> None:
        self._pool.shutdown()
        self.events.close()
        self.sessions.close()


@dataclass(frozen=True, slots=True)
class Console:
    """What the pages are made from: `gateway` gives what serves now, which a reload replaces; `log` is called
    as `log(what, **fields)`; `now` is in Unix seconds."""

    gateway: Callable[[], Gateway]
    reading: Reading
    secret: str
    log: Callable[..., None] = lambda *_, **__: None
    now: Callable[[], float] = time.time
    tries: Tries = field(default_factory=Tries)
    drawn: dict[str, tuple[float, str]] = field(default_factory=dict)  # what is live, by span
    done: dict[str, None] = field(default_factory=dict)  # forms that must not be taken twice


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of somebody who is logged in, at a time; `form` is what a POST brought."""

    console: Console
    gateway: Gateway
    request: Request
    session: Session
    at: float
    form: Mapping[str, str]

    @property
    def token(self) -> str:
        return token_of(self.console.secret, self.session.id)

    def asked(self, name: str, longest: int = 200) -> str:
        """A value of the query, bounded."""
        return self.request.query_params.get(name, "")[:longest].replace("\0", "").strip()


class BadForm(Exception):
    """A body that no form of the console sends."""


async def form_of(request: Request) -> dict[str, str]:
    """Raises BadForm for what is too long, or is no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise BadForm
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise BadForm
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS, errors="strict"
        )
    except ValueError:
        raise BadForm from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise BadForm
    return dict(pairs)


def page(visit: Visit, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    made = environment().get_template(template)
    known = {
        "now": visit.at,
        "operator": visit.session.operator,
        "token": visit.token,
        "path": visit.request.url.path,
        "done": DONE.get(visit.asked("done"), ""),
    }
    return HTMLResponse(made.render(**known, **values), status)


def bare(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page for whoever is not logged in."""
    made = environment().get_template(template)
    return HTMLResponse(made.render(operator="", path="", done="", **values), status)


def problem(visit: Visit, status: int, what: str, why: str = "", mend: str = "") -> HTMLResponse:
    return page(visit, "problem.html", status, what=what, why=why, mend=mend)


def status_of(error: StillhouseError) -> int:
    match error:
        case NotThere():
            return 404
        case Conflict():
            return 409
        case UsageError():
            return 422
        case StoreDown() | StorageError():
            return 503
    return 500
