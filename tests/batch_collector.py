"""Asks in batches as a process of its own, which can be told to die: `FOLDER URL COUNT [MOMENT NUMBER]`.

A moment is `before` or `after` a kind of request to the provider, or a commit to the ledger; the NUMBERth
time that it comes to MOMENT the process kills itself with SIGKILL. If it lives it prints how often it came to
each, and its tally.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter
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
    price, half = (PRICE, HALF) if priced else (None, None)
    return Teacher("m", "somewhere", "r1", lambda: url, price=price, batch_price=half)


def put(
    workspace: Workspace,
    asked: list[Question],
    whom: Teacher,
    limits: Limits = LIMITS,
    habits: Habits = HABITS,
) -> Tally:
    with Ledger.open(workspace) as ledger:
        return ask_in_batches([Part(whom, 0, asked)], SAMPLING, limits, ledger, "run", habits=habits)


REQUESTS = ("GET /batches", "POST /files", "POST /batches", "GET /batches/*", "GET /files/*/content")
MOMENTS = [f"{when} {what}" for what in (*REQUESTS, "commit") for when in ("before", "after")]


def _die_at(moment: str, number: int) -> Counter[str]:
    seen: Counter[str] = Counter()

    def come_to(this: str) -> None:
        seen[this] += 1
        if this == moment and seen[this] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    exchange, commit = Endpoint.exchange, Writer._commit

    async def watched_exchange(self: Endpoint, method: str, path: str, *given: Any) -> Any:
        what = method + " " + re.sub(r"(?<=s/)[^/]+", "*", path.partition("?")[0])
        come_to(f"before {what}")
        reply = await exchange(self, method, path, *given)
        come_to(f"after {what}")
        return reply

    def watched_commit(self: Writer, group: Any) -> None:
        come_to("before commit")
        commit(self, group)
        come_to("after commit")

    Endpoint.exchange, Writer._commit = watched_exchange, watched_commit  # type: ignore[method-assign]
    results.AT_ONCE = 4
    return seen


if __name__ == "__main__":
    folder, url, count, *at = sys.argv[1:]
    seen = _die_at(at[0], int(at[1])) if at else _die_at("never", 0)
    try:
        tally = put(Workspace(Path(folder)), questions(int(count)), teacher(url))
    except StillhouseError as error:
        print(json.dumps({"error": error.what, "why": error.why, "mend": error.mend}))
        sys.exit(error.exit_code)
    print(json.dumps({"seen": seen, "answered": tally.answered, "reused": tally.reused}))
