"""stillhouse's collect stage as its user runs it: a workspace, a recipe, the command, the ledger's file."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

# A name such as a real provider has: a server on its own machine stillhouse paces by latency instead of by
# limits. RFC 6761 keeps `.test` free, so only the launcher below resolves it.
HOST = "provider.test"
LAUNCH = f"""
import socket, sys
resolve = socket.getaddrinfo
names = ({HOST!r}, {HOST.encode()!r})
socket.getaddrinfo = lambda host, *a, **k: resolve("127.0.0.1" if host in names else host, *a, **k)
sys.argv[0] = "stillhouse"
from stillhouse.cli import main
main()
"""


def write_prompts(path: Path, count: int, size: int = 300) -> None:
    """Prompts of about `size` bytes; each begins with its id."""
    with path.open("w") as file:
        for number in range(count):
            text = (
                f"p{number:07d} Explain in a few sentences what happens in step {number} of a long process. "
            )
            text += "Name what goes in, what comes out and what may go wrong on the way. " * (size // 80)
            file.write(json.dumps({"id": text[:8], "prompt": text[:size]}) + "\n")


def write_workspace(
    folder: Path, port: int, price: tuple[float, float] | None = None, **collect: float
) -> None:
    """A recipe over `prompts.jsonl` of the folder; `collect` are keys of its table [collect]."""
    folder.mkdir(exist_ok=True)
    (folder / "terms.txt").write_text("Answers may be used to train models.\n")
    lines = ["[run]", 'name = "bench"', "[teacher]", 'model = "m"', f'endpoint = "http://{HOST}:{port}/v1"']
    lines += ["[teacher.terms]", 'document = "terms.txt"', "read_on = 2026-11-20", 'declared_by = "bench"']
    if price is not None:
        lines += ["[teacher.price]", f"input = {price[0]}", f"output = {price[1]}"]
    lines += ["[prompts]", 'source = "prompts.jsonl"', "[student]", 'init = "config"']
    lines += ["[evaluate]", "held_out = 0.0", "[collect]"]
    lines += [f"{name} = {value}" for name, value in collect.items()]
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n")


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", LAUNCH, *words]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """`stillhouse collect` in the folder; its output goes to `out.json` and `err.txt`, which are replaced."""
    with (folder / "out.json").open("wb") as out, (folder / "err.txt").open("wb") as err:
        words = command("collect", "recipe.toml", "--json")
        return subprocess.Popen(words, cwd=folder, stdout=out, stderr=err)


def said(folder: Path, *words: str) -> dict[str, Any]:
    """What another `stillhouse ... --json` prints."""
    done = subprocess.run(command(*words, "--json"), cwd=folder, capture_output=True, check=True)
    return dict(orjson.loads(done.stdout))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of the ledger's attempts. `microdollars` is what the answer's leaf says that it cost, which the
    leaf gives in billionths of a dollar."""

    id: int
    asked: tuple[str, int]  # prompt, sample
    state: str
    reason: str | None
    leaf: int | None
    microdollars: float | None


def _microdollars(leaf: bytes) -> float | None:
    cost = orjson.loads(leaf)["body"]["nanodollars"]
    return None if cost is None else cost / 1000


def read_attempts(folder: Path) -> tuple[list[Attempt], int]:
    """All attempts in the order in which they were begun, and the number of exchange leaves, straight from
    the ledger's file, without stillhouse."""
    path = folder / ".stillhouse" / "ledger.sqlite"
    if not path.exists():
        return [], 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempt'").fetchone():
            return [], 0
        rows = db.execute(
            "SELECT a.id, a.prompt_id, a.sample_index, a.state, a.reason, a.leaf, l.data"
            " FROM attempt a LEFT JOIN leaf l ON l.idx = a.leaf ORDER BY a.id"
        ).fetchall()
        leaves = db.execute("SELECT count(*) FROM leaf WHERE kind = 'exchange'").fetchone()[0]
    finally:
        db.close()
    attempts = [
        Attempt(n, (prompt, sample), state, reason, leaf, data and _microdollars(data))
        for n, prompt, sample, state, reason, leaf, data in rows
    ]
    return attempts, leaves
