"""A search for accounts that act as one, in a process of its own, which nothing waits for.

It reads what each replica saw of the accounts of a month, and writes down what it found: a cluster, and in
the trail of each account that it was found there. The clusters of a month are looked for `LOOKS` times, by
whichever replica comes first.
"""

from __future__ import annotations

import hmac
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from random import Random
from typing import Any

import orjson

from stillhouse.errors import StillhouseError
from stillhouse.gateway import logs
from stillhouse.gateway.steps import Steps
from stillhouse.guard.clusters import LOOKS, clusters
from stillhouse.guard.config import Store
from stillhouse.guard.likeness import Sketch, joined

SECONDS = 1800.0  # that a search may take


def begin(store: Store, month: int, look: int, key: bytes) -> subprocess.Popen[bytes]:
    """A process that makes this search. What is drawn at random follows from the guard's key."""
    seed = hmac.digest(key, f"clusters {month} {look}".encode(), "sha256").hex()
    words = [sys.executable, "-m", "stillhouse.gateway.searching"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(orjson.dumps({"store": store.model_dump(), "month": month, "look": look, "seed": seed}))
    return process


def search(
    store: Store, month: int, look: int, seed: str, clock: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Find and record the clusters of a month; what the search says of itself. Raises StorageError and
    LedgerError."""
    began = clock()
    with closing(Steps(store)) as steps:
        sketches, unread = merged(steps.standings.findings.sketches(month))
        found = clusters(sketches, Random(seed), LOOKS, lambda: clock() - began > SECONDS)
        numbers = [steps.found(cluster, month, clock()) for cluster in found.clusters]
        told = {
            "accounts": len(sketches),
            "compared": found.compared,
            "too_few": found.too_few,
            "unread": unread,
            "groups": found.groups,
            "split": found.split,
            "left": found.left,
            "clusters": numbers,
        }
        steps.standings.findings.ended(month, look, clock(), told)
    return told


def merged(rows: list[tuple[str, bytes]]) -> tuple[dict[str, Sketch], int]:
    """A sketch of each account, joined of what the replicas saw; and how many rows cannot be read."""
    sketches: dict[str, Sketch] = {}
    unread = 0
    for account, row in rows:
        try:
            sketch = Sketch.unpacked(row)
        except ValueError:  # another version wrote it
            unread += 1
            continue
        held = sketches.get(account)
        sketches[account] = sketch if held is None else joined(held, sketch)
    return sketches, unread


def main() -> None:
    given = orjson.loads(sys.stdin.buffer.read())
    os.nice(19)
    search(Store.model_validate(given["store"]), given["month"], given["look"], given["seed"])


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # it is made again later
        if isinstance(error, StillhouseError):
            logs.say("a search for clusters failed", error=error.what, why=error.why)
        else:
            logs.fault(error)
        logs.flush()
        sys.exit(1)
