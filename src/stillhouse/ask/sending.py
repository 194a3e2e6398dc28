"""Sending: wait for the pace, reserve the worst case, write the attempt, send, write the exchange; ask again
what may pass."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from stillhouse.ask import pace, settling
from stillhouse.ask.cluster import Cluster
from stillhouse.ask.lane import Here, Job, Lane, first_pace, new_lane, text_bytes
from stillhouse.ask.pace import Ticket
from stillhouse.ask.questions import (
    Limits,
    Part,
    Question,
    Sampling,
    Tally,
    Teacher,
    Unanswered,
    request_body,
)
from stillhouse.ask.settling import Ended
from stillhouse.errors import BudgetReached, EndpointError, Interrupted
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Endpoint, Failure, Reply
from stillhouse.records import Progress, Watch

LONGEST_WAIT = 600.0  # seconds that a Retry-After may hold a run back before it stops instead
LONGEST_BACKOFF = 30.0  # seconds between two attempts at one question, at most
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
    stop: BaseException | None = None
    lanes: list[Lane] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    jitter: random.Random = field(default_factory=lambda: random.Random(0))

    async def all(self) -> None:
        self.lanes = [
            new_lane(part, self.sampling, self.limits, self.ledger, self.run, self.tally)
            for part in self.parts
        ]
        tasks: set[asyncio.Task[None]] = set()
        restore = _on_interrupt(asyncio.get_running_loop(), self._interrupt)
        try:
            async with AsyncExitStack() as sessions:
                if self.cluster is not None:
                    await sessions.enter_async_context(self.cluster)
                try:
                    while (leaving := await self._next(sessions)) is not None:
                        task = asyncio.create_task(self._work(*leaving))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
                finally:
                    await asyncio.gather(*tasks)
        finally:
            restore()
        self._show()
        if self.stop is not None:
            raise self.stop

    async def _next(self, sessions: AsyncExitStack) -> tuple[Lane, Job, Ticket] | None:
        """The next job, once it may leave, with its cost reserved; None when all is done or must stop."""
        while self.stop is None:
            self.changed.clear()
            now, delay, looking, refused = time.monotonic(), math.inf, False, None
            for lane in self.lanes:
                if lane.draw(now) and lane.sender is None:
                    await self._open(lane, sessions)
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
            elif refused and delay == math.inf and not any(lane.pace.in_flight for lane in self.lanes):
                self.stop = self._budget_reached(refused)
            else:
                await self._change(delay)
        return None

    async def _open(self, lane: Lane, sessions: AsyncExitStack) -> None:
        teacher = lane.part.teacher
        assert teacher.url is not None
        url = await asyncio.to_thread(teacher.url)
        if self.cluster is not None:
            lane.sender = await self.cluster.open(url, teacher.key_env)
        else:
            lane.sender = Here(await sessions.enter_async_context(Endpoint(url, teacher.key_env)))
        lane.pace = first_pace(self.limits, lane.sender.url)

    def _budget_reached(self, job: Job) -> BudgetReached:
        tally = self.tally
        left = tally.questions - tally.reused - tally.answered - len(tally.failed)
        rest = f"; {left:,} questions are left"
        if tally.bought:
            rest += f", about {left * tally.billed / tally.bought:.4f} US$ at the mean of those answered"
        return BudgetReached(
            f"budget reached after {tally.answered} new answers",
            f"{tally.budget.spent:.4f} US$ spent; the next request could cost {job.worst:.4f} "
            f"and pass the cap of {self.limits.max_cost}{rest}",
            "raise collect.max_cost and run the same command again; answers so far are kept",
        )

    async def _change(self, seconds: float) -> None:
        """Wait until something ended or was stopped, or the seconds are over."""
        if self.stop is not None or seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self.changed.set) if seconds < math.inf else None
        await self.changed.wait()
        if timer is not None:
            timer.cancel()

    async def _work(self, lane: Lane, job: Job, ticket: Ticket) -> None:
        """One attempt at a job, and what follows from it."""
        try:
            outcome = await self._attempt(lane, job, ticket)
            if outcome is None:
                self.tally.reused += len(job.same) - 1
                del lane.under_way[job.key]
            else:
                self._judge(lane, job, outcome)
            self._show()
        except Exception as error:  # it must reach whoever called `ask`, after the others have ended
            self.stop = self.stop or error
        finally:
            self.changed.set()

    def _judge(self, lane: Lane, job: Job, outcome: Failure) -> None:
        """Ask again later, give the question up, or stop."""
        kind = outcome.kind
        self.tally.failures[kind] = self.tally.failures.get(kind, 0) + 1
        self.tally.unknown += kind == "lost"
        nobody_there = kind == "unreachable" and self.tally.answered == 0 and job.failures >= 1
        if outcome.fatal or nobody_there:
            assert lane.sender is not None
            self.stop = self.stop or _fatal(outcome, lane.sender.url, lane.part.teacher)
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
            lost = 0 if self.limits.unknown == "leave" else self.limits.retries
            tries = {"bad_request": 0, "malformed": 1, "lost": lost}.get(kind, self.limits.retries)
            again = job.failures <= min(tries, self.limits.retries)
            wait = self.jitter.uniform(0, min(LONGEST_BACKOFF, 0.25 * 2 ** (job.failures - 1)))
            wait = max(wait, outcome.retry_after or 0.0)
        if again:
            lane.again(job, time.monotonic() + wait, self.tally.sent)
            return
        del lane.under_way[job.key]
        name, reason = lane.part.teacher.model, "sent, unknown" if kind == "lost" else kind
        self.tally.failed += [Unanswered(q.prompt_id, q.sample_index, name, reason) for q in job.same]
        self._judge_failures()

    async def _attempt(self, lane: Lane, job: Job, ticket: Ticket) -> Failure | None:
        """One request, its cost reserved. None when it was answered, else why it failed."""
        assert lane.sender is not None
        question, teacher = job.same[0], lane.part.teacher
        body = request_body(question, teacher, self.sampling)
        cost = job.worst  # what counts as spent unless something better is known
        over = False
        try:
            attempt = await asyncio.wrap_future(
                self.ledger.begin(
                    key=job.key,
                    run=self.run,
                    prompt_id=question.prompt_id,
                    teacher=teacher.model,
                    sample_index=question.sample_index,
                    reserved=None if teacher.price is None else job.worst,
                )
            )
            self.tally.sent += 1
            begun = settling.begun(attempt, job.key, lane.part, question, self.run, job.worst)
            ended = await lane.sender.send(begun, body, self.limits.timeout)
            over = True
            _learn(lane, ticket, question, ended)
            known = settling.cost(ended)
            cost = job.worst if known is None else known
            if settling.disputed(ended):
                self.stop = self.stop or _disputed(cost, job.worst)
            await asyncio.wrap_future(settling.settle(self.ledger, ended))
            if isinstance(ended.outcome, Failure):
                return ended.outcome
            self.tally.answered += 1
            self.tally.count(ended.outcome.completions[0], known)
            return None
        finally:
            if not over:
                lane.pace = pace.cancelled(lane.pace, ticket, time.monotonic())
            self.tally.budget = self.tally.budget.settle(job.worst, cost)

    def _show(self) -> None:
        """Report how far the work is."""
        tally = self.tally
        done = tally.reused + tally.answered + len(tally.failed)
        counts = {"failed": len(tally.failed), "new": tally.answered, "reused": tally.reused}
        if tally.unknown:
            counts["sent, unknown"] = tally.unknown
        if refused := tally.failures.get("rate_limited"):
            counts["429"] = refused
        notes = [
            f"{lane.pace.in_flight} of {math.floor(lane.pace.limit)} in flight"
            for lane in self.lanes
            if lane.pace.in_flight
        ]
        if tally.budget.spent or tally.budget.reserved:
            notes.append(f"US$ {tally.budget.spent:.4f} + {tally.budget.reserved:.4f} reserved")
        if self.cluster is not None:
            notes.append(f"{len(self.cluster.workers)} workers")
        self.watch(Progress(self.stage, done, tally.questions, "answers", counts, "  ".join(notes)))

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


def _learn(lane: Lane, ticket: Ticket, question: Question, ended: Ended) -> None:
    """What an answer, or its absence, says about the pace."""
    now, outcome = time.monotonic(), ended.outcome
    hints = pace.hints_of(outcome.headers, time.time())
    if isinstance(outcome, Reply):
        usage = outcome.completions[0].usage
        read, written = usage.prompt_tokens, usage.completion_tokens
        used = None if read is None or written is None else float(read + written)
        if read is not None and written is not None:
            lane.size = lane.size.seen(text_bytes(question), read, written)
        lane.pace = pace.answered(lane.pace, ticket, now, ended.seconds, used, written)
    elif outcome.kind in ("rate_limited", "quota"):
        lane.pace = pace.limited(lane.pace, ticket, now, outcome.retry_after, hints)
    elif outcome.kind == "lost":
        lane.pace = pace.lost(lane.pace, ticket, now)
    else:
        lane.pace = pace.failed(lane.pace, ticket, now, outcome.sent)
    lane.pace = pace.learned(lane.pace, hints, now)


def _disputed(cost: float, worst: float) -> EndpointError:
    return EndpointError(
        f"the teacher claims usage of {cost:.6f} US$, the request can cost {worst:.6f} at most",
        "its token counts do not fit the request that was sent",
        "the answer is kept and marked as disputed; settle it with the provider before going on",
    )


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
