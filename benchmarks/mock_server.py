"""A provider of chat completions that bills, limits, fails and lies as it is told.

    .venv/bin/python benchmarks/mock_server.py FOLDER [--limits 0:600:90000] [--faults stall=0.01,...]

It speaks OpenAI's chat completions, files and batches over HTTP/1.1, and prints its port on the first line of
stdout. FOLDER/journal.jsonl is its account of every request; journal and batches outlive a kill of this
process. The settings are those of `mock_provider.Settings`; its docstring and `FAULTS` say what they mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import signal
import time
from dataclasses import fields
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from mock_batches import Batches
from mock_provider import (
    BILLED_NOTHING,
    FAULTS,
    Bucket,
    Journal,
    Settings,
    Work,
    claims_of,
    completion,
    drawn,
    error_body,
    fault_of,
    parse_limits,
    parse_shares,
    pool_of,
    request_id,
    work_of,
)

SENDS_NOTHING = ("cut_before", "cut_work", "stall")


class Request(NamedTuple):
    method: str
    path: str
    content_type: str
    body: bytes


_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TYPE = re.compile(rb"\r\ncontent-type: *([^\r]+)", re.IGNORECASE)


def take_request(buffer: bytearray) -> Request | None:
    """The first whole request, taken from the buffer. Bodies have a Content-Length; chunks are not read."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = bytes(buffer[:head_end])
    length = _LENGTH.search(head)
    end = head_end + 4 + (int(length[1]) if length else 0)
    if len(buffer) < end:
        return None
    method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    kind = _TYPE.search(head)
    body = bytes(buffer[head_end + 4 : end])
    del buffer[:end]
    return Request(method, path, kind[1].decode("latin-1") if kind else "", body)


class Connection(asyncio.Protocol):
    """One connection; a request that arrives before the last is answered waits."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.buffer = bytearray()
        self.busy = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.busy:
            self._next()

    def reply(self, status: int, body: bytes, headers: str = "", kind: str = "application/json") -> None:
        self.transport.write(response(status, body, headers, kind))
        self.busy = False
        if self.buffer:
            self._next()

    def _next(self) -> None:
        request = take_request(self.buffer)
        if request is not None:
            self.busy = True
            self.provider.serve(self, request)


def response(status: int, body: bytes, headers: str = "", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


class Provider:
    """The state of the server: journal, limits, and how often each request was asked."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.shares = parse_shares(settings.faults, FAULTS)
        self.steps = parse_limits(settings.limits)
        self.step: tuple[float, float, float] | None = None
        self.requests = self.tokens = Bucket(0, settings.burst_seconds)
        self.pool = pool_of(settings.seed)
        self.journal = Journal(folder / "journal.jsonl")
        self.batches = Batches(settings, self.pool, self.journal, self.bill, folder)
        self.loop = asyncio.get_running_loop()
        self.started = time.monotonic()

    def serve(self, connection: Connection, request: Request) -> None:
        if request.path == "/v1/chat/completions" and request.method == "POST":
            self._chat(connection, request.body)
        elif request.path.startswith(("/v1/files", "/v1/batches")):
            done = self.batches.handle(*request)
            if done is None:
                connection.transport.abort()
            else:
                connection.reply(*done)
        elif request.path == "/v1/models":
            connection.reply(200, orjson.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}))
        elif request.path == "/cpu":
            connection.reply(200, orjson.dumps(time.process_time()))
        else:
            connection.reply(404, error_body(f"no route {request.path}", "invalid_request_error"))

    def bill(self, work: Work, share: float = 1.0) -> float:
        """US dollars for the work."""
        price = self.settings.price_input * work.prompt_tokens
        return share * (price + self.settings.price_output * work.completion_tokens) / 1e6

    def _chat(self, connection: Connection, raw: bytes) -> None:
        try:
            body = orjson.loads(raw)
            request = request_id(body)
            work = work_of(self.settings, self.pool, body, request)
        except (KeyError, TypeError, ValueError) as error:
            connection.reply(400, error_body(f"no chat request: {error}", "invalid_request_error"))
            return
        wait = self._take(work.prompt_tokens + work.completion_tokens)
        if wait > 0:
            self._refuse(connection, body, request, wait)
            return
        nth = self.journal.asked[request] = self.journal.asked.get(request, 0) + 1
        does, other = fault_of(self.shares, self.settings.seed, request, nth)
        claims = claims_of(does, work, body)
        dollars = 0.0 if does in BILLED_NOTHING else self.bill(work)
        n = self.journal.arrived(request, body, does, work, claims, dollars)
        seconds = 0.0 if does == "cut_before" else self.settings.latency * (0.5 + other)
        if does == "stall":
            seconds = self.settings.stall_seconds
        answer = orjson.dumps(completion(request, work, str(body.get("model")), claims))
        self.loop.call_later(seconds, self._answer, connection, n, does, answer, other)

    def _refuse(self, connection: Connection, body: dict[str, Any], request: str, wait: float) -> None:
        self.journal.arrived(request, body, "limited", Work("", "", 0, 0), None, 0.0)
        if drawn(self.settings.seed, "form", request)[0] < 0.5:
            told = f"retry-after-ms: {1000 * wait:.0f}\r\nretry-after: {math.ceil(wait)}\r\n"
        else:
            now = time.time()
            until = formatdate(math.ceil(now + wait), usegmt=True)
            told = f"date: {formatdate(now, usegmt=True)}\r\nretry-after: {until}\r\n"
        refusal = error_body("rate limit reached, ask again later", "requests", "rate_limit_exceeded")
        connection.reply(429, refusal, told + self._headers())

    def _answer(self, connection: Connection, n: int, does: str, answer: bytes, other: float) -> None:
        """Send what is to be sent of an answer, and write down how much of it left."""
        transport = connection.transport
        if transport.is_closing() or does in SENDS_NOTHING:
            self.journal.ended(n, "nothing")
            transport.abort()
        elif does == "cut_body":
            whole = response(200, answer, self._headers())
            self.journal.ended(n, "part")
            transport.write(whole[: len(whole) - len(answer) + int(other * len(answer))])
            transport.close()
        elif does == "error":
            self.journal.ended(n, "nothing")
            connection.reply(500, error_body("the server had an error", "server_error"), self._headers())
        elif does in ("truncated", "malformed"):
            self.journal.ended(n, "part")
            part = answer[: int(other * len(answer))] if does == "truncated" else b"<html>busy</html>"
            connection.reply(200, part, self._headers())
        else:
            self.journal.ended(n, "whole")
            connection.reply(200, answer, self._headers())
            if does == "cut_after":
                transport.close()

    def _take(self, amount: float) -> float:
        """Seconds until this request may be asked again; 0 when it is admitted now."""
        now = time.monotonic()
        elapsed = (now - self.started) % self.settings.limits_period
        step = next((step for step in reversed(self.steps) if step[0] <= elapsed), None)
        if step is not None and step != self.step:
            burst = self.settings.burst_seconds
            self.step = step
            self.requests, self.tokens = Bucket(step[1], burst, at=now), Bucket(step[2], burst, at=now)
        wait = max(self.requests.missing(1, now), self.tokens.missing(amount, now))
        if wait == 0:
            self.requests.level -= 1
            self.tokens.level -= amount
        return wait

    def _headers(self) -> str:
        return self.requests.headers("requests") + self.tokens.headers("tokens")


async def main(folder: Path, settings: Settings) -> None:
    """Serve until SIGTERM; says where on the first line of stdout."""
    loop = asyncio.get_running_loop()
    provider = Provider(folder, settings)
    server = await loop.create_server(lambda: Connection(provider), "127.0.0.1", settings.port, backlog=4096)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()


def read_arguments() -> tuple[Path, Settings]:
    parser = argparse.ArgumentParser(description="A mock provider; see mock_provider.Settings.")
    parser.add_argument("folder", type=Path)
    for field in fields(Settings):
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    given = vars(parser.parse_args())
    return given.pop("folder"), Settings(**given)


if __name__ == "__main__":
    import uvloop

    where, told = read_arguments()
    where.mkdir(parents=True, exist_ok=True)
    uvloop.run(main(where, told))
