"""A server of chat completions that costs next to nothing, so that what stands before it can be measured.

    python gateway_upstream.py [--port 0] [--journal FILE]

The model's name says how long it thinks before the first byte: `think-20` is 20 ms. Whole answers are some
600 bytes of JSON with `usage`. Streams are 20 chunks, each a write of its own, then a chunk with the usage
where `stream_options.include_usage` asks for it, then [DONE]. Whole answers tell, where `logprobs` asks for
it, 60 tokens that were all but certain, each beside four others. A model called `exact-20` writes exactly as
many tokens as `max_tokens` allows, ten a chunk and a chunk every 20 ms, so that what a limit has reserved is
also what was served. /count tells what was served, with the CPU seconds it took. It prints its port.

FILE gets a line for each answer, also for one that nobody was there to hear: when its client sent it, by the
time in `user` ("at 1790000000.5"), when it arrived (`time.time()`), `max_tokens`, and the tokens sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import signal
import time
from pathlib import Path
from typing import Any, TextIO

import uvloop
from precise import Alarm

PROMPT, COMPLETION, CHUNKS, STEP = 24, 60, 20, 10
WORDS = " still house copper vapour condense draw cut heart tail wash mash yeast barley oak cask".split(" ")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
MODEL = re.compile(rb'"model": ?"([a-z]+)-(\d+)"')
MOST = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
STREAM = re.compile(rb'"stream": ?true')
USAGE = re.compile(rb'"include_usage": ?true')
LOGPROBS = re.compile(rb'"logprobs": ?true')
STAMP = re.compile(rb'"user": ?"at ([\d.]+)"')
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"x-request-id: req-0123456789abcdef\r\n\r\n"
)


def usage(completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT,
        "completion_tokens": completion,
        "total_tokens": PROMPT + completion,
    }


def response(status: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return f"{head}x-request-id: req-0123456789abcdef\r\n\r\n".encode() + data


def token(n: int, chance: float) -> dict[str, Any]:
    text = " " + WORDS[n % len(WORDS)]
    return {"token": text, "logprob": math.log(chance), "bytes": list(text.encode())}


def chances() -> dict[str, Any]:
    """What a server tells of its tokens' probabilities."""
    rest = (0.01, 0.005, 0.003, 0.002)
    told = [
        token(n, 0.98)
        | {"top_logprobs": [token(n + more, chance) for more, chance in enumerate((0.98, *rest))]}
        for n in range(COMPLETION)
    ]
    return {"content": told, "refusal": None}


def whole(model: str, completion: int = COMPLETION, with_chances: bool = False) -> bytes:
    text = " ".join(WORDS[n % len(WORDS)] for n in range(40))
    message = {"role": "assistant", "content": text, "refusal": None}
    told_chances = chances() if with_chances else None
    choice = {"index": 0, "message": message, "logprobs": told_chances, "finish_reason": "stop"}
    head = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion", "created": 1_790_000_000}
    told = {"model": model, "choices": [choice], "usage": usage(completion), "system_fingerprint": "fp_mock"}
    return response("200 OK", head | told)


def event(body: dict[str, Any] | None) -> bytes:
    """A chunk of a stream as it goes over the wire; None is its end."""
    text = "[DONE]" if body is None else json.dumps(body, separators=(",", ":"))
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunk(model: str, text: str, finish: str | None = None, used: int | None = None) -> bytes:
    head = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1_790_000_000}
    delta = {"content": text} if text else {}
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    if used is not None:
        return event(head | {"model": model, "choices": [], "usage": usage(used)})
    return event(head | {"model": model, "choices": choices})


def stream(model: str, with_usage: bool) -> list[bytes]:
    chunks = [chunk(model, " " + WORDS[n % len(WORDS)]) for n in range(CHUNKS - 1)]
    chunks.append(chunk(model, "", "stop"))
    if with_usage:
        chunks.append(chunk(model, "", used=COMPLETION))
    chunks[0] = STREAM_HEAD + chunks[0]
    chunks[-1] += event(None) + b"0\r\n\r\n"
    return chunks


class Upstream:
    """What was served so far; answers are made once."""

    def __init__(self, journal: TextIO | None) -> None:
        self.alarm = Alarm()
        self.loop = asyncio.get_running_loop()
        self.journal = journal
        self.served = dict.fromkeys(("asked", "whole", "left", "output_tokens", "reserved_tokens"), 0)
        self._wholes: dict[tuple[str, bool], bytes] = {}
        self._streams: dict[tuple[str, bool], list[bytes]] = {}

    def whole(self, model: str, with_chances: bool) -> bytes:
        if (model, with_chances) not in self._wholes:
            self._wholes[model, with_chances] = whole(model, with_chances=with_chances)
        return self._wholes[model, with_chances]

    def stream(self, model: str, with_usage: bool) -> list[bytes]:
        if (model, with_usage) not in self._streams:
            self._streams[model, with_usage] = stream(model, with_usage)
        return self._streams[model, with_usage]

    def count(self, answer: Answer, tokens: int, ended: bool) -> None:
        served = self.served
        served["whole" if ended else "left"] += 1
        served["output_tokens"] += tokens
        served["reserved_tokens"] += answer.most
        if self.journal is not None:
            self.journal.write(json.dumps([answer.sent, answer.arrived, answer.most, tokens]) + "\n")


class Answer:
    """One answer on its way over a connection."""

    __slots__ = ("arrived", "chunks", "connection", "most", "place", "sent", "wait")

    def __init__(self, connection: Connection, most: int, sent: float) -> None:
        self.connection = connection
        self.most = most
        self.sent = sent
        self.arrived = time.time()
        self.chunks: list[bytes] = []
        self.place = 0
        self.wait = 0.0

    def send_whole(self, data: bytes, tokens: int) -> None:
        self.chunks = [data]
        self.end(tokens)

    def step(self) -> None:
        """Send the next chunk of a stream and call for the one after it."""
        connection = self.connection
        if connection.transport.is_closing():
            connection.upstream.count(self, min(self.place * STEP, self.most), False)
            return
        chunks, place = self.chunks, self.place
        connection.transport.write(chunks[place])
        self.place = place = place + 1
        if place == len(chunks):
            tokens = COMPLETION if self.wait == 0.0 else self.most
            connection.done(self, tokens)
        elif self.wait == 0.0:
            connection.upstream.loop.call_soon(self.step)
        else:
            connection.upstream.alarm.at(time.monotonic() + self.wait, self.step)

    def end(self, tokens: int) -> None:
        connection = self.connection
        if connection.transport.is_closing():
            connection.upstream.count(self, 0, False)
            return
        connection.transport.write(self.chunks[0])
        connection.done(self, tokens)


class Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.buffer = b""
        self.busy = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if not self.busy:
            self.next()

    def done(self, answer: Answer, tokens: int) -> None:
        self.upstream.count(answer, tokens, True)
        self.busy = False
        if self.buffer:
            self.next()

    def next(self) -> None:
        """Answer the first whole request of the buffer."""
        buffer = self.buffer
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = LENGTH.search(buffer, 0, head + 2)
        end = head + 4 + (int(length[1]) if length else 0)
        if len(buffer) < end:
            return
        self.buffer = buffer[end:]
        if buffer.startswith(b"POST "):
            self.busy = True
            self.answer(buffer[head + 4 : end])
        elif buffer.startswith(b"GET /count"):
            self.transport.write(response("200 OK", self.upstream.served | {"cpu": time.process_time()}))
        else:
            models = [{"id": "think-0", "object": "model", "created": 1, "owned_by": "mock"}]
            self.transport.write(response("200 OK", {"object": "list", "data": models}))

    def answer(self, body: bytes) -> None:
        upstream = self.upstream
        upstream.served["asked"] += 1
        named, most = MODEL.search(body), MOST.search(body)
        if named is None:
            self.transport.write(response("404 Not Found", {"error": {"message": "no such model"}}))
            self.busy = False
            return
        kind, wait = named[1].decode(), int(named[2]) / 1e3
        model = f"{kind}-{named[2].decode()}"
        stamp = STAMP.search(body) if upstream.journal is not None else None
        answer = Answer(self, int(most[1]) if most else 0, float(stamp[1]) if stamp else 0.0)
        streamed = STREAM.search(body) is not None
        if kind == "exact":
            self.exact(answer, model, wait, streamed)
            return
        if streamed:
            answer.chunks = upstream.stream(model, USAGE.search(body) is not None)
            first = answer.step
        else:
            data = upstream.whole(model, LOGPROBS.search(body) is not None)

            def first() -> None:
                answer.send_whole(data, COMPLETION)

        if wait == 0.0:
            first()
        else:
            upstream.alarm.at(time.monotonic() + wait, first)

    def exact(self, answer: Answer, model: str, wait: float, streamed: bool) -> None:
        """As many tokens as it may, however long that takes."""
        steps = -(-answer.most // STEP)
        if streamed:
            chunks = [chunk(model, " oak" * STEP) for _ in range(steps)]
            chunks[0] = STREAM_HEAD + chunks[0]
            end = chunk(model, "", "length") + chunk(model, "", used=answer.most)
            chunks[-1] += end + event(None) + b"0\r\n\r\n"
            answer.chunks, answer.wait = chunks, wait
            answer.step()
        else:
            data = whole(model, answer.most)
            moment = time.monotonic() + steps * wait
            self.upstream.alarm.at(moment, lambda: answer.send_whole(data, answer.most))


async def main(port: int, journal: Path | None) -> None:
    loop = asyncio.get_running_loop()
    told = None if journal is None else journal.open("a", buffering=1)
    upstream = Upstream(told)
    server = await loop.create_server(lambda: Connection(upstream), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--journal", type=Path)
    given = parser.parse_args()
    uvloop.run(main(given.port, given.journal))
