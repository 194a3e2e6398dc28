"""The gateway of this project with everything on, for its benchmarks."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway_arms import MODELS, Arm, free_port, running, until_answers

MANY = 1_000_000_000  # a limit that is checked and never reached
ADMIN = "STILLHOUSE_ADMIN_SECRET"


def limits(**less: int) -> dict[str, int]:
    every = {f"{what}_per_{window}": MANY for what in MEASURES for window in ("minute", "day")}
    return every | {"concurrent": 100_000} | less


MEASURES = ("requests", "input_tokens", "output_tokens")


def settings(upstream_port: int, **more: Any) -> dict[str, Any]:
    """`guard.toml` with every limit of accounts and keys, a rising price, a budget, leaks as by default."""
    url = f"http://127.0.0.1:{upstream_port}/v1"
    steps = [{"over": 0, "input": 0.5, "output": 1.5}, {"over": 1_000_000_000, "input": 0.6, "output": 1.8}]
    told: dict[str, Any] = {
        "server": {"port": free_port()},
        "store": {"folder": "guard"},
        "models": [{"name": name, "upstreams": [{"url": url}], "price": "listed"} for name in MODELS],
        "prices": {"listed": {"steps": steps}},
        "tiers": {"default": {"limits": limits(), "key_limits": limits(), "budget": 1_000_000.0}},
    }
    return told | more


def toml(told: Mapping[str, Any]) -> str:
    """TOML whose values are inline, which for tables, lists, numbers and plain strings is nearly JSON."""
    return "".join(f"{name} = {_inline(value)}\n" for name, value in told.items())


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_inline(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)


@contextmanager
def serving(folder: Path, key: str, model: str = MODELS[0], **more: str) -> Iterator[Arm]:
    """The gateway of `folder/guard.toml`, which answers for the model when the block begins."""
    port = tomllib.loads((folder / "guard.toml").read_text())["server"]["port"]
    words = [sys.executable, "-m", "stillhouse.cli", "guard", "serve", "guard.toml"]
    with running(words, folder, **{ADMIN: secrets.token_urlsafe(32)} | more) as process:
        arm = Arm("stillhouse", port, key, process)
        until_answers(arm, folder, model=model)
        yield arm


@contextmanager
def stillhouse(folder: Path, upstream_port: int) -> Iterator[Arm]:
    folder.mkdir(parents=True)
    (folder / "guard.toml").write_text(toml(settings(upstream_port)))
    (key,) = customers(folder, 1)
    with serving(folder, key) as arm:
        yield arm


def customers(folder: Path, count: int, **less: int) -> list[str]:
    """Keys of so many new accounts of one organisation, each with the limits of its own that are given."""
    return [secret for _, secret in accounts(folder, count, **less)]


def accounts(folder: Path, count: int, **less: int) -> list[tuple[str, str]]:
    """The same with each account's id before its key."""
    from stillhouse.gateway.store.changing import Act
    from stillhouse.gateway.store.place import pepper_of
    from stillhouse.gateway.store.register import Register
    from stillhouse.guard.accounts import mint
    from stillhouse.guard.config import Limits
    from stillhouse.guard.orders import NewAccount, NewKey, NewOrganisation
    from stillhouse.guard.reading import read_config

    store = read_config(folder / "guard.toml").store
    pepper = pepper_of(store, os.environ)
    register = Register(store, pepper)
    act = Act("the benchmark", time.time())
    made = []
    try:
        owner = register.add_organisation(act, NewOrganisation(name="Customers"))
        for number in range(count):
            order = NewAccount(name=f"Customer {number}", organisation=owner.id, limits=Limits(**less))
            account = register.add_account(act, order)
            secret, digest, prefix = mint(pepper, secrets.token_bytes(32))
            register.add_key(act, account.id, NewKey(), digest, prefix)
            made.append((account.id, secret))
    finally:
        register.close()
    return made
