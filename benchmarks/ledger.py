"""The ledger: exchanges appended durably, leaves verified, proofs; in SQLite, and in PostgreSQL where it is.

    .venv/bin/python benchmarks/ledger.py [--quick] [--json FILE]

An exchange is what `ask` writes for one question: the attempt, committed before it would be sent, and then
its answer: a leaf, the request and the response (1.3 kB of JSON together), the key it is found by, and the
settled attempt, committed again. Callers keep 256 of each under way, and each is told after the sync to disk.
Beside it: the same rows written by plain `sqlite3` into the same tables, in transactions as large and with
the same sync, but without hashing, salts, compression, canonical form or threads: the floor of any such log.
Each part runs in a process of its own. The log of 1,000,000 leaves for the proofs is of rows; what is
verified are exchanges with their texts, and rows. PostgreSQL runs on the same machine as the program, with
half as many exchanges and a tenth of the rows; it has no targets.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from postgres_server import Unavailable, running
from rows import Row, arguments, header, peak_memory, show

from stillhouse.ledger import Ledger, merkle
from stillhouse.ledger.postgres import with_schema
from stillhouse.ledger.writer import GROUP
from stillhouse.workspace import Workspace, init_workspace

SEED = 7
UNDER_WAY = 256
STEP = 5_000
EXCHANGES, ROWS, PROOFS = 100_000, 1_000_000, 2000
QUICK_EXCHANGES, QUICK_ROWS = 20_000, 100_000
WORDS = ["".join(random.Random(n).choices("etaoinshrdlucmfwypvbgk", k=2 + n % 8)) for n in range(4000)]


def exchange(number: int, rng: random.Random) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """Key, leaf and texts of one question, as `ask` makes them."""
    key = f"{rng.getrandbits(256):064x}"
    told = " ".join(rng.choices(WORDS, k=40)), " ".join(rng.choices(WORDS, k=110))
    request = {"model": "teacher-1", "messages": [{"role": "user", "content": told[0]}], "max_tokens": 512}
    response = {
        "id": f"chatcmpl-{number:012d}",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": told[1]}, "finish_reason": "stop"}
        ],
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
    seconds = used = 0.0
    waits: list[float] = []
    peaks = []
    with Ledger.open(workspace) as ledger:
        for first in range(0, count, STEP):
            made = [exchange(number, rng) for number in range(first, min(first + STEP, count))]
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
            "INSERT INTO leaf VALUES (?, 'exchange', ?, ?, ?)",
            [(n, now, some, data) for n, _, data, *_ in group],
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


def importing(workspace: Workspace, count: int) -> dict[str, Any]:
    """Answers from elsewhere, without attempts, 1,000 in a transaction."""
    rng = random.Random(SEED)
    seconds = used = 0.0
    with Ledger.open(workspace) as ledger:
        for first in range(0, count, 1000):
            made = [exchange(number, rng) for number in range(first, min(first + 1000, count))]
            started, before = time.perf_counter(), busy()
            ledger.append_many(("import", leaf, texts) for _, leaf, texts in made)
            seconds, used = seconds + time.perf_counter() - started, used + busy() - before
    return {"seconds": seconds, "busy": used}


PARTS: dict[str, Callable[[Workspace, int], dict[str, Any]]] = {
    part.__name__: part for part in (appending, flooring, verifying, filling, proving, importing)
}


def run(name: str, folder: Path, count: int = 0) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", name, str(folder), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{name} in {folder.name}: {done.stdout.strip()}", file=sys.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def appended(name: str, folder: Path, count: int, floor: float | None) -> list[Row]:
    done = run("appending", folder, count)
    rate, peaks = count / done["seconds"], done["peaks"]
    what = f"{name}: questions recorded, attempt and answer"
    row = Row(what, rate, "exchanges/s")
    if floor is not None:
        row = Row(
            what,
            rate,
            "exchanges/s",
            peer="plain sqlite3, the same rows",
            peer_value=floor,
            ratio=rate / floor,
            target=">= 10,000",
            holds=rate >= 10_000,
        )
    return [
        row,
        Row(f"{name}: processor time of one", 1e6 * done["busy"] / count, "us"),
        Row(f"{name}: from answer to disk, median", 1000 * done["p50"], "ms"),
        Row(f"{name}: from answer to disk, 99th percentile", 1000 * done["p99"], "ms"),
        Row(f"{name}: peak memory at the end / half way", peaks[-1] / peaks[len(peaks) // 2 - 1], ""),
    ]


def imported(name: str, folder: Path, count: int) -> Row:
    done = run("importing", folder, count)
    return Row(f"{name}: answers imported, 1,000 at once", count / done["seconds"], "exchanges/s")


def verified(name: str, folder: Path, target: bool) -> list[Row]:
    done = run("verifying", folder)
    rate = done["leaves"] / done["seconds"]
    goal: dict[str, Any] = {"target": ">= 100,000", "holds": rate >= 100_000} if target else {}
    return [
        Row(f"{name}: verified", rate, "leaves/s", **goal),
        Row(f"{name}: peak memory of it", done["peak"] / 2**20, "MiB"),
    ]


def proved(name: str, folder: Path, target: bool) -> list[Row]:
    done = run("proving", folder)
    goal: dict[str, Any] = {"target": "< 1", "holds": done["p50"] < 0.001} if target else {}
    return [
        Row(f"{name}, {done['leaves']:,} leaves: inclusion proof, median", 1000 * done["p50"], "ms", **goal),
        Row(f"{name}: inclusion proof, 99th percentile", 1000 * done["p99"], "ms"),
    ]


def measure(folder: Path, exchanges: int, rows: int, url: str | None) -> list[Row]:
    floor = exchanges / run("flooring", folder / "plain", exchanges)["seconds"]
    found = appended("SQLite", folder / "sqlite", exchanges, floor)
    found += verified("SQLite, exchanges with their texts", folder / "sqlite", True)
    found.append(imported("SQLite", folder / "imported", exchanges))
    run("filling", folder / "rows", rows)
    found += verified("SQLite, rows", folder / "rows", True)
    found += proved("SQLite", folder / "rows", True)
    if url is not None:
        for name in ("asked", "more", "filled"):
            init_workspace(folder / f"postgres-{name}", with_schema(url))
        found += appended("PostgreSQL", folder / "postgres-asked", exchanges // 2, None)
        found += verified("PostgreSQL, exchanges with their texts", folder / "postgres-asked", False)
        found.append(imported("PostgreSQL", folder / "postgres-more", exchanges // 2))
        run("filling", folder / "postgres-filled", rows // 10)
        found += verified("PostgreSQL, rows", folder / "postgres-filled", False)
        found += proved("PostgreSQL", folder / "postgres-filled", False)
    return found


def main() -> None:
    options = arguments(__doc__ or "")
    size = (QUICK_EXCHANGES, QUICK_ROWS) if options.quick else (EXCHANGES, ROWS)
    with tempfile.TemporaryDirectory() as name:
        try:
            with running() as server:
                found = measure(Path(name), *size, server.url)
        except Unavailable as error:
            print(f"without PostgreSQL: {error}", file=sys.stderr)
            found = measure(Path(name), *size, None)
    show(header(SEED, ["stillhouse", "orjson", "zstandard", "psycopg"]), found, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        gc.set_threshold(50_000, 20, 100)  # as the command does
        print(json.dumps(PARTS[sys.argv[2]](init_workspace(Path(sys.argv[3])), int(sys.argv[4]))))
    else:
        main()
