"""One request on its way to a server and back, and what it is charged in the end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson

from stillhouse.gateway import answers, logs, upstream
from stillhouse.gateway.answers import Headers, Send
from stillhouse.gateway.patience import Patience
from stillhouse.gateway.state import Gateway, Served, Trail
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.stream import MOST, Passing, Unwritable, as_stream, usage_of, written
from stillhouse.gateway.upstream import Behind, NoneAnswers
from stillhouse.guard.answers import Cut
from stillhouse.guard.asked import LENGTHS, Asked, Denied, Route
from stillhouse.guard.ladder import header_of
from stillhouse.guard.limits import Used
from stillhouse.guard.prices import worst

LONGEST_ANSWER = 64 << 20
ON_THE_WAY = 1.0  # seconds in which a server has noticed that nobody listens any more
LONGEST_KEPT = 1 << 20  # bytes of an answer whose text is kept; more is not
PASSED_ON = frozenset({b"tracestate", b"accept-language", b"openai-beta"})
PASSED_BACK = ("content-type", "retry-after", "openai-processing-ms", "openai-version")
MARKED_BY = b"x-stillhouse-watermark"
MARK = re.compile(r"[A-Za-z0-9_-]{1,64}")  # the id of a key, as a server behind may tell it
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")  # none of our headers may have one in it
OURS = frozenset({401, 402, 403})  # statuses that speak of the gateway's own account at the upstream


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole answer that was not given yet; `used` None where its server did not tell it, `mark` the id of a
    key that its server marked it with."""

    told: dict[str, Any]
    used: Used | None
    mark: str | None


class Exchange:
    """The part of a request that is sent on."""

    def __init__(
        self,
        gateway: Gateway,
        trail: Trail,
        served: Served,
        asked: Asked,
        cut: Cut | None,
        began: float,
        patience: Patience,
    ) -> None:
        self.headers: Headers = []
        self.parent: bytes | None = None  # of the trace
        self.reserved = 0  # billionths of a dollar
        self.kept: list[bytes] | None = None  # what left of the answer, where its text is to be kept
        self.before: Used | None = None  # what another model took of this request, and whether that was told
        self.before_told = True
        self.elsewhere = 0.0  # seconds that it took
        self._gateway = gateway
        self._trail = trail
        self._served = served
        self._asked = asked
        self._cut = cut
        self._began = began
        self._patience = patience
        self._sent = False  # to the model itself
        self._events: int | None = None
        self._told: tuple[int, int] | None = None
        self._partly = False  # what was told may be of a part of the answer alone
        self._bytes: int | None = None  # of a whole answer
        self._settled = False
        self._kept_bytes = 0
        self._held: Whole | None = None

    async def run(
        self, body: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]], send: Send, hold: bool = False
    ) -> Whole | None:
        """Send on, and pass back what comes. With `hold` the answer to a chat is asked for whole and kept
        back, to be given by `give`; None where none came, and what came was passed back."""
        gateway, trail = self._gateway, self._trail
        asked = replace(self._asked, stream=False) if hold else self._asked
        passed = {name.decode(): value.decode("latin-1") for name, value in headers if name in PASSED_ON}
        passed |= {"content-type": "application/json", "x-request-id": trail.id}
        if self.parent is not None:
            passed["traceparent"] = self.parent.decode()
        self._sent = True
        trail.added = gateway.clock() - self._began - self.elsewhere
        try:
            behind, response = await upstream.send(
                gateway.session,
                self._served.behind,
                trail.route,
                lambda behind: sent_body(body, asked, behind, trail.route),
                passed,
                gateway.clock,
                self._patience,
            )
        except Denied:
            self._told = (0, 0)  # what was read and then refused counts as a request
            raise
        except NoneAnswers as error:
            self._sent = False
            message = f"no server of {trail.model} can be reached"
            raise Denied(503, "upstream_unreachable", message, kind="server_error") from error
        except TimeoutError as error:
            trail.ended = "upstream_cut"
            message = f"the server of {trail.model} did not answer in time"
            raise Denied(504, "upstream_timeout", message, kind="server_error") from error
        trail.behind = behind
        try:
            await self._pass(response, send, hold)
        except (aiohttp.ClientError, OSError, Unwritable) as error:
            trail.ended, trail.reason = "upstream_cut", type(error).__name__
            behind.failed(gateway.clock())
            if not trail.began:
                message = f"the server of {trail.model} broke off its answer"
                raise Denied(502, "upstream_cut", message, kind="server_error") from error
            await self._break_off(send)
        finally:
            response.close() if trail.ended != "whole" else response.release()
        return self._held

    def charge(self, used: Used | None) -> None:
        """For an answer that was held: what it took is not what its server told first, but this."""
        self._told = None if used is None else (used.input_tokens, used.output_tokens)

    async def _pass(self, response: aiohttp.ClientResponse, send: Send, hold: bool) -> None:
        trail = self._trail
        status = trail.status = response.status
        if status in OURS:
            self._sent = False
            trail.reason = f"upstream_{status}"
            message = f"the server of {trail.model} does not serve this gateway at present"
            raise Denied(502, "upstream_refused", message, kind="server_error")
        if not 200 <= status < 600:
            raise aiohttp.ClientPayloadError("a status that says nothing of the request")
        if status >= 400:
            self._told = (0, 0)
        for name in PASSED_BACK:
            self._pass_back(name.encode(), response.headers.get(name))
        if not hold and (mark := mark_of(response)) is not None:
            self.say_mark(mark.encode())
            trail.marks += (f"upstream_watermark:{mark}",)
        theirs = response.headers.get("x-request-id")
        if theirs != trail.id:
            self._pass_back(b"x-upstream-request-id", theirs)
        streamed = self._asked.stream and status < 400 and response.content_type == "text/event-stream"
        if streamed and not hold:
            await self._stream(response, send)
        else:
            await self._whole(response, send, hold)

    def say_mark(self, value: bytes) -> None:
        """By which key the answer is marked, or that it is not."""
        self.headers = [each for each in self.headers if each[0] != MARKED_BY]
        self.headers.append((MARKED_BY, value))

    async def give(self, told: dict[str, Any], send: Send, text: str | None = None) -> None:
        """An answer of a chat that is whole already, in the form that was asked for; with `text` in place of
        its own. Raises Unwritable before anything has left."""
        trail, cut = self._trail, self._cut
        if cut is not None and cut.apply(told):
            trail.changed += tuple(sorted(cut.changed))
            self._say_changed()
        if text is not None:
            told["choices"][0]["message"]["content"] = text
        if self._asked.stream:
            data = as_stream(told, self._asked.usage_wanted)
            more = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        else:
            data, more = written(told), [answers.JSON]
        trail.ended, trail.status = "whole", 200
        trail.first_byte = self._gateway.clock() - self._began
        trail.added = trail.first_byte - self.elsewhere
        await self.settle()
        trail.began = True
        if self.kept is not None:
            self.kept.clear()  # of a model that then gave no answer
        self._keep(data)
        headers = [each for each in self.headers if each[0] != b"content-type"]
        await answers.respond(send, 200, data, [*headers, *more])

    def _pass_back(self, name: bytes, value: str | None) -> None:
        said = value.encode("latin-1", "replace") if value is not None else b"\0"
        if not _CONTROL.search(said):
            self.headers.append((name, said))

    def _say_changed(self) -> None:
        self.headers = [each for each in self.headers if each[0] != b"x-stillhouse-changed"]
        self.headers.append(_changed_header(self._trail))

    async def _whole(self, response: aiohttp.ClientResponse, send: Send, hold: bool) -> None:
        trail = self._trail
        data = await whole_of(response, trail.behind, self._patience)
        trail.first_byte = self._gateway.clock() - self._began
        told = object_of(data)
        if response.status < 400:
            if told is None:
                raise aiohttp.ClientPayloadError("the answer is no JSON")
            self._told = usage_of(told)
            if self._told is None and _has_failed(told):
                self._told = (0, 0)
            # llama.cpp puts the choices together, and tells the usage of the first
            self._partly = self._asked.choices > 1 and "timings" in told
            self._bytes = len(data)
            if hold and is_chat(told):
                used = None if self._told is None else Used(*self._told)
                self._held, trail.ended = Whole(told, used, mark_of(response)), "whole"
                return
            cut = self._cut
            if cut is not None and cut.concerns(data) and cut.apply(told):
                data = written(told)
                trail.changed += tuple(sorted(cut.changed))
                self._say_changed()
        trail.ended = "whole"
        await self.settle()
        trail.began = True
        self._keep(data)
        await answers.respond(send, response.status, data, self.headers)

    async def _stream(self, response: aiohttp.ClientResponse, send: Send) -> None:
        trail, gateway = self._trail, self._gateway
        passing = Passing(strip=not self._asked.usage_wanted, cut=self._cut)
        self.headers.append((b"cache-control", b"no-cache"))
        await send({"type": "http.response.start", "status": response.status, "headers": self.headers})
        trail.began = True
        with self._patience:
            async for chunk in _heard(response, trail.behind, self._patience):
                if trail.first_byte is None:
                    trail.first_byte = gateway.clock() - self._began
                out = passing.feed(chunk)
                self._hear(passing)
                if passing.whole and not self._settled:
                    trail.ended = "whole"
                    await self.settle()
                if out:
                    self._keep(out)
                    await send({"type": "http.response.body", "body": out, "more_body": True})
            last = passing.end()
        self._hear(passing)
        if self._cut is not None:
            trail.changed += tuple(sorted(self._cut.changed))
        if not passing.whole or passing.failed:
            raise aiohttp.ClientPayloadError("the stream ended early")
        trail.ended = "whole"
        await send({"type": "http.response.body", "body": last})

    def _hear(self, passing: Passing) -> None:
        self._events, self._told = passing.events, passing.usage
        if passing.failed and passing.events == 1 and passing.usage is None:
            self._told = (0, 0)  # nothing came but the failure
        if self._asked.choices > 1:
            self._partly = passing.partly or passing.times > 1
            if passing.times > 1:
                taken, given = passing.sums
                self._told = min(taken, self._asked.input_tokens), min(given, MOST)
        else:
            self._partly = passing.partly and not passing.whole

    def _keep(self, data: bytes) -> None:
        if self.kept is not None and self._kept_bytes + len(data) <= LONGEST_KEPT:
            self.kept.append(data)
            self._kept_bytes += len(data)

    async def _break_off(self, send: Send) -> None:
        """Say in the stream that it ends here: a client must not take the part for the whole."""
        denied = Denied(502, "upstream_cut", "the server broke off its answer", kind="server_error")
        told = b"data: " + orjson.dumps(denied.body()) + b"\n\n"
        await send({"type": "http.response.body", "body": told})

    async def settle(self) -> None:
        """Count what was used, once: as told, else what it can have been at most by what is known. While the
        store is down it is recorded at the dearest step's prices, but for no more than was reserved: at which
        step it lay is known only when the store is back, and events are not held back so long."""
        if self._settled:
            return
        trail, asked, behind = self._trail, self._asked, self._trail.behind
        used = Used(0, 0, sent=False)
        if self._sent:
            if self._told is not None and not self._partly:
                if behind is not None and self._events is not None:
                    behind.learn(asked.input_tokens, self._told, self._events)
                used = Used(*self._told)
            else:
                trail.counted = "bound"
                seconds = self._gateway.clock() - self._began - (trail.first_byte or 0.0)
                used = _bound(asked, behind, self._events, seconds)
                if self._bytes is not None and self._told is not None:
                    used = Used(used.input_tokens, min(used.output_tokens, self._bytes))
                if self._told is not None:
                    used = Used(max(used.input_tokens, self._told[0]), max(used.output_tokens, self._told[1]))
        if self.before is not None:
            used = Used(
                used.input_tokens + self.before.input_tokens, used.output_tokens + self.before.output_tokens
            )
            trail.counted = trail.counted if self.before_told else "bound"
        trail.used = used.input_tokens, used.output_tokens
        try:
            trail.cost = await self._gateway.counts.settle(trail.id, used)
        except StoreDown:
            self._gateway.settle_later(trail.id, used)
            if used.sent:
                trail.cost = min(self.reserved, worst(self._served.steps, 0, MOST, *trail.used))
                trail.counted = "bound"
            logs.say("settled later", request=trail.id, cost=trail.cost)
        self._settled = True  # only now: what is cancelled before is settled again, which changes nothing


def is_chat(told: Mapping[str, Any]) -> bool:
    """Whether an answer is a chat completion, which can be given as a stream as well."""
    choices = told.get("choices")
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(each, dict) and isinstance(each.get("message"), dict) for each in choices)
    )


def _has_failed(answer: Mapping[str, Any]) -> bool:
    """Some servers tell a failure as a success."""
    return answer.get("error") is not None and not answer.get("choices") and not answer.get("output")


async def _heard(
    response: aiohttp.ClientResponse, behind: Behind | None, patience: Patience
) -> AsyncIterator[bytes]:
    """What arrives of an answer, as it arrives; `patience` ends a silence or an answer that is too long."""
    assert behind is not None
    now = asyncio.get_running_loop().time
    silent, end = behind.config.silent_seconds, now() + behind.config.answer_seconds
    patience.until(min(now() + silent, end))
    while part := await response.content.readany():
        patience.until(end)  # what the client takes for it is not the server's silence
        yield part
        patience.until(min(now() + silent, end))


def _bound(asked: Asked, behind: Behind | None, events: int | None, seconds: float) -> Used:
    """Of a stream that broke off `seconds` after its first byte: as many tokens for a byte and for an event
    as whole ones of this server showed at most, with the events that were on their way: as many as came in
    `ON_THE_WAY` seconds. Of what was never told, all that was reserved."""
    if behind is None or not events or not behind.most_output or seconds <= 0:
        return Used(asked.input_tokens, asked.output_tokens)
    perhaps = events * (1 + ON_THE_WAY / seconds)
    taken = min(asked.input_tokens, -int(-asked.input_tokens * behind.most_input // 1))
    given = min(asked.output_tokens, -int(-perhaps * behind.most_output // 1))
    return Used(taken, given)


def sent_body(body: Mapping[str, Any], asked: Asked, behind: Behind, route: Route) -> bytes:
    """What is sent on: written anew from what was read, so that nothing reaches the server unseen (a field
    that stood twice, say)."""
    sent = dict(body)
    if route == "responses" or body.get("store"):
        sent["store"] = False  # what the upstream keeps, whoever asks under the same account may read
    if behind.config.model is not None:
        sent["model"] = behind.config.model
    if asked.set_length is not None:
        sent[LENGTHS[route][0]] = asked.set_length
    if asked.stream and route in ("chat/completions", "completions"):
        # Of the client's own none: vLLM's `continuous_usage_stats` tells in each event of one choice alone
        sent["stream_options"] = {"include_usage": True}
    try:
        return orjson.dumps(sent)
    except orjson.JSONEncodeError as error:  # reads 1,024 levels and writes 253
        raise Denied(400, "invalid_json", "the request's body is nested too deeply") from error


def mark_of(response: aiohttp.ClientResponse) -> str | None:
    """The id of the key by which a server behind says that it marked its answer."""
    said = response.headers.get(MARKED_BY.decode())
    return said if response.status < 300 and said is not None and MARK.fullmatch(said) else None


async def whole_of(response: aiohttp.ClientResponse, behind: Behind | None, patience: Patience) -> bytes:
    """All of an answer. Raises aiohttp.ClientPayloadError for one that is too long."""
    parts: list[bytes] = []
    size = 0
    with patience:
        async for part in _heard(response, behind, patience):
            size += len(part)
            if size > LONGEST_ANSWER:
                raise aiohttp.ClientPayloadError("the answer is too long")
            parts.append(part)
    return b"".join(parts)


def own_headers(trail: Trail) -> Headers:
    headers = [(b"x-request-id", trail.id.encode())]
    if trail.changed:
        headers.append(_changed_header(trail))
    if trail.standing is not None:
        headers.append((b"x-stillhouse-standing", header_of(trail.standing.rung, trail.standing.code)))
    return headers


def _changed_header(trail: Trail) -> tuple[bytes, bytes]:
    return b"x-stillhouse-changed", ",".join(dict.fromkeys(trail.changed)).encode()


def object_of(data: bytes) -> dict[str, Any] | None:
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return told if isinstance(told, dict) else None
