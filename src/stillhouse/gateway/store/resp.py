"""One connection to a Redis, over which many requests go without waiting for one another.

What is asked in one turn of the event loop is sent in one piece, and Redis syncs its file once for all of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from stillhouse.errors import UsageError

PATIENCE = 0.5  # seconds for an answer, and for a connection


Word = str | bytes | int


class Gone(Exception):
    """The connection is lost; whether what was asked last has happened is not known."""


class Said(Exception):
    """Redis refused, in its own words."""


@dataclass(frozen=True, slots=True)
class Address:
    name: str  # to show: without secrets
    host: str
    port: int
    path: str  # of a socket, "" for TCP
    tls: bool
    user: str
    password: str
    database: int


def address_of(url: str) -> Address:
    """`redis://[user[:password]@]host[:port][/database]`, `rediss://` with TLS, or `unix://[...@]/path[?db=1]`.
    Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
        local = parts.scheme == "unix"
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        database = int(options.pop("db", "0") if local else parts.path.strip("/") or "0")
    except ValueError:
        parts, options = SplitResult("", "", "", "", ""), {}
    if options or not {"redis": parts.hostname, "rediss": parts.hostname, "unix": parts.path}.get(
        parts.scheme
    ):
        raise UsageError(
            "`redis` in guard.toml is no URL of a Redis",
            "it is redis://[user:password@]host[:port][/database], rediss://... or unix:///path[?db=0]",
            "correct it under [store]",
        )
    return Address(
        parts.path if local else f"{parts.hostname}:{port}",
        parts.hostname or "",
        port,
        parts.path if local else "",
        parts.scheme == "rediss",
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        database,
    )


class Wire(asyncio.Protocol):
    def __init__(self) -> None:
        import hiredis

        self._reader = hiredis.Reader(notEnoughData=Gone)
        self._refused = hiredis.HiredisError
        self._pack = hiredis.pack_command
        self._loop = asyncio.get_running_loop()
        self._asked: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None

    def ask(self, *words: Word) -> asyncio.Future[Any]:
        """The answer to come. Raises Gone (also when it takes longer than PATIENCE), or Said."""
        answer = self._loop.create_future()
        if self._transport is None:
            answer.set_exception(Gone("the connection is closed"))
            return answer
        self._asked.append((answer, self._loop.time()))
        if not self._out:
            self._loop.call_soon(self._send)
        self._out.append(self._pack(words))  # type: ignore[arg-type]
        if self._watch is None:
            self._watch = self._loop.call_later(PATIENCE, self._look)
        return answer

    def close(self) -> None:
        self._lose("the connection was closed")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not Gone:
            answer, _ = self._asked.popleft()
            if answer.done():
                continue
            if isinstance(reply, self._refused):
                answer.set_exception(Said(str(reply)))
            else:
                answer.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(str(exc) if exc else "Redis closed the connection")

    def _send(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _look(self) -> None:
        """One timer for all that is asked: a timer for each would cost more than the asking."""
        self._watch = None
        if self._asked:
            late = self._asked[0][1] + PATIENCE - self._loop.time()
            if late <= 0:
                self._lose(f"no answer in {PATIENCE} seconds")
            else:
                self._watch = self._loop.call_later(late, self._look)

    def _lose(self, why: str) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._asked:
            answer, _ = self._asked.popleft()
            if not answer.done():
                answer.set_exception(Gone(why))


async def connect(address: Address) -> Wire:
    """Raises Gone, or Said when it is not let in."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            if address.path:
                _, wire = await loop.create_unix_connection(Wire, address.path)
            else:
                tls = ssl.create_default_context() if address.tls else None
                _, wire = await loop.create_connection(Wire, address.host, address.port, ssl=tls)
    except OSError as error:  # TimeoutError is one
        raise Gone(str(error) or f"no connection in {PATIENCE} seconds") from error
    try:
        if address.password:
            await wire.ask("AUTH", *([address.user] if address.user else []), address.password)
        if address.database:
            await wire.ask("SELECT", address.database)
    except BaseException:
        wire.close()
        raise
    return wire
