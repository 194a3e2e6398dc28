"""A console before real stores, served by uvicorn in a thread of its own.

with house(folder) as made:
    made.url, made.register(...), made.put(event, ...), made.log_in()
"""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import uvicorn
from starlette.applications import Starlette

from stillhouse.gateway.console import Console, Reading, console_routes
from stillhouse.gateway.console.doors import BROWSER, browser_cookie
from stillhouse.gateway.metrics import Metrics
from stillhouse.gateway.record import Record
from stillhouse.gateway.state import Gateway, Served
from stillhouse.gateway.store.accounts import Accounts
from stillhouse.gateway.store.changing import Act
from stillhouse.gateway.store.local import LocalCounts
from stillhouse.gateway.store.register import Register
from stillhouse.gateway.tracing import Traces
from stillhouse.gateway.upstream import Behind
from stillhouse.gateway.watcher import Watcher
from stillhouse.guard.accounts import mint
from stillhouse.guard.config import Guard
from stillhouse.guard.events import Event, Rate
from stillhouse.guard.lines import shipped
from stillhouse.guard.orders import NewAccount, NewKey
from stillhouse.guard.prices import steps_of

SECRET = "kQ7-vTz1_pX4rW9sLm2B-zc8Hd0eYaJ5uNf6"
PEPPER = b"the pepper of a test, which is long enough"
TOKEN = re.compile(r'name="token" value="([0-9a-f]{64})"')


def tree_of(folder: Path) -> dict[str, Any]:
    url = "http://127.0.0.1:9/v1"
    return {
        "store": {"folder": str(folder / "store")},
        "models": [
            {
                "name": "large",
                "upstreams": [{"url": url}, {"url": "http://127.0.0.1:11/v1"}],
                "price": "list",
            },
            {"name": "small", "upstreams": [{"url": url}], "limits": {"requests_per_minute": 6000}},
        ],
        "prices": {
            "list": {"steps": [{"input": 1.0, "output": 4.0}, {"over": 10**9, "input": 0.5, "output": 2}]}
        },
        "tiers": {
            "default": {
                "limits": {"requests_per_minute": 60, "output_tokens_per_day": 500_000, "concurrent": 8},
                "budget": 50.0,
            },
            "gold": {"models": ["*"], "limits": {"requests_per_minute": 600}, "prepaid": True},
        },
        "terms": {"version": "2026-10", "document": "terms.md", "training": "forbidden", "must_accept": True},
    }


class House:
    """`clock` moves the console's time on, in seconds."""

    def __init__(self, folder: Path, tree: dict[str, Any]) -> None:
        self.folder = folder
        self.pepper = PEPPER
        self.config = Guard.model_validate(tree)
        self.clock = 0.0
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.rates = {
            model.name: Rate(model.price, steps_of(model.price, self.config.prices[model.price]))
            if model.price
            else Rate()
            for model in self.config.models
        }
        self._up, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve()), daemon=True
        )

    async def _serve(self) -> None:
        store = self.config.store
        self.record = Record(store, self.config.record, self.rates, b"sealed under this")
        self.accounts = Accounts(store, PEPPER)
        self.counts = LocalCounts.open(Path(store.folder))
        self.reading = Reading(store)
        self.watching = Watcher(store, self.config.detection, shipped(), b"a key of the test, long enough")
        models = {
            model.name: Served(
                model, tuple(Behind(each, {}) for each in model.upstreams), *self.rates[model.name]
            )
            for model in self.config.models
        }
        self.gateway = Gateway(
            self.config,
            models,
            self.accounts,
            PEPPER,
            self.counts,
            self.record,
            Metrics(models),
            Traces(None),
            None,
            watching=self.watching,
        )
        self.console = Console(
            lambda: self.gateway,
            self.reading,
            SECRET,
            lambda what, **fields: self.said.append((what, fields)),
            lambda: time.time() + self.clock,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=console_routes(self.console)), port=0, log_level="error", lifespan="off"
            )
        )
        self.server = server
        self._up_soon = asyncio.create_task(self._tell(server))
        await server.serve()
        self.reading.close()
        await self.accounts.close()
        await self.counts.close()
        self.record.close()
        self.watching.close()

    async def _tell(self, server: uvicorn.Server) -> None:
        while not server.started:  # noqa: ASYNC110 - uvicorn tells it in no other way
            await asyncio.sleep(0.01)
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        self._up.set()

    def do(self, question: Callable[[Register, Act], Any], reason: str = "as asked", who: str = "Ada") -> Any:
        """In the register, as the operator `who`."""
        act = Act(who, time.time(), reason)
        made = self.accounts.order(lambda register: question(register, act))
        return asyncio.run_coroutine_threadsafe(made, self._loop).result(20)

    def run(self, coroutine: Any) -> Any:
        """In the event loop of the server."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def account(self, name: str = "a customer", **given: Any) -> str:
        return self.do(lambda register, act: register.add_account(act, NewAccount(name=name, **given))).id

    def key(self, account: str, **given: Any) -> tuple[str, str]:
        """Its id and its secret."""
        secret, digest, prefix = mint(PEPPER, secrets.token_bytes(32))
        order = NewKey(**given)
        made = self.do(lambda register, act: register.add_key(act, account, order, digest, prefix))
        return made.id, secret

    def put(self, *events: Event) -> None:
        for event in events:
            self.record.put(event)
        self.record.flush(20)

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **more)

    @contextmanager
    def log_in(self, name: str = "Grace Hopper") -> Iterator[httpx.Client]:
        """By a browser that was here before."""
        with self.client(cookies={BROWSER: browser_cookie(SECRET, secrets.token_hex(8))}) as client:
            done = client.post("/admin/login", data={"name": name, "secret": SECRET, "next": "/admin"})
            assert done.status_code == 303, done.text
            yield client


def token_in(page: str) -> str:
    found = TOKEN.search(page)
    assert found is not None
    return found.group(1)


def form_in(page: str) -> dict[str, str]:
    """The hidden fields of the form of an act."""
    form = page[page.index('<form class="act"') :]
    return dict(re.findall(r'type="hidden" name="([a-z_]+)" value="([^"]*)"', form))


@contextmanager
def house(folder: Path, tree: dict[str, Any] | None = None) -> Iterator[House]:
    made = House(folder, tree or tree_of(folder))
    made._thread.start()
    assert made._up.wait(20)
    try:
        yield made
    finally:
        made.server.should_exit = True
        made._thread.join(20)
        made._loop.close()
