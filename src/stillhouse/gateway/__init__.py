"""The gateway: an OpenAI-compatible server before other servers, which lets through what the guard allows."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.errors import UsageError
from stillhouse.guard.config import Guard

if TYPE_CHECKING:
    from stillhouse.gateway.app import Standing
    from stillhouse.gateway.proxy import Served

Reread = Callable[[], Guard]
Ready = Callable[[str], None]

WAITING = 4096  # connections that wait to be accepted
LOOK_SECONDS = 5.0  # between looks at servers that failed


def serve(config: Guard, reread: Reread | None = None, ready: Ready | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing new and let open answers end for `drain_seconds`.

    SIGHUP takes the settings that `reread` gives: models, prices, tiers and terms change at once for new
    requests; address and stores only by a restart. `ready` is called with the base URL once connections are
    accepted.

    Raises UsageError for settings that cannot be served, StoreDown for a store that cannot be had.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, reread, ready))


async def _serve(config: Guard, reread: Reread | None, ready: Ready | None) -> None:
    import uvicorn

    from stillhouse.gateway import logs
    from stillhouse.gateway.app import application
    from stillhouse.gateway.connections import Connection
    from stillhouse.models.serve import listen

    async with AsyncExitStack() as stack:
        standing = await _open(config, stack)
        listener = stack.enter_context(listen(config.server.host, config.server.port))
        if reread is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, standing, reread)
        watch = asyncio.create_task(_look_after(standing))
        stack.callback(watch.cancel)
        Connection.head_seconds = config.server.head_seconds
        settings = uvicorn.Config(
            application(standing),
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=config.server.connections,
            backlog=WAITING,
            timeout_keep_alive=int(config.server.keep_alive_seconds),
            timeout_graceful_shutdown=int(config.server.drain_seconds),
        )
        server = uvicorn.Server(settings)
        if ready is not None:
            host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
            ready(f"http://{host}:{listener.getsockname()[1]}/v1")
        logs.say("started", models=list(standing.gateway.models))
        await server.serve(sockets=[listener])
        standing.draining = True
        logs.say("stopped")


async def _open(config: Guard, stack: AsyncExitStack) -> Standing:
    """Everything that is held open while serving, each closed in turn at the end."""
    import aiohttp

    from stillhouse.gateway.admin import admin_app
    from stillhouse.gateway.app import Standing
    from stillhouse.gateway.metrics import Metrics
    from stillhouse.gateway.proxy import Gateway
    from stillhouse.gateway.record import open_record
    from stillhouse.gateway.store.accounts import open_accounts
    from stillhouse.gateway.store.counts import open_counts

    folder = Path(config.store.folder)
    secret = os.environ.get(config.server.admin_secret_env, "")
    accounts = await open_accounts(config.store)
    stack.push_async_callback(accounts.close)
    counts = await open_counts(config.store)
    stack.push_async_callback(counts.close)
    record = open_record(config, folder)
    stack.callback(record.close)
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0, ttl_dns_cache=60),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            headers={"user-agent": "stillhouse", "accept-encoding": "identity"},
            read_bufsize=1 << 18,
        )
    )
    metrics = Metrics(model.name for model in config.models)
    models = served(config, os.environ)
    gateway = Gateway(config, models, accounts, pepper, counts, record, metrics, session)
    return Standing(gateway, secret.encode(), documents(config))


def served(config: Guard, environ: Mapping[str, str]) -> dict[str, Served]:
    """The models with their servers and the keys of these. Raises UsageError for a key that is not there."""
    from stillhouse.gateway.proxy import Served
    from stillhouse.gateway.upstream import Behind
    from stillhouse.guard.subjects import steps_of

    models = {}
    for model in config.models:
        behind = []
        for each in model.upstreams:
            headers = {}
            if each.key_env is not None:
                key = environ.get(each.key_env, "")
                if not key:
                    raise UsageError(
                        f"no key for {each.url}",
                        f"the variable {each.key_env} is not set",
                        "set it, or leave out `key_env` for a server that wants none",
                    )
                headers["authorization"] = f"Bearer {key}"
            behind.append(Behind(each, headers))
        steps = steps_of(config.prices[model.price]) if model.price is not None else ()
        models[model.name] = Served(model, tuple(behind), model.price or "", steps)
    return models


def _reload(standing: Standing, reread: Reread) -> None:
    """The new settings if they can be served, else the old ones and a word in the log."""
    from stillhouse.errors import StillhouseError
    from stillhouse.gateway import logs

    old = standing.gateway
    try:
        config = reread()
        if config.store != old.config.store or config.server != old.config.server:
            config = config.model_copy(update={"store": old.config.store, "server": old.config.server})
            logs.say("reload", note="`server` and `store` change by a restart only")
        fresh = replace(
            old,
            config=config,
            models=served(config, os.environ),
            metrics=Metrics(model.name for model in config.models),
        )
        standing.documents = documents(config)
        standing.gateway = fresh
    except StillhouseError as error:
        logs.say("reload refused", what=error.what, why=error.why)
        return
    logs.say("reloaded", models=list(standing.gateway.models))


async def _look_after(standing: Standing) -> None:
    """Look at servers that failed until they are back, so that no request has to try."""
    from stillhouse.gateway import upstream

    while True:
        await asyncio.sleep(LOOK_SECONDS)
        gateway = standing.gateway
        ill = [each for model in gateway.models.values() for each in model.behind if each.failures]
        for each in ill:
            if await upstream.look(gateway.session, each):
                each.well()
