"""The gateway: an OpenAI-compatible server before other servers, which lets through what the guard allows."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, closing, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import UsageError, storage
from stillhouse.gateway import logs
from stillhouse.guard.config import Guard, Store, Upstream

if TYPE_CHECKING:
    import uvicorn

    from stillhouse.gateway.admin import Period
    from stillhouse.gateway.app import Standing
    from stillhouse.gateway.state import Served
    from stillhouse.gateway.store.counts import Counts
    from stillhouse.gateway.upstream import Behind
    from stillhouse.guard.events import Rate

Reread = Callable[[], Guard]
Ready = Callable[[str], None]

WAITING = 4096  # connections that wait to be accepted
OWN_FILES = (
    128  # or a quarter of all, for stores and for servers behind: else none that is let in is answered
)
END_SECONDS = 5.0  # for what was cut off at the end to be counted
LOOK_SECONDS = 5.0  # between looks at servers that failed


def serve(config: Guard, reread: Reread | None = None, ready: Ready | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing new and let open answers end for `drain_seconds`.

    SIGHUP takes the settings that `reread` gives: models, prices, tiers and terms change at once for new
    requests; address and stores only by a restart. `ready` is called with the base URL once connections are
    accepted.

    Raises UsageError for settings that cannot be served, StoreDown for a store that cannot be had.
    """
    import uvloop

    refuse_wrong(config)
    files = _open_many()
    connections = min(config.server.connections, files - max(files // 4, OWN_FILES))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, reread, ready, connections))


def _open_many() -> int:
    """As many files as this process may open: each connection is one, and many begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def refuse_wrong(config: Guard) -> None:
    """Raises UsageError for settings that cannot be served on this machine."""
    from stillhouse.guard.reading import check

    wrong = [finding for finding in check(config, os.environ) if finding.level == "error"]
    if wrong:
        first, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UsageError(f"{first.what}{more}", first.where, first.mend)


async def _serve(config: Guard, reread: Reread | None, ready: Ready | None, connections: int) -> None:
    import uvicorn
    from starlette.applications import Starlette

    from stillhouse.gateway.admin import Api, admin_routes
    from stillhouse.gateway.app import application
    from stillhouse.gateway.connections import Connection
    from stillhouse.gateway.console import Console, Reading, console_routes
    from stillhouse.models.serve import listen

    async with AsyncExitStack() as stack:
        standing = await _open(config, stack)
        gateway = standing.gateway
        secret = standing.admin_secret.decode()

        async def usage(period: Period) -> dict[str, Any]:
            return await asyncio.to_thread(_used, config.store, period)

        reading = Reading(config.store)
        stack.callback(reading.close)
        console = Console(lambda: standing.gateway, reading, secret, logs.say)
        api = Api(
            gateway.accounts,
            lambda: standing.gateway.config,
            gateway.pepper,
            secret,
            usage,
            gateway.record.erase,
            gateway.forget,
            steps=gateway.watching.do if gateway.watching is not None else None,
        )
        listener = stack.enter_context(listen(config.server.host, config.server.port))
        host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
        standing.origin = f"http://{host}:{listener.getsockname()[1]}"
        standing.documents = documents(config, standing.origin)
        if reread is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, standing, reread)
        watch = asyncio.create_task(_look_after(standing))
        stack.callback(watch.cancel)
        Connection.head_seconds = config.server.head_seconds
        Connection.idle_seconds = config.server.keep_alive_seconds
        Connection.most = connections
        settings = uvicorn.Config(
            application(standing, Starlette(routes=[*admin_routes(api), *console_routes(console)])),
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=WAITING,
            timeout_keep_alive=int(config.server.keep_alive_seconds),
            timeout_graceful_shutdown=int(config.server.drain_seconds),
        )
        server = uvicorn.Server(settings)
        # uvicorn's own way ends the process by the same signal before what is open here is closed
        server.capture_signals = nullcontext  # type: ignore[assignment, method-assign]
        for end in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(end, _end, server, standing, end)
        if ready is not None:
            ready(f"{standing.origin}/v1")
        logs.say("started", models=", ".join(gateway.models), connections=connections)
        await server.serve(sockets=[listener])
        if rest := server.server_state.tasks | standing.gateway.late:  # cut off, and still to be counted
            await asyncio.wait(rest, timeout=END_SECONDS)
        logs.say("stopped")


def _used(store: Store, period: Period) -> dict[str, Any]:
    from stillhouse.gateway.store.events import Events
    from stillhouse.guard.events import number_of
    from stillhouse.guard.invoices import usage_rows

    today = datetime.now(UTC).date()
    first, last = period.since or today.replace(day=1), period.until or today
    with closing(Events(store)) as events:
        found = events.usage(number_of(first), number_of(last), period.account, period.organisation)
    return {"since": first.isoformat(), "until": last.isoformat(), "usage": usage_rows(found)}


def _end(server: uvicorn.Server, standing: Standing, sign: int) -> None:
    """Once: take nothing new and wait for what is open; twice: wait no longer."""
    standing.draining = True
    server.handle_exit(sign, None)


async def _open(config: Guard, stack: AsyncExitStack) -> Standing:
    """Everything that is held open while serving, each closed in turn at the end."""
    import aiohttp

    from stillhouse.gateway.app import Standing
    from stillhouse.gateway.cascade_figures import CascadeFigures
    from stillhouse.gateway.metrics import Metrics
    from stillhouse.gateway.record import Record
    from stillhouse.gateway.state import Gateway
    from stillhouse.gateway.store.accounts import Accounts
    from stillhouse.gateway.store.place import evidence_key, pepper_of, replica_of, sealing_key
    from stillhouse.gateway.tracing import Traces
    from stillhouse.gateway.upstream import Resolver
    from stillhouse.gateway.watcher import Watcher
    from stillhouse.guard.lines import read_lines

    stack.callback(logs.flush)
    others = logs.Others(logging.WARNING)
    for name in ("uvicorn", "asyncio", "aiohttp"):
        logging.getLogger(name).addHandler(others)
        stack.callback(logging.getLogger(name).removeHandler, others)
    traces = Traces(config.record.traces)
    stack.callback(traces.close)
    metrics = Metrics(model.name for model in config.models)
    pepper = pepper_of(config.store, os.environ)
    accounts = Accounts(config.store, pepper)
    stack.push_async_callback(accounts.close)
    counts = await _counts(config, stack)
    record = Record(
        config.store,
        config.record,
        rates(config),
        sealing_key(pepper),
        replica=replica_of(config.store),
        log=logs.say,
        stored=lambda seconds: metrics.stored("events", seconds),
    )
    stack.callback(record.close)
    metrics.watch(record)
    watching = Watcher(
        config.store,
        config.detection,
        read_lines(config.detection.thresholds),
        evidence_key(pepper),
        log=logs.say,
    )
    stack.callback(watching.close)
    metrics.watch_accounts(watching)
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=60.0, ttl_dns_cache=60, resolver=Resolver()
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "stillhouse", "accept-encoding": "identity"},
            read_bufsize=1 << 18,
        )
    )
    secret = os.environ.get(config.server.admin_secret_env, "")
    models = models_of(config, os.environ)
    gateway = Gateway(
        config, models, accounts, pepper, counts, record, metrics, traces, session, watching=watching
    )
    standing = Standing(gateway, secret.encode())
    metrics.show(CascadeFigures(lambda: standing.gateway.models))
    return standing


async def _counts(config: Guard, stack: AsyncExitStack) -> Counts:
    from stillhouse.gateway import rebuilding

    if config.store.redis is None:
        from stillhouse.gateway.store.local import LocalCounts

        local = LocalCounts.open(Path(config.store.folder))
        stack.push_async_callback(local.close)
        if local.new:
            await rebuilding.rebuild(local, config.store, time.time)
        return local
    from stillhouse.gateway.store.redis import RedisCounts

    counts = RedisCounts(config.store.redis, durable=config.store.redis_durable)
    stack.push_async_callback(counts.close)
    watch = asyncio.create_task(rebuilding.keep_whole(counts, config.store, time.time))
    stack.callback(watch.cancel)
    return counts


def rates(config: Guard) -> dict[str, Rate]:
    """By what each model is charged."""
    from stillhouse.guard.events import Rate
    from stillhouse.guard.prices import steps_of

    charged = {model.name: model.price for model in config.models}
    return {
        name: Rate() if price is None else Rate(price, steps_of(price, config.prices[price]))
        for name, price in charged.items()
    }


def documents(config: Guard, origin: str) -> dict[str, tuple[bytes, bytes]]:
    """What is served to anybody, by path: its content type and its bytes."""
    import orjson

    from stillhouse.gateway import openapi
    from stillhouse.gateway.admin import openapi_paths
    from stillhouse.guard.marking import disclosed
    from stillhouse.guard.offer import document
    from stillhouse.terms.offered import WELL_KNOWN

    found = {"/openapi.json": (b"application/json", orjson.dumps(openapi.document(openapi_paths())))}
    if config.terms is not None:
        path = Path(config.terms.document)
        with storage("read the terms", path):
            text = path.read_bytes()
        digest, where = sha256(text).hexdigest(), config.server.public_url or origin
        said = document(config.terms, config.record, digest, where, disclosed(config))
        found["/terms"] = (b"text/plain; charset=utf-8", text)
        found[WELL_KNOWN] = (b"application/json", orjson.dumps(said))
    return found


def models_of(config: Guard, environ: Mapping[str, str]) -> dict[str, Served]:
    """The models with their servers, the keys of these and those of marks. Raises UsageError for a key that
    is not there."""
    from stillhouse.gateway import cascading
    from stillhouse.gateway.state import Served
    from stillhouse.guard.reading import marking_key

    charged = rates(config)
    models = {}
    for model in config.models:
        student = None
        if model.cascade is not None:
            student = cascading.opened(model.cascade, _behind(model.cascade.upstreams, environ))
        behind = _behind(model.upstreams, environ)
        key = None if model.watermark is None else marking_key(model.watermark)
        models[model.name] = Served(model, behind, *charged[model.name], student, key)
    return models


def _behind(upstreams: Sequence[Upstream], environ: Mapping[str, str]) -> tuple[Behind, ...]:
    from stillhouse.gateway.upstream import Behind

    behind = []
    for each in upstreams:
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
    return tuple(behind)


def _reload(standing: Standing, reread: Reread) -> None:
    """The new settings if they can be served, else the old ones and a word in the log."""
    from stillhouse.errors import StillhouseError
    from stillhouse.gateway import cascading
    from stillhouse.guard.lines import read_lines

    old = standing.gateway
    try:
        config = reread()
        if config.store != old.config.store or config.server != old.config.server:
            config = config.model_copy(update={"store": old.config.store, "server": old.config.server})
            logs.say("reload", note="`server` and `store` change by a restart only")
        refuse_wrong(config)
        lines = read_lines(config.detection.thresholds)
        fresh = replace(old, config=config, models=models_of(config, os.environ))
        cascading.go_on(old.models, fresh.models)
        standing.documents = documents(config, standing.origin)
        old.metrics.serve(model.name for model in config.models)
        old.record.apply(config.record, rates(config))
        if old.watching is not None:
            old.watching.apply(config.detection, lines)
        standing.gateway = fresh
    except StillhouseError as error:
        logs.say("reload refused", error=error.what, why=error.why)
        return
    except ValueError as error:
        logs.say("reload refused", error="the settings are wrong", why=str(error))
        return
    logs.say("reloaded", models=", ".join(standing.gateway.models))


async def _look_after(standing: Standing) -> None:
    """Look at servers that failed until they are back, so that no request has to try."""
    from stillhouse.gateway import upstream

    while True:
        await asyncio.sleep(LOOK_SECONDS)
        gateway = standing.gateway
        served = gateway.models.values()
        students = [each for model in served if model.cascade is not None for each in model.cascade.behind]
        ill = [each for model in served for each in model.behind if each.failures]
        ill += [each for each in students if each.failures]
        found = await asyncio.gather(
            *(upstream.look(gateway.session, each) for each in ill), return_exceptions=True
        )
        for each, answers in zip(ill, found, strict=True):
            if isinstance(answers, Exception):
                logs.fault(answers)
            elif answers is True:
                each.well()
