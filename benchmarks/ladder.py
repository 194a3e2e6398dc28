"""What it costs the gateway to watch its accounts: memory of each live one, CPU of each request.

    .venv/bin/python benchmarks/ladder.py [--quick] [--json FILE]

One process holds 100,000 accounts, each with evidence of real texts as simulated accounts ask them; the
store lies in memory, since its speed is not in question. CPU is that of the whole process, the queue, the
thread and the writing of evidence included, and the parsing of the request not, which the gateway does in any
case.
`--quick` holds a tenth of the accounts.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gateway_arms import resident
from rows import DATA, Row, arguments, header, need, show

from stillhouse.gateway.watching import WAITING, Watching
from stillhouse.guard.config import Detection, Store
from stillhouse.guard.evidence import SIZE as EVIDENCE
from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.likeness import SIZE as SKETCH
from stillhouse.guard.likeness import Sketch, note
from stillhouse.guard.lines import shipped
from stillhouse.guard.scoring import score
from stillhouse.guard.scoring import shipped as shipped_weights
from stillhouse.guard.seen import seen_of

SEED = 8
ACCOUNTS, QUICK_ACCOUNTS = 100_000, 10_000
EACH = 2  # requests of each account
FEW = 100  # accounts that ask most
ROUNDS = 7  # the fastest of so many: each of all the texts, or of that part of the accounts
SHORT = Path("/dev/shm")
AT = 1_790_000_000.0
Asked = tuple[dict[str, Any], int]


def texts() -> list[Asked]:
    """Requests of simulated accounts of every ordinary kind, with the tokens of their answers."""
    from traffic.people import people, requests

    found: list[Asked] = []
    for person in people("calibrate", SEED, 200):
        if person.side == "ordinary":
            found += [
                (each.body(), each.output_tokens) for each in islice(requests(person, "calibrate", SEED), 20)
            ]
    return found


def alone(bodies: Sequence[Asked]) -> float:
    """CPU seconds of the detector by itself, for these requests of as many accounts as ask most."""
    held, weights, key = [(Evidence(), Sketch()) for _ in range(FEW)], shipped_weights(), bytes(32)
    began = time.process_time()
    for number, (body, tokens) in enumerate(bodies):
        evidence, sketch = held[number % FEW]
        seen = seen_of(key, body, "chat/completions", tokens, AT + number)
        use = observe(evidence, seen)
        note(sketch, evidence, seen, str(body["model"]))
        score(evidence, use, weights)
    return time.process_time() - began


def asked(watching: Watching, names: Sequence[str], count: int, bodies: Sequence[Asked]) -> float:
    """CPU seconds of so many requests of these accounts, in turn, until they are observed and stored."""
    began = time.process_time()
    for number in range(count):
        body, tokens = bodies[number % len(bodies)]
        watching.put(names[number % len(names)], "chat/completions", body, tokens, AT + number, 1000)
        if number % (WAITING // 2) == 0:
            watching._worker.flush()
    watching.flush()
    return time.process_time() - began


def cost(accounts: int) -> list[Row]:
    bodies = texts()
    names = [f"acct_{number:016x}" for number in range(accounts)]
    gc.set_threshold(50_000, 20, 100)  # as in the process in which accounts are watched
    with tempfile.TemporaryDirectory(dir=SHORT if SHORT.is_dir() else None) as name:
        store = Store(folder=str(Path(name) / "guard"))
        watching = Watching(store, Detection(), shipped(), b"the benchmark's key, of 32 bytes")
        try:
            asked(watching, names[:FEW], len(bodies), bodies)
            rounds = [
                (asked(watching, names[:FEW], len(bodies), bodies), alone(bodies)) for _ in range(ROUNDS)
            ]
            busy, detector = (min(times) / len(bodies) for times in zip(*rounds, strict=True))
            gc.collect()
            start = resident(os.getpid())
            parts = [names[number::ROUNDS] for number in range(ROUNDS)]
            spread = min(
                asked(watching, part, EACH * len(part), bodies) / (EACH * len(part)) for part in parts
            )
            gc.collect()
            held = resident(os.getpid())
            missed = watching.unobserved.total()
        finally:
            watching.close()
    each = (held - start) / (accounts - FEW)
    return [
        Row("memory with no account but a hundred", start / 1e6, "MB"),
        Row(f"memory with {accounts:,} accounts", held / 1e6, "MB"),
        Row("memory of a live account", each, "bytes", target="<= 4,096", holds=each <= 4096),
        Row("evidence and sketch of an account in the store", EVIDENCE + SKETCH, "bytes"),
        Row(
            f"CPU of a request, {FEW} busy accounts",
            1e6 * busy,
            "us",
            peer="the detector alone",
            peer_value=1e6 * detector,
            ratio=busy / detector,
            target="<= 150",
            holds=busy <= 150e-6,
        ),
        Row(
            f"CPU of a request, {accounts:,} accounts that ask {EACH} times",
            1e6 * spread,
            "us",
            target="<= 150",
            holds=spread <= 150e-6,
        ),
        Row("requests not observed", missed, ""),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    need(DATA / "traffic")
    rows = cost(QUICK_ACCOUNTS if options.quick else ACCOUNTS)
    show(header(SEED, ["stillhouse"]), rows, options.json)


if __name__ == "__main__":
    main()
