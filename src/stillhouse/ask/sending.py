"""Sending: reserve the worst case, write the attempt, send, write the exchange; retry what may pass."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from stillhouse.ask.questions import Limits, Question, Sampling, Tally, Teacher, request_body, worst_cost
from stillhouse.errors import BudgetReached, EndpointError, Interrupted, StillhouseError
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Endpoint, Failure
from stillhouse.records import Completion, Progress, Watch

LONGEST_WAIT = 600.0  # seconds that a Retry-After may hold a run back before it stops instead


@dataclass(slots=True)
class Asking:
    """The state of one call of `ask`: shared by its workers, all on one event loop."""

    teacher: Teacher
    sampling: Sampling
    limits: Limits
    ledger: Ledger
    run: str
    decision: int
    tally: Tally
    watch: Watch
    stage: str
    stop: StillhouseError | None = None
    in_flight: int = 0
    paused_until: float = 0.0
    freed: asyncio.Condition = field(default_factory=asyncio.Condition)
    jitter: random.Random = field(default_factory=lambda: random.Random(0))

    async def all(self, missing: dict[str, list[Question]]) -> None:
        assert self.teacher.url is not None
        url = await asyncio.to_thread(self.teacher.url)
        queue = iter(missing.items())
        loop = asyncio.get_running_loop()
        restore = _on_interrupt(loop, self._interrupt)
        try:
            async with Endpoint(url, self.teacher.key_env) as endpoint:
                count = min(self.limits.concurrency, len(missing))
                await asyncio.gather(*(self._worker(endpoint, queue) for _ in range(count)))
        finally:
            restore()
        if self.stop is not None:
            raise self.stop

    async def _worker(self, endpoint: Endpoint, queue: Iterator[tuple[str, list[Question]]]) -> None:
        for key, same in queue:
            if self.stop is not None:
                return
            await self._question(endpoint, key, same)
            self.watch(progress_of(self.stage, self.tally))

    async def _question(self, endpoint: Endpoint, key: str, same: list[Question]) -> None:
        """Ask once for all questions with this key; retry what may pass."""
        reason = ""
        for attempt in range(self.limits.retries + 1):
            await self._hold()
            if self.stop is not None:
                return
            outcome = await self._attempt(endpoint, key, same[0])
            if outcome is None:
                self.tally.reused += 0 if self.stop else len(same) - 1
                return
            reason = outcome.kind
            self.tally.failures[reason] = self.tally.failures.get(reason, 0) + 1
            nobody_there = reason == "unreachable" and self.tally.answered == 0 and attempt >= 1
            if outcome.fatal or nobody_there:
                self.stop = self.stop or _fatal(outcome, endpoint.base_url, self.teacher)
                return
            if reason == "bad_request" or (reason == "malformed" and attempt >= 1):
                break  # it would be refused, or billed, again
            if attempt < self.limits.retries:
                await self._wait(attempt, outcome)
        self.tally.failed |= {(question.prompt_id, question.sample_index): reason for question in same}
        self._judge_failures()

    async def _wait(self, attempt: int, outcome: Failure) -> None:
        """Exponential with full jitter. A Retry-After holds back every worker, and is only ever extended."""
        if outcome.retry_after is not None and outcome.retry_after > LONGEST_WAIT:
            self.stop = self.stop or EndpointError(
                f"the teacher asks to wait {outcome.retry_after:,.0f} s",
                outcome.detail,
                "run the same command again after that; answers so far are kept",
            )
        elif outcome.retry_after is not None:
            self.paused_until = max(self.paused_until, time.monotonic() + outcome.retry_after)
        await self._sleep(self.jitter.uniform(0, min(30.0, 0.25 * 2**attempt)))

    async def _hold(self) -> None:
        while (pause := self.paused_until - time.monotonic()) > 0 and self.stop is None:
            await self._sleep(pause)

    async def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self.stop is None:  # noqa: ASYNC110
            await asyncio.sleep(min(left, 0.2))

    async def _attempt(self, endpoint: Endpoint, key: str, question: Question) -> Failure | None:
        """One request. None when it was answered (or the work is to stop), else why it failed."""
        worst = worst_cost(question, self.teacher, self.sampling)
        if not await self._reserve(worst):
            return None
        body = request_body(question, self.teacher, self.sampling)
        cost = worst  # what counts as spent unless something better is known
        try:
            begun = self.ledger.begin(
                key=key,
                run=self.run,
                prompt_id=question.prompt_id,
                teacher=self.teacher.model,
                sample_index=question.sample_index,
            )
            attempt = await asyncio.wrap_future(begun)
            self.tally.sent += 1
            started = time.monotonic()
            outcome = await endpoint.chat(body, self.limits.timeout)
            if isinstance(outcome, Failure):
                cost = worst if outcome.sent else 0.0
                await asyncio.wrap_future(self.ledger.fail(attempt, outcome.kind))
                return outcome
            milliseconds = round(1000 * (time.monotonic() - started))
            completion = outcome.completions[0]
            known = self._cost(completion, worst)
            cost = worst if known is None else known
            leaf = self._leaf(key, question, completion, known, attempt, milliseconds)
            contents = {"request": orjson.dumps(body), "response": outcome.raw}
            await asyncio.wrap_future(self.ledger.answer(attempt, leaf, contents))
            self.tally.answered += 1
            self.tally.count(completion, known)
            return None
        finally:
            await self._settle(worst, cost)

    def _leaf(
        self,
        key: str,
        question: Question,
        completion: Completion,
        cost: float | None,
        attempt: int,
        milliseconds: int,
    ) -> dict[str, Any]:
        return {
            "key": key,
            "attempt": attempt,
            "decision": self.decision,
            "run": self.run,
            "teacher": {
                "endpoint": self.teacher.endpoint,
                "model": self.teacher.model,
                "revision": self.teacher.revision,
            },
            "answered_by": completion.model[:200],
            "sample": question.sample_index,
            "finish": completion.finish_reason,
            "prompt_tokens": completion.usage.prompt_tokens,
            "completion_tokens": completion.usage.completion_tokens,
            "milliseconds": milliseconds,
            "microdollars": None if cost is None else round(1e6 * cost),
        }

    def _cost(self, completion: Completion, worst: float) -> float | None:
        """US dollars by the recorded price; None when price or usage is unknown."""
        usage, price = completion.usage, self.teacher.price
        if price is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            return None
        cost = price.of(usage.prompt_tokens, usage.completion_tokens)
        if cost > worst * (1 + 1e-9):
            self.stop = self.stop or EndpointError(
                f"the teacher claims usage of {cost:.6f} US$, the request can cost {worst:.6f} at most",
                "its token counts do not fit the request that was sent",
                "the answer is kept; settle it with the provider before going on",
            )
        return cost

    async def _reserve(self, worst: float) -> bool:
        """Wait until the worst case fits under the cap; False when it never will, and the work stops."""
        async with self.freed:
            while not self.tally.budget.admits(worst):
                if self.in_flight == 0 or self.stop is not None:
                    self.stop = self.stop or BudgetReached(
                        f"budget reached after {self.tally.answered} new answers",
                        f"{self.tally.budget.spent:.4f} US$ spent; the next request could cost {worst:.4f} "
                        f"and pass the cap of {self.limits.max_cost}",
                        "raise collect.max_cost and run the same command again; answers so far are kept",
                    )
                    return False
                await self.freed.wait()
            self.tally.budget = self.tally.budget.reserve(worst)
            self.in_flight += 1
            return True

    async def _settle(self, worst: float, cost: float) -> None:
        async with self.freed:
            self.tally.budget = self.tally.budget.settle(worst, cost)
            self.in_flight -= 1
            self.freed.notify_all()

    def _judge_failures(self) -> None:
        finished = self.tally.reused + self.tally.answered + len(self.tally.failed)
        if finished >= 20 and len(self.tally.failed) > self.limits.max_failures * finished:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.tally.failures.items()))
            self.stop = self.stop or EndpointError(
                f"{len(self.tally.failed)} of {finished} prompts failed",
                f"failed attempts by kind: {kinds}",
                "see to the server and run the same command again, or raise collect.max_failures",
            )

    def _interrupt(self) -> None:
        self.stop = self.stop or Interrupted(
            "stopped",
            "interrupted; requests in flight were finished and kept",
            "run the same command again to go on",
        )


def _fatal(failure: Failure, url: str, teacher: Teacher) -> EndpointError:
    key = f"the variable {teacher.key_env}" if teacher.key_env else "`teacher.key_env` (none is set)"
    mend = {
        "auth": f"check the key in {key}",
        "not_found": f"check `teacher.model` ({teacher.model}) and `teacher.endpoint` ({url})",
        "quota": "raise the account's quota with the provider, then run the same command again",
        "unreachable": f"start the server, or correct `teacher.endpoint` ({url})",
    }.get(failure.kind, "see to the server and run the same command again")
    return EndpointError(f"the teacher cannot be asked: {failure.kind}", failure.detail, mend)


def progress_of(stage: str, tally: Tally) -> Progress:
    done = tally.reused + tally.answered + len(tally.failed)
    counts = {"failed": len(tally.failed), "new": tally.answered, "reused": tally.reused}
    if tally.unknown:
        counts["sent, unknown"] = tally.unknown
    money = f"US$ {tally.budget.spent:.4f}" if tally.budget.spent else ""
    return Progress(stage, done, tally.questions, "answers", counts, money)


def _on_interrupt(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> Callable[[], None]:
    """First SIGINT: `act`. The second one falls through to Python's own handling."""

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        act()

    try:
        loop.add_signal_handler(signal.SIGINT, first)
    except (ValueError, RuntimeError, NotImplementedError):  # not the main thread, or no Unix
        return lambda: None

    def restore() -> None:
        loop.remove_signal_handler(signal.SIGINT)

    return restore
