"""Asks in batches as a process of its own, which can be told to die: `FOLDER URL COUNT [STEP]`.

A step is the moment before or after a request to the provider, or before or after a commit to the ledger; at
step STEP the process kills itself with SIGKILL. Without it, it prints how many steps it took, and its tally.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from stillhouse.ask import Habits, Limits, Question, Sampling, Tally, Teacher, ask_in_batches, results
from stillhouse.ask.questions import Part
from stillhouse.errors import StillhouseError
from stillhouse.ledger import Ledger
from stillhouse.ledger.writer import Writer
from stillhouse.models.endpoint import Endpoint
from stillhouse.money import Price
from stillhouse.records import Message
from stillhouse.workspace import Workspace

SAMPLING = Sampling(0.0, 1.0, 60)
LIMITS = Limits(concurrency=8, timeout=5.0, retries=1, max_failures=1.0)
HABITS = Habits(lines=15, first_wait=0.03, longest_wait=0.1, settling=0.3, patience=20.0)
PRICE, HALF = Price(1.0, 4.0), Price(0.5, 2.0)


def questions(count: int) -> list[Question]:
    return [Question(f"p{i}", (Message("user", f"question {i}"),)) for i in range(count)]


def teacher(url: str, priced: bool = True) -> Teacher:
    prices = (PRICE, HALF) if priced else (None, None)
    return Teacher("m", "somewhere", "r1", lambda: url, None, "", *prices)


def put(
    workspace: Workspace,
    asked: list[Question],
    whom: Teacher,
    limits: Limits = LIMITS,
    habits: Habits = HABITS,
) -> Tally:
    with Ledger.open(workspace) as ledger:
        return ask_in_batches([Part(whom, 0, asked)], SAMPLING, limits, ledger, "run", habits=habits)


def _die_at(fatal: int) -> list[int]:
    taken, lock = [0], threading.Lock()

    def step() -> None:
        with lock:
            taken[0] += 1
            if taken[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    exchange, commit = Endpoint.exchange, Writer._commit

    async def exchange_in_steps(self: Endpoint, *given: Any) -> Any:
        step()
        reply = await exchange(self, *given)
        step()
        return reply

    def commit_in_steps(self: Writer, group: Any) -> None:
        step()
        commit(self, group)
        step()

    Endpoint.exchange, Writer._commit = exchange_in_steps, commit_in_steps  # type: ignore[method-assign]
    results.AT_ONCE = 4
    return taken


if __name__ == "__main__":
    folder, url, count, *at = sys.argv[1:]
    taken = _die_at(int(at[0]) if at else 0)
    try:
        tally = put(Workspace(Path(folder)), questions(int(count)), teacher(url))
    except StillhouseError as error:
        print(json.dumps({"error": error.what, "why": error.why, "mend": error.mend}))
        sys.exit(error.exit_code)
    print(json.dumps({"steps": taken[0], "answered": tally.answered, "reused": tally.reused}))
