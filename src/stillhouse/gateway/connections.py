"""A client's connection: uvicorn's, but one on which nobody can wait for ever, nor send without end."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

CLIENT = "stillhouse.client"  # by which a request's scope holds its `Client`
LONGEST_HEAD = 64 << 10  # bytes, of its fields and of those after a body
FULL = (
    b'{"error":{"message":"too many connections are open; try again shortly","type":"server_error",'
    b'"param":null,"code":"too_many_connections"}}'
)


class Client:
    """Who waits for an answer. `work`, where that is set, is cancelled when it leaves."""

    __slots__ = ("left", "work")

    def __init__(self) -> None:
        self.left = False
        self.work: asyncio.Task[Any] | None = None

    def leave(self) -> None:
        self.left = True
        if self.work is not None:
            self.work.cancel()


class Connection(HttpToolsProtocol):
    """Closed when a head that was begun, or a first request, has not arrived within `head_seconds`, when the
    body of a request that was refused has not, and when nothing of an answer is taken for `idle_seconds`.
    Beyond `most` connections a new one is told so and closed; those that are open go on."""

    head_seconds: ClassVar[float] = 10.0
    idle_seconds: ClassVar[float] = 75.0
    most: ClassVar[int] = 20_000
    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _answered: RequestResponseCycle | None = None  # the request that is being answered
    _arrived = True  # no request is half there
    _head = 0  # bytes of the fields so far

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(FULL) + FULL
            )
            transport.close()
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        self.resume_writing()
        cycle = self._answered
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # uvicorn tells only the last, behind which another may have come
            cycle.message_event.set()
            cycle.scope[CLIENT].leave()  # type: ignore[literal-required]
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CLIENT] = Client()  # type: ignore[literal-required]
        self._arrived, self._head = False, 0
        self._wait()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._heard()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._arrived = True
        self._heard()
        super().on_message_complete()
        if self.cycle is self._answered:  # else it waits behind another, and so does what comes after it
            self.flow.resume_reading()  # a long body held it up, and nobody would see the client leave

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._arrived:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.idle_seconds, self._abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _count(self, size: int) -> None:
        """Raises ValueError, which the parser answers with 400."""
        self._head += size
        if self._head > LONGEST_HEAD:
            raise ValueError("the fields of a request are too long")

    def _wait(self) -> None:
        self._heard()
        self._late = self.loop.call_later(self.head_seconds, self._give_up)

    def _heard(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def _abort(self) -> None:
        self.transport.abort()
