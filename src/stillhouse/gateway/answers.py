"""What the gateway says itself, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

from stillhouse.guard.asked import Denied
from stillhouse.guard.limits import Refused, Room

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
INTERNAL = Denied(500, "internal", "something went wrong here", kind="server_error")
_SHOWN = {"requests": b"requests", "input_tokens": b"input-tokens", "output_tokens": b"output-tokens"}
_NAMES = {
    "requests": "requests",
    "input_tokens": "tokens of prompts",
    "output_tokens": "tokens of answers",
    "concurrent": "requests in flight",
    "money": "money",
}


async def respond(send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def deny(send: Send, denied: Denied, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    await respond(send, denied.status, orjson.dumps(denied.body()), [*headers, *denied.headers, JSON])


def over_limit(refused: Refused) -> Denied:
    """429, or 402 where only money helps; Retry-After is left out when waiting would not."""
    limit, wait = refused.limit, refused.retry_after
    whose = refused.subject.partition(":")[0]
    if limit.measure == "money":
        span = "this month's budget is used up" if limit.window == "month" else "what was paid in is used up"
        return Denied(402, "insufficient_quota", span, kind="insufficient_quota")
    bound = f"{limit.amount:,} {_NAMES[limit.measure]}"
    span = " at a time" if limit.measure == "concurrent" else f" in a {limit.window}"
    if wait is None and limit.measure != "concurrent":
        return Denied(
            429,
            "request_too_large",
            f"this request alone could take more than the {whose}'s limit of {bound}{span}; "
            "shorten it or ask for a shorter answer",
            kind=limit.measure,
        )
    seconds = max(1, -int(-(wait or 1.0) // 1))
    return Denied(
        429,
        "rate_limit_exceeded",
        f"the {whose}'s limit of {bound}{span} is reached; try again in {seconds} s",
        kind=limit.measure,
        headers=((b"retry-after", str(seconds).encode()), *room_headers(refused.room)),
    )


def room_headers(room: Iterable[Room]) -> Headers:
    """What is left, as OpenAI's headers tell it."""
    headers: Headers = []
    for each in room:
        name = _SHOWN.get(each.measure)
        if name is not None:
            headers += (
                (b"x-ratelimit-limit-" + name, b"%d" % each.limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % max(0, each.remaining)),
                (b"x-ratelimit-reset-" + name, b"%.3fs" % each.reset),
            )
    return headers


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The secret of the first `Authorization` header; empty where there is none, or another scheme's."""
    given = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, secret = given.partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else b""
