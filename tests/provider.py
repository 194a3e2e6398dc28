"""A real HTTP server that plays a provider, well-behaved or not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Handler = Callable[[dict[str, Any], int], Awaitable[web.StreamResponse]]


@dataclass
class Provider:
    """Counts what it is asked; `handler(body, number of the request)` answers. Runs on its own thread."""

    handler: Handler
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    in_flight: int = 0
    most_in_flight: int = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.handler(body, len(self.bodies))
        finally:
            self.in_flight -= 1

    @property
    def asked(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]


def answer(
    text: str,
    prompt_tokens: int = 10,
    completion_tokens: int = 5,
    model: str = "m-1",
    fingerprint: str | None = None,
) -> web.Response:
    message = {"role": "assistant", "content": text}
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    said = {"id": "x", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
    return web.json_response(said if fingerprint is None else {**said, "system_fingerprint": fingerprint})


async def echo(body: dict[str, Any], number: int) -> web.Response:
    return answer("answer to " + body["messages"][-1]["content"])


@contextmanager
def serving() -> Iterator[Callable[[web.Application], str]]:
    """Serves applications on a thread of its own until the block ends; each call gives the base URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runners: list[web.AppRunner] = []

    def call(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    async def start(app: web.Application) -> str:
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    yield lambda app: call(start(app))
    for runner in runners:
        call(runner.cleanup())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@contextmanager
def providers() -> Iterator[Callable[[Handler], Provider]]:
    """Makes providers that answer until the block ends."""
    with serving() as start:

        def make(handler: Handler = echo) -> Provider:
            made = Provider(handler)
            app = web.Application()
            app.router.add_post("/v1/chat/completions", made.chat)
            app.router.add_post("/v1/completions", made.chat)
            app.router.add_get("/v1/models", models)
            made.url = start(app)
            return made

        yield make


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m"}]})
