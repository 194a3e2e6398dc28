"""A gateway as a process of its own, with an account and a key to ask it by."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from stillhouse.gateway.store.changing import Act
from stillhouse.gateway.store.place import pepper_of
from stillhouse.gateway.store.register import Register
from stillhouse.guard.accounts import mint
from stillhouse.guard.config import Guard
from stillhouse.guard.orders import NewAccount, NewKey

SECRET = "a-secret-of-the-operator-4711-with-length"
SERVE = """
import json, sys
from stillhouse.gateway import serve
from stillhouse.guard.config import Guard
read = lambda: Guard.model_validate_json(open(sys.argv[1]).read())
serve(read(), read, lambda url: print(url, flush=True))
"""
ASKED = "where is my order"
HELLO = [{"role": "user", "content": ASKED}]
LOOSE = {"requests_per_minute": 1_000_000, "output_tokens_per_minute": 10**9, "concurrent": 5000}


class Gate:
    """`url` with its /v1; `key` of the account `account`. `tree` can be changed before `reload`."""

    def __init__(self, folder: Path, tree: dict, **environ: str) -> None:
        self.folder, self.tree = folder, tree
        self.environ = {"STILLHOUSE_ADMIN_SECRET": SECRET, **environ}
        self._file = folder / "guard.json"
        self.write()
        self.account, self.key = self.new_key()
        self.url = ""

    @property
    def config(self) -> Guard:
        return Guard.model_validate(self.tree)

    def write(self) -> None:
        self._file.write_text(json.dumps(self.tree))

    def new_key(self, account: Mapping = {"name": "a customer"}, key: Mapping = {}) -> tuple[str, str]:
        store = self.config.store
        pepper = pepper_of(store, os.environ)
        register, act = Register(store, pepper), Act("the operator", time.time())
        try:
            made = register.add_account(act, NewAccount.model_validate(account))
            secret, digest, prefix = mint(pepper, secrets.token_bytes(32))
            register.add_key(act, made.id, NewKey.model_validate(key), digest, prefix)
        finally:
            register.close()
        return made.id, secret

    def start(self) -> None:
        command = [sys.executable, "-c", SERVE, str(self._file)]
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, env={**os.environ, **self.environ}
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url, (self.folder / "log").read_text()

    def stop(self, blow: int = signal.SIGTERM) -> int:
        self.process.send_signal(blow)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return code

    def reload(self) -> None:
        self.write()
        self.process.send_signal(signal.SIGHUP)

    def client(self, key: str | None = None, **more) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key if key is None else key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **more)


def tree_of(folder: Path, url: str, *models: str, **more) -> dict:
    """Settings for `models`, each called at the upstream as here."""
    served = [{"name": name, "upstreams": [{"url": url}], "max_output_tokens": 100} for name in models]
    tree = {
        "server": {"port": 0, "drain_seconds": 5},
        "store": {"folder": str(folder / "store")},
        "models": served,
        "tiers": {"default": {"limits": dict(LOOSE)}},
    }
    return tree | more


@contextmanager
def gate(folder: Path, tree: dict, **environ: str) -> Iterator[Gate]:
    made = Gate(folder, tree, **environ)
    made.start()
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.stop()


def ask(made, model, stream=False, key=None, **more):
    body = {"model": model, "messages": HELLO} | more
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    with made.client(key) as client:
        return client.post("/chat/completions", json=body)


def told(said):
    """Text, usage and whether the answer is whole."""
    if not said.headers["content-type"].startswith("text/event-stream"):
        found = said.json()
        return found["choices"][0]["message"]["content"], found["usage"], True
    events = [line.removeprefix("data: ") for line in said.text.split("\n\n") if line]
    parts = [json.loads(event) for event in events if event != "[DONE]"]
    text = "".join(c["delta"].get("content", "") for each in parts for c in each.get("choices", ()))
    usage = next((each["usage"] for each in parts if each.get("usage")), None)
    return text, usage, events[-1] == "[DONE]"
