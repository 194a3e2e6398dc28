"""A server for the gateway to stand before: what it does wrong is told by the model's name.

    with Behind() as behind:
        behind.url, behind.seen, behind.left

`whole` and any other name answer well, streamed or not, 20 words of a token each to a prompt of 7; of
`answer_tokens` where the request says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter

WORDS = 20
PROMPT = 7
LINE = 1 << 20


def chunk(told: object) -> bytes:
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def word(text: str = "word ") -> bytes:
    return chunk({"id": "c1", "choices": [{"index": 0, "delta": {"content": text}}]})


USAGE = {"prompt_tokens": PROMPT, "completion_tokens": WORDS, "total_tokens": PROMPT + WORDS}


class Behind:
    """Requests by model in `seen`, clients that left in the middle in `left`, bodies in `bodies`, headers in
    `heads`; `release` lets those go on that wait."""

    def __init__(self, port: int = 0) -> None:
        self.seen: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.heads: list[dict[str, str]] = []
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Behind:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._go.set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop, self._go = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", self.port, limit=1 << 24)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._stop.wait()
        server.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if first.startswith("GET"):
            await self._say(writer, 200, b'{"object":"list","data":[]}')
            return True
        body = json.loads(raw)
        self.bodies.append(body)
        self.heads.append(headers)
        model = body["model"]
        self.seen[model] += 1
        gone = asyncio.ensure_future(reader.read(1))
        answer = asyncio.ensure_future(self._answer(model, first.split()[1], body, writer))
        done, _ = await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
        if answer not in done:
            self.left[model] += 1
            gone.exception()  # a reset is a way to leave as well
            answer.cancel()
            return False
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await gone
        return await answer

    async def _say(self, writer, status: int, body: bytes, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async def _answer(self, model: str, path: str, body: dict, writer) -> bool:
        """False: the connection is closed."""
        if model == "hang":
            await self._go.wait()
        elif model == "close":
            return False
        elif model.startswith("status-"):
            error = {"error": {"message": "as it says", "type": "theirs", "param": "x", "code": "odd"}}
            await self._say(writer, int(model.removeprefix("status-")), json.dumps(error).encode())
            return True
        elif model == "no-json":
            await self._say(writer, 200, b"<html>")
            return True
        elif model == "half":
            writer.write(b'HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{"')
            await writer.drain()
            return False
        if body.get("stream"):
            return await self._stream(model, body, writer)
        text = "word " * WORDS
        told = {"id": "c1", "object": "chat.completion", "odd": {"kept": [1, 2.5, None]}, "usage": USAGE}
        told["choices"] = [{"index": 0, "message": {"role": "assistant", "content": text}, "text": text}]
        if path.endswith("embeddings"):
            told = {"object": "list", "data": [{"index": 0, "embedding": [0.5, 0.25]}]}
            told["usage"] = {"prompt_tokens": PROMPT, "total_tokens": PROMPT}
        if model == "silent-usage":
            del told["usage"]
        if "answer_tokens" in body:
            tokens = body["answer_tokens"]
            told["usage"] = {**USAGE, "completion_tokens": tokens, "total_tokens": PROMPT + tokens}
        if model == "overrun":
            told["usage"] = {**USAGE, "completion_tokens": 100_000}
        await self._say(writer, 200, json.dumps(told).encode())
        return True

    async def _stream(self, model: str, body: dict, writer) -> bool:
        writer.write(
            b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for number in range(WORDS):
            if number == 5:
                if model == "cut":
                    return False
                if model == "late-error":
                    await self._part(writer, chunk({"error": {"message": "out of memory", "code": 500}}))
                    return False
                if model == "stall":
                    await self._go.wait()
            if model == "long-lines":
                await self._part(writer, word("y" * LINE))
            elif model == "bad-utf8":
                await self._part(writer, b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n')
            else:
                await self._part(writer, word(f"w{number} "))
            if model == "slowly":
                await asyncio.sleep(0.05)
        if model == "no-end":
            writer.write(b"0\r\n\r\n")
            return True
        if (body.get("stream_options") or {}).get("include_usage") and model != "silent-usage":
            await self._part(writer, chunk({"id": "c1", "choices": [], "usage": USAGE}))
        await self._part(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _part(self, writer, data: bytes) -> None:
        writer.write(b"%x\r\n" % len(data) + data + b"\r\n")
        await writer.drain()
