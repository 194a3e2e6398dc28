"""The ledger: exchanges appended durably, leaves verified, proofs; SQLite, and PostgreSQL where it is installed.

    .venv/bin/python benchmarks/ledger.py [--quick] [--json FILE]

An exchange is what `ask` writes for one question: the attempt, committed before it would be sent, and then its
answer: a leaf, the request and the response (1.2 kB of JSON together), the key it is found by, and the settled
attempt, committed again. Callers keep 1,024 of each under way, and a caller is told after the sync to disk.
Beside it: the same rows written by plain `sqlite3` into the same tables, in transactions as large and with
the same sync, but without hashing, salts, compression, canonical form or threads: the floor of any such ledger.
Each part runs in a process of its own. The log of 1,000,000 leaves for the proofs is of rows; what is verified
are exchanges with their texts, and rows.
"""

from __future__ import annotations

import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rows import Row, arguments, header, peak_memory, show

from stillhouse.ledger import Ledger, merkle
from stillhouse.ledger.writer import GROUP
from stillhouse.workspace import Workspace, init_workspace

SEED = 7
UNDER_WAY = 1024
EXCHANGES, ROWS, PROOFS = 100_000, 1_000_000, 2000
QUICK_EXCHANGES, QUICK_ROWS = 20_000, 100_000
WORDS = [
    "".join(random.Random(n).choices("etaoinshrdlucmfwypvbgk", k=2 + n % 8)) for n in range(4000)
]


def exchange(number: int, rng: random.Random) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """Key, leaf and texts of one question, as `ask` makes them."""
    key = f"{rng.getrandbits(256):064x}"
    told = " ".join(rng.choices(WORDS, k=40)), " ".join(rng.choices(WORDS, k=110))
    request = {"model": "teacher-1", "messages": [{"role": "user", "content": told[0]}], "max_tokens": 512}
    response = {
        "id": f"chatcmpl-{number:012d}",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": told[1]}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 62, "completion_tokens": 171, "total_tokens": 233},
    }
    leaf = {
        "key": key,
        "run": "bench-0123abcd",
        "stage": "collect",
        "prompt_id": f"p{number}",
        "attempt": number + 1,
        "decision": 0,
        "teacher": {"endpoint": "somewhere", "model": "teacher-1", "revision": "2026-11-01"},
        "sample": 0,
        "answered_by": "teacher-1",
        "fingerprint": None,
        "finish": "stop",
        "prompt_tokens": 62,
        "completion_tokens": 171,
        "nanodollars": 265_000,
        "milliseconds": 840,
    }
    return key, leaf, {"request": json.dumps(request).encode(), "response": json.dumps(response).encode()}


def busy() -> float:
    """Processor seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def append(ledger: Ledger, made: list[tuple[str, dict[str, Any], dict[str, bytes]]]) -> list[float]:
    """Write the exchanges; seconds from handing each answer over to hearing that it is on disk."""
    waits: list[float] = []
    begun: deque[Future[int]] = deque()
    answers: deque[Future[int]] = deque()

    def settle(number: int) -> None:
        _, leaf, texts = made[number]
        attempt, started = begun.popleft().result(), time.perf_counter()
        answer = ledger.answer(attempt, leaf, texts, 0.000265)
        answer.add_done_callback(lambda _: waits.append(time.perf_counter() - started))
        answers.append(answer)
        if len(answers) > UNDER_WAY:
            answers.popleft().result()

    for number, (key, _, _) in enumerate(made):
        begun.append(ledger.begin(key, "bench-0123abcd", f"p{number}", "teacher-1", 0, 0.001))
        if len(begun) > UNDER_WAY:
            settle(number - UNDER_WAY)
    for number in range(len(made) - len(begun), len(made)):
        settle(number)
    for answer in answers:
        answer.result()
    return waits


def appending(workspace: Workspace, count: int) -> dict[str, Any]:
    rng = random.Random(SEED)
    step = 20_000
    seconds = used = 0.0
    waits: list[float] = []
    peaks = []
    with Ledger.open(workspace) as ledger:
        for first in range(0, count, step):
            made = [exchange(number, rng) for number in range(first, min(first + step, count))]
            started, before = time.perf_counter(), busy()
            waits += append(ledger, made)
            seconds, used = seconds + time.perf_counter() - started, used + busy() - before
            peaks.append(peak_memory())
    cuts = quantiles(waits, n=100)
    return {"seconds": seconds, "busy": used, "p50": median(waits), "p99": cuts[98], "peaks": peaks}


def flooring(workspace: Workspace, count: int) -> dict[str, Any]:
    """The same rows by plain sqlite3, into the tables that the ledger has made."""
    Ledger.open(workspace).close()
    rng = random.Random(SEED)
    db = sqlite3.connect(workspace.ledger, isolation_level=None)
    db.execute("PRAGMA synchronous = FULL")
    rows = []
    for number in range(count):
        key, leaf, texts = exchange(number, rng)
        rows.append((number, bytes.fromhex(key), json.dumps(leaf).encode(), *texts.values()))
    now, some, salt = "2026-11-22T00:00:00.000000Z", bytes(32), bytes(32)
    started, before = time.perf_counter(), busy()
    for first in range(0, count, GROUP):
        group = rows[first : first + GROUP]
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT INTO attempt (id, key, run, prompt_id, teacher, sample_index, began, state)"
            " VALUES (?, ?, 'run', ?, 'teacher-1', 0, ?, 'open')",
            [(n + 1, key, f"p{n}", now) for n, key, *_ in group],
        )
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT INTO leaf VALUES (?, 'exchange', ?, ?, ?)", [(n, now, some, data) for n, _, data, *_ in group]
        )
        db.executemany(
            "INSERT INTO content (leaf, name, salt, body) VALUES (?, ?, ?, ?)",
            [(n, name, salt, text) for n, _, _, *two in group for name, text in zip("qr", two, strict=True)],
        )
        db.executemany("INSERT INTO exchange VALUES (?, ?)", [(key, n) for n, key, *_ in group])
        db.executemany(
            "UPDATE attempt SET state = 'answered', ended = ?, leaf = ? WHERE id = ?",
            [(now, n, n + 1) for n, *_ in group],
        )
        db.execute("COMMIT")
    return {"seconds": time.perf_counter() - started, "busy": busy() - before}


def verifying(workspace: Workspace, count: int) -> dict[str, Any]:
    with Ledger.open(workspace) as ledger:
        started, before = time.perf_counter(), busy()
        found = ledger.verify()
        seconds, used = time.perf_counter() - started, busy() - before
    assert found.ok, found
    return {"seconds": seconds, "busy": used, "leaves": found.size, "peak": peak_memory()}


def filling(workspace: Workspace, count: int) -> dict[str, Any]:
    with Ledger.open(workspace) as ledger:
        started, before = time.perf_counter(), busy()
        for first in range(0, count, 1000):
            ledger.append_many(
                ("row", {"run": "bench-0123abcd", "id": f"p{n}#0", "exchanges": [n], "split": "train"}, {})
                for n in range(first, min(first + 1000, count))
            )
        return {"seconds": time.perf_counter() - started, "busy": busy() - before, "peak": peak_memory()}


def proving(workspace: Workspace, count: int) -> dict[str, Any]:
    """Proofs that random leaves are in the log, each from the file anew; and that they hold."""
    rng = random.Random(SEED)
    taken = []
    with Ledger.open(workspace) as ledger:
        size, root = ledger.size(), ledger.root()
        for index in rng.sample(range(size), PROOFS):
            started = time.perf_counter()
            proof = ledger.inclusion(index, size)
            taken.append(time.perf_counter() - started)
            assert merkle.verify_inclusion(proof, index, size, ledger.leaf(index).hash, root)
    return {"p50": median(taken), "p99": quantiles(taken, n=100)[98], "leaves": size}


PARTS: dict[str, Callable[[Workspace, int], dict[str, Any]]] = {
    part.__name__: part for part in (appending, flooring, verifying, filling, proving)
}


def part(name: str, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", name, str(folder), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{name} {folder.name}: {done.stdout.strip()[:200]}", file=sys.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--part":
        print(json.dumps(PARTS[sys.argv[2]](init_workspace(Path(sys.argv[3])), int(sys.argv[4]))))
