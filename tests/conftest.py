"""A provider to ask, and a workspace to ask it from."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from provider import Handler, Provider, echo

from stillhouse.workspace import Workspace, init_workspace


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as the tests' are slower on two threads, on busy cores much slower; sums keep their
    order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def provider() -> Iterator[Callable[[Handler], Provider]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runners: list[web.AppRunner] = []

    def call(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    async def start(made: Provider) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", made.chat)
        app.router.add_post("/v1/completions", made.chat)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    def make(handler: Handler = echo) -> Provider:
        made = Provider(handler)
        call(start(made))
        return made

    yield make
    for runner in runners:
        call(runner.cleanup())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m"}]})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return init_workspace(tmp_path)
