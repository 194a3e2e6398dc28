"""What a batch brought, line by line: answers and failures into the ledger, money settled, and what becomes
of the questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.ask.questions import Part, Tally
from stillhouse.ask.sending import disputed, fatal, may_pass
from stillhouse.ask.settling import answered_leaf, asked_leaf, cost_of, passes
from stillhouse.ask.shards import ID_DIGITS, bodies
from stillhouse.errors import EndpointError, StillhouseError
from stillhouse.ledger import Ledger
from stillhouse.ledger.batches import Batch, Line, end_batch, lines_of
from stillhouse.models.batches import Job, result_of
from stillhouse.models.endpoint import Failure, Reply, kind_of

AT_ONCE = 256  # lines handed to the ledger before waiting for it


@dataclass(slots=True)
class Results:
    """`failures` counts those of a question by its key, `given_up` holds the last reason of what is not asked
    again in this call, `new` counts answers and `billed` adds up their costs (US dollars) as far as they are
    known, `stop` is why to go no further."""

    part: Part
    retries: int
    ledger: Ledger
    run: str
    tally: Tally
    new: int = 0
    billed: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    stop: StillhouseError | None = None

    async def record(self, row: Batch, job: Job, shard: Path, files: Sequence[Path], url: str) -> str | None:
        """Write down what a batch brought and close it; `files` are its results, `shard` what was asked.

        What the provider said, where it had no room for the batch and so did nothing.
        """
        lines = {line.key[:ID_DIGITS]: line for line in lines_of(self.ledger, row)}
        waiting: list[Future[Any]] = []
        with bodies(shard) as body_of:
            for file in files:
                with file.open("rb") as texts:
                    for text in texts:
                        waiting += self._read(row, lines, text, body_of, url)
                        if len(waiting) >= AT_ONCE:
                            await _durable(waiting)
        await _durable(waiting)
        if job.status == "failed":
            return self._refused(row, job)
        missing = [line for line in lines.values() if line.open]
        end_batch(self.ledger, row, job.status)
        for line in missing:
            self.given_up[line.key] = "sent, unknown"
            self._settle(line, line.reserved)
        self.tally.unknown += len(missing)
        return None

    def release(self, row: Batch, ending: str, reason: str) -> None:
        """Close a batch whose open lines nobody worked on: they failed and cost nothing."""
        lines = [line for line in lines_of(self.ledger, row) if line.open]
        end_batch(self.ledger, row, ending, never_worked=reason)
        self._count(reason, len(lines))
        for line in lines:
            self._settle(line, 0.0)

    def _read(
        self,
        row: Batch,
        lines: dict[str, Line],
        text: bytes,
        body_of: Callable[[str], bytes | None],
        url: str,
    ) -> Iterator[Future[Any]]:
        """Settle the line that this text is the result of; it is then gone from `lines`."""
        try:
            custom_id, outcome = result_of(text)
            line = lines.pop(custom_id)
        except (ValueError, KeyError):  # no result, or that of no question of this batch, or a second one
            self._count("stray line", 1)
            return
        if not line.open:  # settled before a crash
            return
        if isinstance(outcome, Reply):
            yield self._answered(row, line, outcome, body_of(custom_id))
        else:
            self._failed(line, outcome, url)
            yield self.ledger.fail(line.attempt, outcome.kind, outcome.sent)

    def _answered(self, row: Batch, line: Line, reply: Reply, request: bytes | None) -> Future[int]:
        completion, worst = reply.completions[0], line.reserved
        known = cost_of(completion, row.price)
        part = replace(self.part, decision=row.decision)
        leaf = asked_leaf(line.key, line.attempt, part, line.sample_index) | answered_leaf(completion, known)
        leaf |= {"run": self.run, "stage": "collect", "batch": row.name}
        if known is not None and worst is not None and passes(known, worst):
            leaf["disputed"] = True
            self.stop = self.stop or disputed(known, worst)
        self._settle(line, worst if known is None else known)
        self.new += 1
        self.billed += known or 0.0
        asked = {} if request is None else {"request": request}
        return self.ledger.answer(line.attempt, leaf, {**asked, "response": reply.raw}, known)

    def _failed(self, line: Line, failure: Failure, url: str) -> None:
        kind = failure.kind
        self._count(kind, 1)
        self._settle(line, line.reserved if failure.sent else 0.0)
        self.failures[line.key] = self.failures.get(line.key, 0) + 1
        if not may_pass(kind, self.failures[line.key], self.retries):
            self.given_up[line.key] = kind
        if failure.fatal:
            self.stop = self.stop or fatal(failure, url, self.part.teacher)

    def _refused(self, row: Batch, job: Job) -> str | None:
        """A batch that failed as a whole, so that not one of its lines was worked on."""
        code, message = job.error
        full = code == "token_limit_exceeded" or kind_of(400, code, message) == "rate_limited"
        self.release(row, job.status, "rate_limited" if full else "bad_request")
        if full:
            return message
        self.stop = self.stop or EndpointError(
            f"the provider refused the batch {row.name}",
            f"{code}: {message}" if message else "it does not say why",
            'see whether it offers the model in batches, or set collect.mode = "online"',
        )
        return None

    def _settle(self, line: Line, cost: float | None) -> None:
        self.tally.budget = self.tally.budget.settle(line.reserved or 0.0, cost or 0.0)

    def _count(self, kind: str, number: int) -> None:
        self.tally.failures[kind] = self.tally.failures.get(kind, 0) + number


async def _durable(waiting: list[Future[Any]]) -> None:
    """Until all of these are on disk; then there are none."""
    await asyncio.gather(*map(asyncio.wrap_future, waiting))
    waiting.clear()
