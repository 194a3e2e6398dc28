"""Events to record, and stores to record them in."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from postgres_server import Server

from stillhouse.gateway.record import Record
from stillhouse.guard import config
from stillhouse.guard.events import Event, Rate
from stillhouse.guard.limits import Step

RATES = {"m": Rate("list", (Step(0, 1000, 2000),)), "free": Rate()}
NOON = 1_795_348_800.0  # 2026-11-22 12:00 UTC
SECRET = b"a secret of thirty-two bytes....."


def event(n: int, **said: Any) -> Event:
    """Number n: a second after the one before it, for one of ten accounts."""
    plain: dict[str, Any] = {
        "id": f"req_{n:06}",
        "at": NOON + n,
        "organisation": f"o{n % 3}",
        "account": f"a{n % 10}",
        "key": f"k{n % 20}",
        "model": "m",
        "upstream": "http://127.0.0.1:1/v1",
        "route": "chat/completions",
        "stream": n % 2 == 0,
        "status": 200,
        "ended": "whole",
        "input_tokens": 10,
        "output_tokens": 5,
        "cost": 20_000,
        "first_byte": 0.01,
        "seconds": 0.5,
    }
    return Event(**plain | said)


def record(store: config.Store, **said: Any) -> Record:
    settings = said.pop("settings", config.Record())
    rates = said.pop("rates", RATES)
    return Record(store, settings, rates, SECRET, **{"replica": "one"} | said)


@contextlib.contextmanager
def schema_of(server: Server, folder: Path) -> Iterator[config.Store]:
    """A schema of its own on a server, gone afterwards."""
    import psycopg

    name = f"guard_{secrets.token_hex(4)}"
    url = f"{server.url}&options=-csearch_path%3D{name}"
    yield config.Store(folder=str(folder), database=url)
    with contextlib.closing(psycopg.connect(server.url, autocommit=True)) as db:
        db.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
