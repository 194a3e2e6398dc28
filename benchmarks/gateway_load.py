"""Asks a server of chat completions as cheaply as can be, and says how long it took. A process of its own:

    python gateway_load.py '{"ports": [8700], "keys": ["sk-..."], "seconds": 5, "in_flight": 32}'
    python gateway_load.py @FILE

The fields are those of `Load`. A closed loop keeps so many requests in flight; an open one sends at a fixed
rate whatever comes back, and times each from the moment at which it was due, so that an answer that holds up
others is not counted once but as often as it was felt. Requests are made before the start. An answer counts
as good with status 200, whole, and for a stream with its `data: [DONE]`. Prints a `Told` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from precise import Alarm

STAMP = "at 0000000000.000000"
CONNECTIONS = 2_000  # of an open loop at most
PROMPT = "Which of these words is the odd one out, and why: barley, copper, yeast, water, oak? " * 2


@dataclass(frozen=True, slots=True)
class Load:
    """Ports and keys are taken in turn, keys by request and ports by connection. Either `rate` (requests a
    second) or `in_flight`. It ends after `seconds` or, where that is not 0, after `requests`. `warm` seconds
    before that are asked alike and not counted. `vanish` is the share of streams whose client leaves at a
    chunk drawn at random, `patience` the seconds after which a request without an end is given up, and
    `pause` what a connection waits after an answer that is not 200. With `stamped` each request tells in
    `user` when it was sent (unix seconds)."""

    ports: list[int]
    keys: list[str]
    seconds: float = 5.0
    requests: int = 0
    rate: float = 0.0
    in_flight: int = 1
    stream: bool = False
    model: str = "think-0"
    max_tokens: int = 64
    temperature: float = 0.7
    warm: float = 0.5
    vanish: float = 0.0
    patience: float = 30.0
    pause: float = 0.0
    stamped: bool = False
    seed: int = 7


@dataclass(slots=True)
class Told:
    """Milliseconds, of good answers; `spread` is p50, p90, p99 and the longest; `first` the same until the
    first byte. `longest` is over every request, answered or not; `seconds` from the first request counted
    to the last answer; `late` is how much later than due the open loop's requests left (p99)."""

    good: int = 0
    left: int = 0
    broken: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    spread: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    late: float = 0.0
    longest: float = 0.0
    read_bytes: int = 0
    seconds: float = 0.0
    cpu: float = 0.0


def request(load: Load, key: str) -> bytes:
    said: dict[str, Any] = {
        "model": load.model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": load.max_tokens,
        "temperature": load.temperature,
    }
    if load.stamped:
        said["user"] = STAMP
    if load.stream:
        said |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(said, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request on it at a time. `due` is when that should have left."""

    def __init__(self, run: Run, port: int) -> None:
        self.run = run
        self.port = port
        self.transport: Any = None
        self.due = 0.0
        self.idle = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, data: bytes, due: float) -> None:
        self.idle = False
        self.due, self.first, self.sent = due, 0.0, time.monotonic()
        self.status, self.missing, self.tail, self.chunks = 0, -1, b"", 0
        self.head = b""
        run = self.run
        self.leave = run.random.randrange(1, 8) if run.vanish and run.random.random() < run.vanish else 0
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.run.told.read_bytes += len(data)
        if self.idle:
            return
        if self.status == 0:
            if self.first == 0.0:
                self.first = time.monotonic()
            data = self.head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.head = data
                return
            self.status = int(data[9:12])
            head = data[:end].lower()
            place = head.find(b"\r\ncontent-length:")
            if place >= 0:
                self.missing = int(head[place + 17 :].split(b"\r", 1)[0])
            data = data[end + 4 :]
        if self.missing >= 0:
            self.missing -= len(data)
            if self.missing <= 0:
                self.ended(True)
            return
        self.chunks += 1
        self.tail = tail = (self.tail + data)[-64:]
        if tail.endswith(b"\r\n0\r\n\r\n"):
            self.ended(b"data: [DONE]" in tail)
        elif self.leave and self.chunks >= self.leave:
            self.run.told.left += 1
            self.idle = True
            self.transport.abort()

    def ended(self, whole: bool) -> None:
        self.idle = True
        self.run.ended(self, whole)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.idle:
            self.idle = True
            self.run.count(self, False)
        self.run.lost(self)


class Run:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.loop = asyncio.get_running_loop()
        self.alarm = Alarm()
        self.random = random.Random(load.seed)
        self.vanish = load.vanish
        self.stamped = load.stamped
        self.requests = [request(load, key) for key in load.keys]
        self.ports = deque(load.ports)
        self.place = 0
        self.told = Told()
        self.spread: list[float] = []
        self.firsts: list[float] = []
        self.lates: list[float] = []
        self.free: list[Connection] = []
        self.open: set[Connection] = set()
        self.waiting: deque[float] = deque()
        self.opening = 0
        self.begin = 0.0  # requests due before are warming up
        self.end = 0.0
        self.left = load.requests or sys.maxsize
        self.last = 0.0
        self.stopped = asyncio.Event()

    def due(self) -> bytes:
        self.place += 1
        data = self.requests[self.place % len(self.requests)]
        return data.replace(STAMP.encode(), f"at {time.time():.6f}".encode()) if self.stamped else data

    async def connect(self) -> Connection:
        self.ports.rotate(1)
        port = self.ports[0]
        self.opening += 1
        try:
            _, made = await self.loop.create_connection(lambda: Connection(self, port), "127.0.0.1", port)
        finally:
            self.opening -= 1
        self.open.add(made)
        return made

    # ------------------------------------------------------------ what came back

    def count(self, connection: Connection, whole: bool) -> None:
        told, now = self.told, time.monotonic()
        if connection.due < self.begin:
            return
        self.last = now
        told.longest = max(told.longest, now - connection.due)
        status = str(connection.status)
        told.statuses[status] = told.statuses.get(status, 0) + 1
        if connection.status == 200 and whole:
            told.good += 1
            self.spread.append(now - connection.due)
            self.firsts.append(connection.first - connection.due)
            self.lates.append(connection.sent - connection.due)
        elif connection.status in (0, 200):
            told.broken += 1

    def ended(self, connection: Connection, whole: bool) -> None:
        self.count(connection, whole)
        if self.waiting:
            connection.ask(self.due(), self.waiting.popleft())
        elif self.load.rate:
            self.free.append(connection)
            self.finish()
        elif self.load.pause and connection.status != 200:
            self.loop.call_later(self.load.pause * self.random.uniform(0.5, 1.5), self.again, connection)
        else:
            self.again(connection)

    def again(self, connection: Connection) -> None:
        now = time.monotonic()
        if now >= self.end or self.left <= 0:
            connection.transport.close()
        elif not connection.transport.is_closing():
            self.left -= now >= self.begin
            connection.ask(self.due(), now)

    def lost(self, connection: Connection) -> None:
        self.open.discard(connection)
        if connection in self.free:
            self.free.remove(connection)
        elif not self.load.rate and time.monotonic() < self.end and self.left > 0:
            self.loop.create_task(self.replace())
            return
        self.finish()

    async def replace(self) -> None:
        """A new connection of a closed loop for one that is gone."""
        while time.monotonic() < self.end and self.left > 0:
            try:
                self.again(await self.connect())
                return
            except OSError:
                await asyncio.sleep(0.1)
        self.finish()

    def finish(self) -> None:
        """Stop when nothing is under way and nothing more is due."""
        over = time.monotonic() >= self.end or self.left <= 0
        if over and not self.waiting and not self.opening and all(one.idle for one in self.open):
            self.stopped.set()

    def stop(self) -> None:
        """Ask nothing more, and end when all is answered."""
        self.end = time.monotonic()
        self.loop.call_later(self.load.pause * 2, self.finish)

    def overdue(self) -> None:
        """Cut what had no end within the patience."""
        limit = time.monotonic() - self.load.patience
        for connection in [one for one in self.open if not one.idle and one.sent < limit]:
            connection.transport.abort()
        self.loop.call_later(0.5, self.overdue)

    # ------------------------------------------------------------ what is asked

    async def closed(self) -> None:
        made = []
        for _ in range(self.load.in_flight):
            with suppress(OSError):
                made.append(await self.connect())
        self.begin = time.monotonic() + self.load.warm
        self.end = self.begin + self.load.seconds
        for connection in made:
            self.again(connection)
        for _ in range(self.load.in_flight - len(made)):
            self.loop.create_task(self.replace())

    async def opened(self) -> None:
        self.free = [await self.connect() for _ in range(8)]
        start = time.monotonic() + 0.05
        self.begin = start + self.load.warm
        self.end = self.begin + self.load.seconds
        self.alarm.at(start, partial(self.tick, start, 0))

    def tick(self, start: float, number: int) -> None:
        """Send the request that is due now and call for the next."""
        due = start + number / self.load.rate
        if due >= self.end:
            self.finish()
            return
        self.alarm.at(start + (number + 1) / self.load.rate, partial(self.tick, start, number + 1))
        while self.free:
            connection = self.free.pop()
            if not connection.transport.is_closing():
                connection.ask(self.due(), due)
                return
        self.waiting.append(due)
        if len(self.open) + self.opening < CONNECTIONS:
            self.loop.create_task(self.more())

    async def more(self) -> None:
        try:
            connection = await self.connect()
        except OSError:
            return
        if self.waiting:
            connection.ask(self.due(), self.waiting.popleft())
        else:
            self.free.append(connection)
        self.finish()

    async def whole(self) -> Told:
        await (self.opened() if self.load.rate else self.closed())
        self.loop.call_later(0.5, self.overdue)
        self.loop.add_signal_handler(signal.SIGTERM, self.stop)
        before = time.process_time()
        length = self.load.warm + self.load.seconds + self.load.patience + 5
        try:
            await asyncio.wait_for(self.stopped.wait(), length)
        except TimeoutError:
            self.told.broken += sum(not one.idle for one in self.open) + len(self.waiting)
        told = self.told
        told.cpu = time.process_time() - before
        told.seconds = max(self.last - self.begin, 0.0)
        told.spread, told.first = quantiles(self.spread), quantiles(self.firsts)
        told.late = quantiles(self.lates)[2] if self.load.rate else 0.0
        told.longest *= 1e3
        return told


def quantiles(seconds: list[float]) -> list[float]:
    """p50, p90, p99 and the longest, in milliseconds."""
    if not seconds:
        return [float("nan")] * 4
    order = sorted(seconds)
    return [1e3 * order[min(len(order) - 1, int(part * len(order)))] for part in (0.5, 0.9, 0.99)] + [
        1e3 * order[-1]
    ]


async def main(load: Load) -> None:
    print(json.dumps(asdict(await Run(load).whole())), flush=True)


if __name__ == "__main__":
    told = sys.argv[1]
    text = Path(told[1:]).read_text() if told.startswith("@") else told
    uvloop.run(main(Load(**json.loads(text))))
