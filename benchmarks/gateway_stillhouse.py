"""The gateway of this project with everything on, for its benchmarks."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
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
    """`guard.toml` with every limit, a rising price, a budget and the policy of leaks as it is by default."""
    url = f"http://127.0.0.1:{upstream_port}/v1"
    steps = [{"over": 0, "input": 0.5, "output": 1.5}, {"over": 1_000_000_000, "input": 0.6, "output": 1.8}]
    told: dict[str, Any] = {
        "server": {"port": free_port()},
        "store": {"folder": "guard"},
        "models": [
            {"name": name, "upstreams": [{"url": url}], "price": "listed", "limits": limits()}
            for name in MODELS
        ],
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


def guard(folder: Path, *words: str) -> str:
    """What a command of `stillhouse guard` says. Raises CalledProcessError."""
    return subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", "guard", *words],
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    ).stdout


@contextmanager
def stillhouse(folder: Path, upstream_port: int) -> Iterator[Arm]:
    folder.mkdir(parents=True)
    told = settings(upstream_port)
    (folder / "guard.toml").write_text(toml(told))
    key = customer(folder)
    words = [sys.executable, "-m", "stillhouse.cli", "guard", "serve", "guard.toml"]
    with running(words, folder, **{ADMIN: secrets.token_urlsafe(32)}) as process:
        arm = Arm("stillhouse", told["server"]["port"], key, process)
        until_answers(arm, folder)
        yield arm


def customer(folder: Path) -> str:
    """An organisation, an account and a key of it: the secret."""
    raise NotImplementedError
