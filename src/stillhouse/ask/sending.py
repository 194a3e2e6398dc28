"""Sending: wait for the pace, reserve the worst case, write the attempt, send, write the exchange; ask again
what may pass."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from stillhouse.ask import pace, settling
from stillhouse.ask.awaiting import Awaiting
from stillhouse.ask.canary import among
from stillhouse.ask.cluster import Cluster
from stillhouse.ask.lane import Here, Job, Lane, first_pace, new_lane
from stillhouse.ask.pace import Ticket
from stillhouse.ask.questions import (
    LEFT_OUT,
    Limits,
    Part,
    Sampling,
    Tally,
    Teacher,
    Unanswered,
    request_bytes,
)
from stillhouse.ask.settling import Ended
from stillhouse.ask.tracing import Trace
from stillhouse.errors import BudgetReached, EndpointError, Interrupted
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Endpoint, Failure, Reply, check_key
from stillhouse.records import Progress, Traffic, Watch

LONGEST_WAIT = 600.0  # seconds that a Retry-After may hold a run back before it stops instead
LONGEST_BACKOFF = 30.0  # seconds between two attempts at one question, at most
GONE = 15  # attempts in a row that found nobody, after which a server that had answered is taken for gone
REFUSALS = 30  # times that one question may be rate-limited; the pace, not the question, is at fault


@dataclass(slots=True)
class Asking:
    """The state of one call of `ask_all`. One dispatcher starts a task for each attempt, when the pace of
    its teacher and the cap of the run allow it; all of them run on one event loop."""

    parts: Sequence[Part]
    sampling: Sampling
    limits: Limits
    ledger: Ledger
    run: str
    tally: Tally
    watch: Watch
    stage: str
    cluster: Cluster | None = None  # from where requests leave; None is this process
    trace: Trace | None = None
    stop: BaseException | None = None
    lanes: list[Lane] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    given_up: int = 0
    recorded: Awaiting = field(init=False)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    jitter: random.Random = field(default_factory=lambda: random.Random(0))

    async def all(self) -> None:
        self.recorded = Awaiting(asyncio.get_running_loop())
        self.lanes = [
            new_lane(part, self.sampling, self.limits, self.ledger, self.run, self.tally)
            for part in self.parts
        ]
        for lane in self.lanes:
            if lane.part.canary is not None:
                lane.fresh = among(lane.fresh, lane, self.sampling, self.ledger, self.run, self.tally)
        restore = on_interrupt(asyncio.get_running_loop(), self._interrupt)
        try:
            async with AsyncExitStack() as sessions:
                if self.cluster is not None:
                    await sessions.enter_async_context(self.cluster)
                try:
                    while (leaving := await self._next(sessions)) is not None:
                        self._start(self._work(*leaving))
                except asyncio.CancelledError:  # a second Ctrl-C: what is in flight is given up
                    for task in list(self.tasks):
                        task.cancel()
                    raise
                finally:
                    while self.tasks:
                        await asyncio.wait(self.tasks)
        finally:
            restore()
        self._show()
        if self.stop is not None:
            raise self.stop
        tally = self.tally
        assert tally.questions == tally.reused + tally.answered + len(tally.failed), "a question was lost"

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            self.changed.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                self.stop = self.stop or error

        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(ended)

    async def _next(self, sessions: AsyncExitStack) -> tuple[Lane, Job, Ticket] | None:
        """The next job, once it may leave, with its cost reserved; None when all is done or must stop."""
        while self.stop is None:
            self.changed.clear()
            now, delay, looking, refused = time.monotonic(), math.inf, False, None
            for lane in self.lanes:
                if lane.draw(now) and lane.sender is None:
                    if not lane.opening:
                        lane.opening = True
                        self._start(self._open(lane, sessions))
                    continue
                looking |= lane.waiting is None and not lane.drawn
                wait = lane.delay(self.sampling, now)
                if lane.waiting is not None and wait == 0:
                    if self.tally.budget.admits(lane.waiting.worst):
                        self.tally.budget = self.tally.budget.reserve(lane.waiting.worst)
                        self.lanes = [other for other in self.lanes if other is not lane] + [lane]
                        return lane, *lane.leave(self.sampling, now)
                    refused, wait = lane.waiting, math.inf
                delay = min(delay, wait)
            if all(lane.done for lane in self.lanes):
                return None
            if looking:
                self._show()
                await asyncio.sleep(0)  # answers come in while the ledger is read
            elif refused and delay == math.inf and not self.tasks:
                self.stop = budget_reached(self.tally, refused.worst)
            else:
                await self._change(delay)
        return None

    async def _open(self, lane: Lane, sessions: AsyncExitStack) -> None:
        teacher = lane.part.teacher
        assert teacher.url is not None
        for part in self.parts:  # a key that is missing is said before anybody is asked
            if part.teacher.url is not None and part.teacher.key_env and self.cluster is None:
                check_key(part.teacher.key_env)
        url = await asyncio.to_thread(teacher.url)
        if self.cluster is not None:
            lane.sender = await self.cluster.open(url, teacher.key_env)
        else:
            lane.sender = Here(await sessions.enter_async_context(Endpoint(url, teacher.key_env)))
        lane.pace = first_pace(teacher, self.limits, lane.sender.url)

    async def _change(self, seconds: float) -> None:
        """Wait until something ended or was stopped, or the seconds are over."""
        if self.stop is not None or seconds <= 0:
            return
        self._show()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self.changed.set) if seconds < math.inf else None
        await self.changed.wait()
        if timer is not None:
            timer.cancel()

    async def _work(self, lane: Lane, job: Job, ticket: Ticket) -> None:
        """One attempt at a job, and what follows from it."""
        outcome = await self._attempt(lane, job, ticket)
        if outcome is None:
            lane.unreachable = 0
            self.tally.reused += len(job.same) - 1
            del lane.under_way[job.key]
        else:
            self._judge(lane, job, outcome)

    def _judge(self, lane: Lane, job: Job, outcome: Failure) -> None:
        """Ask again later, give the question up, or stop."""
        kind = outcome.kind
        self.tally.failures[kind] = self.tally.failures.get(kind, 0) + 1
        self.tally.unknown += kind == "lost"
        lane.unreachable = lane.unreachable + 1 if kind == "unreachable" else 0
        gone = lane.unreachable >= (GONE if lane.answered else 2)
        if outcome.fatal or gone:
            assert lane.sender is not None
            self.stop = self.stop or fatal(outcome, lane.sender.url, lane.part.teacher)
            return
        wait = max(outcome.retry_after or 0.0, lane.pace.blocked_until - time.monotonic())
        if wait > LONGEST_WAIT:
            self.stop = self.stop or EndpointError(
                f"the teacher asks to wait {wait:,.0f} s",
                outcome.detail,
                "run the same command again after that; answers so far are kept",
            )
            return
        if kind == "rate_limited":
            job.refusals += 1
            again, wait = job.refusals < REFUSALS, 0.0  # the pace waits for all
        else:
            job.failures += 1
            retries = 0 if kind == "lost" and self.limits.unknown == "leave" else self.limits.retries
            again = may_pass(kind, job.failures, retries)
            wait = self.jitter.uniform(0, min(LONGEST_BACKOFF, 0.25 * 2 ** (job.failures - 1)))
            wait = max(wait, outcome.retry_after or 0.0)
        if again:
            lane.again(job, time.monotonic() + wait)
            return
        del lane.under_way[job.key]
        name, reason = lane.part.teacher.model, "sent, unknown" if kind == "lost" else kind
        self.given_up += len(job.same) if reason not in LEFT_OUT else 0
        said = outcome.detail
        self.tally.failed += [Unanswered(q.prompt_id, q.sample_index, name, reason, said) for q in job.same]
        self.stop = self.stop or too_many_failed(self.tally, self.given_up, self.limits.max_failures)

    async def _attempt(self, lane: Lane, job: Job, ticket: Ticket) -> Failure | None:
        """One request, its cost reserved. None when it was answered, else why it failed."""
        assert lane.sender is not None
        question, teacher = job.same[0], lane.part.teacher
        body = request_bytes(question, teacher, self.sampling)
        cost = job.worst  # what counts as spent unless something better is known
        ended: Ended | None = None
        try:
            attempt = await self.recorded(
                self.ledger.begin(
                    key=job.key,
                    run=self.run,
                    prompt_id=question.prompt_id,
                    teacher=teacher.model,
                    sample_index=question.sample_index,
                    reserved=None if teacher.price is None else job.worst,
                    decision=lane.part.decision,
                )
            )
            self.tally.sent += 1
            begun = settling.begun(attempt, job.key, lane.part, question, self.run, self.stage, job.worst)
            sent = time.time_ns()
            ended = await lane.sender.send(begun, body, self.limits.timeout)
            _learn(lane, ticket, job.size, ended)
            known = settling.cost(ended)
            cost = job.worst if known is None else known
            if settling.disputed(ended):
                self.stop = self.stop or disputed(cost, job.worst)
            await self.recorded(settling.settle(self.ledger, ended))
            if isinstance(ended.outcome, Failure):
                return ended.outcome
            self.tally.answered += 1
            lane.answered = True
            self.tally.count(ended.outcome.completions[0], known)
            return None
        finally:
            if ended is None:
                lane.pace = pace.cancelled(lane.pace, ticket, time.monotonic())
            self.tally.budget = self.tally.budget.settle(job.worst, cost)
            if self.trace is not None and ended is not None:
                url, until = lane.sender.url, sent + round(1e9 * ended.seconds)
                self.trace(url, teacher.endpoint, body, ended.outcome, attempt, sent, until)

    def _show(self) -> None:
        """Report how far the work is."""
        tally = self.tally
        done = tally.reused + tally.answered + len(tally.failed)
        counts = {"failed": len(tally.failed), "new": tally.answered, "reused": tally.reused}
        if tally.unknown:
            counts["sent, unknown"] = tally.unknown
        spent = reserved = expected = None
        if all(part.teacher.price is not None for part in self.parts):
            spent, reserved = tally.budget.spent, tally.budget.reserved
            if tally.bought:
                expected = spent + (tally.questions - done) * tally.billed / tally.bought
        traffic = Traffic(
            sum(lane.pace.in_flight for lane in self.lanes),
            sum(math.floor(lane.pace.limit) for lane in self.lanes if lane.sender is not None),
            dict(tally.failures),
            spent,
            reserved,
            expected,
        )
        notes = [] if self.cluster is None else [f"{len(self.cluster.workers)} workers"]
        note = "; ".join([*notes, *tally.notices])
        self.watch(Progress(self.stage, done, tally.questions, "answers", counts, note, traffic))

    def _interrupt(self) -> None:
        self.stop = self.stop or Interrupted(
            "stopped",
            "interrupted; requests in flight were finished and kept",
            "run the same command again to go on",
        )
        self.changed.set()


def may_pass(kind: str, failures: int, retries: int) -> bool:
    """Whether a question is asked once more after so many failures, the last one of this kind.

    What was refused would be refused again, what was cut short billed again, and what somebody cancelled is
    theirs to ask for.
    """
    tries = {"bad_request": 0, "too_large": 0, "malformed": 1, "cancelled": 0}.get(kind, retries)
    return failures <= min(tries, retries)


def too_many_failed(tally: Tally, given_up: int, most: float) -> EndpointError | None:
    """The reason to stop when more than this share of the questions was asked and given up, of 20 or more."""
    finished = tally.reused + tally.answered + given_up
    if finished < 20 or given_up <= most * finished:
        return None
    reasons = Counter(question.reason for question in tally.failed)
    return EndpointError(
        f"{given_up} of {finished} prompts failed",
        "last reasons: "
        + ", ".join(f"{why} {count}" for why, count in reasons.most_common())
        + (f"; the last one: {last}" if (last := tally.failed[-1].detail) else ""),
        "see to the server and run the same command again, or raise collect.max_failures",
    )


def budget_reached(tally: Tally, worst: float) -> BudgetReached:
    """`worst` is what the next request could cost, in US dollars."""
    left = tally.questions - tally.reused - tally.answered - len(tally.failed)
    rest = f"; {left:,} questions are left"
    if tally.bought:
        rest += f", about {left * tally.billed / tally.bought:.6g} US$ at the mean of those answered"
    return BudgetReached(
        f"budget reached after {tally.answered} new answers",
        f"{tally.budget.spent:.6g} US$ spent; the next request could cost {worst:.6g} "
        f"and pass the cap of {tally.budget.cap}{rest}",
        "raise collect.max_cost and run the same command again; answers so far are kept",
    )


def fatal(failure: Failure, url: str, teacher: Teacher) -> EndpointError:
    key = f"the variable {teacher.key_env}" if teacher.key_env else "`teacher.key_env` (none is set)"
    mend = {
        "auth": f"check the key in {key}",
        "not_found": f"check `teacher.model` ({teacher.model}) and `teacher.endpoint` ({url})",
        "quota": "raise the account's quota with the provider, then run the same command again",
        "unreachable": f"start the server, or correct `teacher.endpoint` ({url})",
    }.get(failure.kind, "see to the server and run the same command again")
    return EndpointError(f"the teacher cannot be asked: {failure.kind}", failure.detail, mend)


def _learn(lane: Lane, ticket: Ticket, size: int, ended: Ended) -> None:
    """What an answer, or its absence, says about the pace; `size` are the bytes of the question."""
    now, outcome = time.monotonic(), ended.outcome
    hints = pace.hints_of(outcome.headers, time.time())
    if isinstance(outcome, Reply):
        usage = outcome.completions[0].usage
        read, written = usage.prompt_tokens, usage.completion_tokens
        used = None if read is None or written is None else float(read + written)
        if read is not None and written is not None:
            lane.size = lane.size.seen(size, read, written)
        lane.pace = pace.answered(lane.pace, ticket, now, ended.seconds, used, written)
    elif outcome.kind in ("rate_limited", "quota"):
        lane.pace = pace.limited(lane.pace, ticket, now, outcome.retry_after, hints)
    elif outcome.kind == "lost":
        lane.pace = pace.lost(lane.pace, ticket, now)
    else:
        lane.pace = pace.failed(lane.pace, ticket, now, outcome.sent, outcome.retry_after)
    lane.pace = pace.learned(lane.pace, hints, now)


def disputed(cost: float, worst: float) -> EndpointError:
    return EndpointError(
        f"the teacher claims usage of {cost:.6f} US$, the request can cost {worst:.6f} at most",
        "its token counts do not fit the request that was sent",
        "the answer is kept and marked as disputed; settle it with the provider before going on",
    )


def on_interrupt(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> Callable[[], None]:
    """First SIGINT: `act`. The second one falls through to the handling that was there before."""
    before = signal.getsignal(signal.SIGINT)

    def first() -> None:
        restore()
        act()

    try:
        loop.add_signal_handler(signal.SIGINT, first)
    except (ValueError, RuntimeError, NotImplementedError):  # not the main thread, or no Unix
        return lambda: None

    def restore() -> None:
        if loop.remove_signal_handler(signal.SIGINT):
            signal.signal(signal.SIGINT, before)

    return restore
