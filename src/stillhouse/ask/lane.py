"""One teacher's side of asking: what the ledger cannot answer, and when the next request may leave."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count
from typing import Protocol
from urllib.parse import urlsplit

from stillhouse.ask import pace
from stillhouse.ask.pace import Pace, Size, Ticket
from stillhouse.ask.questions import (
    Limits,
    Part,
    Question,
    Sampling,
    Tally,
    Teacher,
    Unanswered,
    as_exchange,
    looked_up,
    text_bytes,
    worst_cost,
)
from stillhouse.ask.settling import Begun, Ended
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Endpoint


class Sender(Protocol):
    """From where the requests to a teacher leave; `url` is its address. Sends once, and tells what became of
    it; raises what keeps it from sending."""

    @property
    def url(self) -> str: ...

    async def send(self, begun: Begun, body: bytes, timeout: float) -> Ended: ...  # noqa: ASYNC109


@dataclass(frozen=True, slots=True)
class Here:
    """Requests leave from this process."""

    endpoint: Endpoint

    @property
    def url(self) -> str:
        return self.endpoint.base_url

    async def send(self, begun: Begun, body: bytes, timeout: float) -> Ended:  # noqa: ASYNC109
        started = time.monotonic()
        outcome = await self.endpoint.complete(begun.path, body, timeout)
        return Ended(begun, outcome, body, time.monotonic() - started)


@dataclass(slots=True)
class Job:
    """A question with all that ask the same, the bytes of its text, what one attempt can cost at most, and
    its failures so far."""

    key: str
    same: list[Question]
    size: int
    worst: float
    failures: int = 0
    refusals: int = 0


@dataclass(slots=True)
class Lane:
    """`fresh` gives the jobs that were never tried, or None after a batch of which the ledger knew all;
    `later` is a heap of failed ones by the moment of their next attempt; `waiting` is the job that leaves
    next; `under_way` holds every job that is not over, by key, so that no question is asked twice at once.
    `sender` is opened with the first request."""

    part: Part
    fresh: Iterator[Job | None]
    pace: Pace
    under_way: dict[str, Job]
    sender: Sender | None = None
    size: Size = field(default_factory=Size)
    waiting: Job | None = None
    later: list[tuple[float, int, Job]] = field(default_factory=list)
    turns: Iterator[int] = field(default_factory=count)  # orders what falls due at the same moment
    drawn: bool = False  # nothing fresh is left
    opening: bool = False
    answered: bool = False
    unreachable: int = 0  # attempts in a row that found nobody

    def draw(self, now: float) -> bool:
        """Put the next job into `waiting`, one that failed before a fresh one; False when there is none
        now. One batch of the ledger is looked at in a call, at most."""
        if self.waiting is None and self.later and self.later[0][0] <= now:
            self.waiting = heapq.heappop(self.later)[2]
        if self.waiting is None and not self.drawn:
            try:
                self.waiting = next(self.fresh)
            except StopIteration:
                self.drawn = True
        return self.waiting is not None

    def delay(self, sampling: Sampling, now: float) -> float:
        """Seconds until the waiting job may leave, or the next one is due: `inf` when another must end
        first."""
        if self.waiting is None:
            return max(0.0, self.later[0][0] - now) if self.later else math.inf
        return pace.wait(self.pace, self._tokens(self.waiting, sampling), now)

    def leave(self, sampling: Sampling, now: float) -> tuple[Job, Ticket]:
        """The waiting job and its ticket; only when `delay` is 0."""
        assert self.waiting is not None
        job, self.waiting = self.waiting, None
        self.pace, ticket = pace.sent(self.pace, self._tokens(job, sampling), now)
        return job, ticket

    def again(self, job: Job, moment: float) -> None:
        """Try a job again at `moment`."""
        heapq.heappush(self.later, (moment, next(self.turns), job))

    def _tokens(self, job: Job, sampling: Sampling) -> float:
        return self.size.estimate(job.size, sampling.max_tokens)

    @property
    def done(self) -> bool:
        """Whether every question is answered or given up, and that is recorded."""
        return self.drawn and not self.under_way


def new_job(key: str, question: Question, teacher: Teacher, sampling: Sampling) -> Job:
    size = text_bytes(question, teacher.system)
    return Job(key, [question], size, worst_cost(question, teacher, sampling, size))


def new_lane(part: Part, sampling: Sampling, limits: Limits, ledger: Ledger, run: str, tally: Tally) -> Lane:
    under_way: dict[str, Job] = {}
    fresh = _fresh(part, sampling, limits, ledger, run, tally, under_way)
    return Lane(part, fresh, Pace(1), under_way)


def first_pace(teacher: Teacher, limits: Limits, url: str) -> Pace:
    """The pace at which a teacher at this address is first asked."""
    return pace.pace(
        limits.concurrency,
        time.monotonic(),
        start=teacher.room or pace.START,
        follow="latency" if teacher.room is None and is_local(url) else "limits",
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
    )


def _fresh(
    part: Part,
    sampling: Sampling,
    limits: Limits,
    ledger: Ledger,
    run: str,
    tally: Tally,
    under_way: dict[str, Job],
) -> Iterator[Job | None]:
    """The questions that must be sent, batch by batch, each key once. Counts the others in `tally`.

    An answer that was erased is not bought again, and without anybody to ask a missing one stays missing.
    """
    teacher = part.teacher
    counted = bytearray(ledger.size() // 8 + 1)  # a bit for each leaf: one answer may serve many questions
    for batch in looked_up(part.questions, teacher, sampling, ledger):
        jobs: dict[str, Job] = {}
        missing = [key for _, key, stored in batch if stored is None]
        left = ledger.unknown(missing) if limits.unknown == "leave" else set()
        elsewhere = ledger.in_batches(missing)
        for question, key, stored in batch:
            exchange = None if stored is None else as_exchange(question, teacher, stored)
            reason = None
            if exchange is not None:
                tally.reused += 1
                byte, bit = exchange.leaf // 8, 1 << exchange.leaf % 8
                if exchange.run == run and byte < len(counted) and not counted[byte] & bit:
                    counted[byte] |= bit
                    tally.count(exchange.completion, exchange.cost)
            elif stored is not None and stored.erased:
                reason = "erased"
            elif teacher.url is None:
                reason = "no imported answer"
            elif key in left:
                reason = "sent, unknown"
            elif key in elsewhere:
                reason = "in a batch"
            elif key in under_way:
                under_way[key].same.append(question)
            else:
                under_way[key] = jobs[key] = new_job(key, question, teacher, sampling)
            if reason is not None:
                tally.failed.append(
                    Unanswered(question.prompt_id, question.sample_index, teacher.model, reason)
                )
        if jobs:
            yield from jobs.values()
        else:
            yield None


def is_local(url: str) -> bool:
    """Whether the server is one's own: on this machine or in a private network, by its address or name."""
    host = urlsplit(url).hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".internal")) or "." not in host
    return address.is_loopback or address.is_private
