"""Sending: wait for the pace, reserve the worst case, write the attempt, send, write the exchange; ask again
what may pass."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import orjson

from stillhouse.ask import pace
from stillhouse.ask.pace import Pace, Size, Ticket
from stillhouse.ask.questions import Limits, Question, Sampling, Tally, Teacher, request_body, worst_cost
from stillhouse.errors import BudgetReached, EndpointError, Interrupted
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Endpoint, Failure, Reply
from stillhouse.records import Completion, Progress, Watch

LONGEST_WAIT = 600.0  # seconds that a Retry-After may hold a run back before it stops instead
LONGEST_BACKOFF = 30.0  # seconds between two attempts at one question, at most
REFUSALS = 30  # times that one question may be rate-limited; the pace, not the question, is at fault


@dataclass(slots=True)
class Job:
    """A question with all that ask the same, what one attempt can cost at most, and its failures so far."""

    key: str
    same: list[Question]
    worst: float
    failures: int = 0
    refusals: int = 0


@dataclass(slots=True)
class Asking:
    """The state of one call of `ask`. One dispatcher starts a task for each attempt, when the pace and the
    cap allow it; all of them run on one event loop."""

    teacher: Teacher
    sampling: Sampling
    limits: Limits
    ledger: Ledger
    run: str
    decision: int
    tally: Tally
    watch: Watch
    stage: str
    stop: BaseException | None = None
    pace: Pace = field(default_factory=lambda: Pace(1))
    size: Size = field(default_factory=Size)
    later: list[tuple[float, int, Job]] = field(
        default_factory=list
    )  # a heap by the moment of a next attempt
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    jitter: random.Random = field(default_factory=lambda: random.Random(0))

    async def all(self, missing: dict[str, list[Question]]) -> None:
        assert self.teacher.url is not None
        url = await asyncio.to_thread(self.teacher.url)
        self.pace = pace.pace(
            self.limits.concurrency,
            time.monotonic(),
            follow="latency" if is_local(url) else "limits",
            requests_per_minute=self.limits.requests_per_minute,
            tokens_per_minute=self.limits.tokens_per_minute,
        )
        jobs = (
            Job(key, same, worst_cost(same[0], self.teacher, self.sampling)) for key, same in missing.items()
        )
        tasks: set[asyncio.Task[None]] = set()
        restore = _on_interrupt(asyncio.get_running_loop(), self._interrupt)
        try:
            async with Endpoint(url, self.teacher.key_env) as endpoint:
                while (job := await self._next(jobs)) is not None:
                    task = asyncio.create_task(self._work(endpoint, *job))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.gather(*tasks)
        finally:
            restore()
        if self.stop is not None:
            raise self.stop

    async def _next(self, jobs: Iterator[Job]) -> tuple[Job, Ticket] | None:
        """The next job, once it may leave, with its cost reserved; None when all is done or must stop."""
        job: Job | None = None
        while self.stop is None:
            now = time.monotonic()
            self.changed.clear()
            if job is None and self.later and self.later[0][0] <= now:
                job = heapq.heappop(self.later)[2]
            if job is None and (job := next(jobs, None)) is None:
                if not self.later and self.pace.in_flight == 0:
                    return None
                delay = self.later[0][0] - now if self.later else math.inf
            else:
                tokens = self.size.estimate(_bytes(job.same[0]), self.sampling.max_tokens)
                delay = pace.wait(self.pace, tokens, now)
                if delay == 0 and self._admitted(job):
                    self.pace, ticket = pace.sent(self.pace, tokens, now)
                    self.tally.budget = self.tally.budget.reserve(job.worst)
                    return job, ticket
                delay = delay or math.inf
            await self._change(delay)
        return None

    def _admitted(self, job: Job) -> bool:
        """Whether the worst case fits under the cap; stops the work when it never will."""
        budget = self.tally.budget
        if budget.admits(job.worst):
            return True
        if self.pace.in_flight == 0:
            self.stop = self.stop or BudgetReached(
                f"budget reached after {self.tally.answered} new answers",
                f"{budget.spent:.4f} US$ spent; the next request could cost {job.worst:.4f} "
                f"and pass the cap of {self.limits.max_cost}",
                "raise collect.max_cost and run the same command again; answers so far are kept",
            )
        return False

    async def _change(self, seconds: float) -> None:
        """Wait until something ended or was stopped, or the seconds are over."""
        if self.stop is not None or seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self.changed.set) if seconds < math.inf else None
        await self.changed.wait()
        if timer is not None:
            timer.cancel()

    async def _work(self, endpoint: Endpoint, job: Job, ticket: Ticket) -> None:
        """One attempt at a job, and what follows from it."""
        try:
            outcome = await self._attempt(endpoint, job, ticket)
            if outcome is None:
                self.tally.reused += len(job.same) - 1
            else:
                self._judge(endpoint, job, outcome)
            self.watch(progress_of(self.stage, self.tally, self.pace))
        except BaseException as error:  # it must reach whoever called `ask`, after the others have ended
            self.stop = self.stop or error
            raise
        finally:
            self.changed.set()

    def _judge(self, endpoint: Endpoint, job: Job, outcome: Failure) -> None:
        """Ask again later, give the question up, or stop."""
        kind = outcome.kind
        self.tally.failures[kind] = self.tally.failures.get(kind, 0) + 1
        nobody_there = kind == "unreachable" and self.tally.answered == 0 and job.failures >= 1
        if outcome.fatal or nobody_there:
            self.stop = self.stop or _fatal(outcome, endpoint.base_url, self.teacher)
            return
        if outcome.retry_after is not None and outcome.retry_after > LONGEST_WAIT:
            self.stop = self.stop or EndpointError(
                f"the teacher asks to wait {outcome.retry_after:,.0f} s",
                outcome.detail,
                "run the same command again after that; answers so far are kept",
            )
            return
        if kind == "rate_limited":
            job.refusals += 1
            again, wait = job.refusals < REFUSALS, 0.0  # the pace waits for all
        else:
            job.failures += 1
            # What was refused would be refused, and what was cut short billed, again
            tries = {"bad_request": 0, "malformed": 1}.get(kind, self.limits.retries)
            again = job.failures <= min(tries, self.limits.retries)
            wait = self.jitter.uniform(0, min(LONGEST_BACKOFF, 0.25 * 2 ** (job.failures - 1)))
            wait = max(wait, outcome.retry_after or 0.0)
        if again:
            heapq.heappush(self.later, (time.monotonic() + wait, self.tally.sent, job))
            return
        self.tally.failed |= {(question.prompt_id, question.sample_index): kind for question in job.same}
        self._judge_failures()

    async def _attempt(self, endpoint: Endpoint, job: Job, ticket: Ticket) -> Failure | None:
        """One request, its cost reserved. None when it was answered, else why it failed."""
        question = job.same[0]
        body = request_body(question, self.teacher, self.sampling)
        cost = job.worst  # what counts as spent unless something better is known
        ended = False
        try:
            begun = self.ledger.begin(
                key=job.key,
                run=self.run,
                prompt_id=question.prompt_id,
                teacher=self.teacher.model,
                sample_index=question.sample_index,
            )
            attempt = await asyncio.wrap_future(begun)
            self.tally.sent += 1
            started = time.monotonic()
            outcome = await endpoint.chat(body, self.limits.timeout)
            ended = True
            self._learn(ticket, question, outcome, time.monotonic() - started)
            if isinstance(outcome, Failure):
                cost = job.worst if outcome.sent else 0.0
                await asyncio.wrap_future(self.ledger.fail(attempt, outcome.kind))
                return outcome
            milliseconds = round(1000 * (time.monotonic() - started))
            completion = outcome.completions[0]
            known = self._cost(completion, job.worst)
            cost = job.worst if known is None else known
            leaf = self._leaf(job.key, question, completion, known, attempt, milliseconds)
            contents = {"request": orjson.dumps(body), "response": outcome.raw}
            await asyncio.wrap_future(self.ledger.answer(attempt, leaf, contents))
            self.tally.answered += 1
            self.tally.count(completion, known)
            return None
        finally:
            if not ended:
                self.pace = pace.cancelled(self.pace, ticket, time.monotonic())
            self.tally.budget = self.tally.budget.settle(job.worst, cost)

    def _learn(self, ticket: Ticket, question: Question, outcome: Reply | Failure, seconds: float) -> None:
        """What an answer, or its absence, says about the pace."""
        now = time.monotonic()
        hints = pace.hints_of(outcome.headers, time.time())
        if isinstance(outcome, Reply):
            usage = outcome.completions[0].usage
            read, written = usage.prompt_tokens, usage.completion_tokens
            used = None if read is None or written is None else float(read + written)
            if read is not None and written is not None:
                self.size = self.size.seen(_bytes(question), read, written)
            self.pace = pace.answered(self.pace, ticket, now, seconds, used, written)
        elif outcome.kind in ("rate_limited", "quota"):
            self.pace = pace.limited(self.pace, ticket, now, outcome.retry_after, hints)
        else:
            self.pace = pace.failed(self.pace, ticket, now, outcome.sent)
        self.pace = pace.learned(self.pace, hints, now)

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


def progress_of(stage: str, tally: Tally, pace: Pace | None = None) -> Progress:
    done = tally.reused + tally.answered + len(tally.failed)
    counts = {"failed": len(tally.failed), "new": tally.answered, "reused": tally.reused}
    if tally.unknown:
        counts["sent, unknown"] = tally.unknown
    if refused := tally.failures.get("rate_limited"):
        counts["429"] = refused
    notes = []
    if pace is not None and pace.in_flight:
        notes.append(f"{pace.in_flight} of {math.floor(pace.limit)} in flight")
    if tally.budget.spent or tally.budget.reserved:
        notes.append(f"US$ {tally.budget.spent:.4f} + {tally.budget.reserved:.4f} reserved")
    return Progress(stage, done, tally.questions, "answers", counts, "  ".join(notes))


def is_local(url: str) -> bool:
    """Whether the server is one's own: on this machine or in a private network, by its address or name."""
    host = urlsplit(url).hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".internal")) or "." not in host
    return address.is_loopback or address.is_private


def _bytes(question: Question) -> int:
    return sum(len(message.content.encode()) for message in question.messages)


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
