"""Asking in batches: the same questions, keys and ledger as `ask_all`, by the provider's Batch API.

For the questions that the ledger cannot answer: cut a shard, set its worst cost aside and write it to disk,
write the batch with an open attempt for each line, upload, ask for the batch, look now and then until it is
over, and write every answer down. What failed and may pass goes into another round. A process that dies
leaves the batch with the provider; the next one finds it by the shard's digest in the batch's metadata.

Canaries are asked one by one, before the batches of a call and after them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from stillhouse.ask.canary import asked_rounds, conclude, next_rounds
from stillhouse.ask.jobs import Habits, Jobs
from stillhouse.ask.questions import (
    LEFT_OUT,
    Limits,
    Part,
    Sampling,
    Tally,
    Teacher,
    Unanswered,
    as_exchange,
    at_batch_price,
    before_the_price,
    check_cap,
    looked_up,
    worst_cost,
)
from stillhouse.ask.results import Results
from stillhouse.ask.sending import REFUSALS, Asking, budget_reached, too_many_failed
from stillhouse.ask.shards import Shard, cut, shard_path
from stillhouse.ask.tracing import tracing
from stillhouse.errors import BudgetReached, EndpointError, UsageError
from stillhouse.ledger import Ledger, batches
from stillhouse.ledger.batches import Batch
from stillhouse.money import Budget
from stillhouse.records import Progress, Traffic, Watch, unwatched
from stillhouse.workspace import RunFolder

HABITS = Habits()


def ask_in_batches(
    parts: Sequence[Part],
    sampling: Sampling,
    limits: Limits,
    ledger: Ledger,
    run: str,
    watch: Watch = unwatched,
    stage: str = "collect",
    habits: Habits = HABITS,
) -> Tally:
    """As `ask_all`, but in batches, and one teacher after the other. A line is reckoned by the teacher's
    `batch_price`, or where that is not known by its `price`, as a bound.

    On SIGINT the batches go on at the provider, and the same call goes on from there. Raises what `ask_all`
    raises, and UsageError where a teacher's server has no batches.
    """
    for part in parts:
        check_cap(limits.max_cost, part.teacher.price)
    ledger.sweep(run)
    first, tally = ledger.size(), new_tally(parts, limits, ledger, run)
    with asyncio.Runner() as runner:
        for part, rows in _with_open_batches(parts, ledger, run):
            asking = _Batching(part, sampling, limits, ledger, run, tally, watch, stage, habits)
            runner.run(asking.all(rows, first))
    return tally


def cancel_batches(
    parts: Sequence[Part],
    limits: Limits,
    ledger: Ledger,
    run: str,
    watch: Watch = unwatched,
    stage: str = "cancel",
    habits: Habits = HABITS,
) -> Tally:
    """Cancel what a run has with its providers and wait until that is done; nothing is asked.

    `answered` of the tally counts the answers that were ready; they are kept.
    """
    tally = new_tally(parts, limits, ledger, run)
    with asyncio.Runner() as runner:
        for part, rows in _with_open_batches(parts, ledger, run):
            sampling = Sampling(0.0, 1.0, 1)
            asking = _Batching(
                part, sampling, limits, ledger, run, tally, watch, stage, habits, cancelling=True
            )
            runner.run(asking.finish(rows))
            tally.answered += asking.results.new
    return tally


def new_tally(parts: Sequence[Part], limits: Limits, ledger: Ledger, run: str) -> Tally:
    """With what the run has spent so far, and what its batches that are with a provider may still cost."""
    tally = Tally(sum(len(part.questions) for part in parts), unknown=ledger.attempts(run).unknown)
    reserved = batches.reserved_in_batches(ledger, run)
    spent = ledger.spent(run).most + before_the_price(parts, limits, ledger, run)
    tally.budget = Budget(limits.max_cost, spent - reserved, reserved)
    return tally


def _with_open_batches(parts: Sequence[Part], ledger: Ledger, run: str) -> list[tuple[Part, list[Batch]]]:
    """Each part with what an earlier process left open; files that belong to no open batch are removed.
    Raises UsageError for a batch of a teacher who is not here."""
    rows = batches.open_batches(ledger, run)
    folder = RunFolder(ledger.workspace.runs / run).batches
    kept = {shard_path(folder, row.shard) for row in rows}
    for path in folder.glob("*"):
        if path not in kept:
            path.unlink()
    found = []
    for part in parts:
        teacher = part.teacher
        own = [row for row in rows if row.teacher == (teacher.endpoint, teacher.model, teacher.revision)]
        rows = [row for row in rows if row not in own]
        found.append((part, own))
    if rows:
        raise UsageError(
            f"the run {run} has a batch with {rows[0].teacher[0]}",
            f"the model {rows[0].teacher[1]} there is not among its teachers any more",
            "put it back into the recipe until its answers are fetched",
        )
    return found


@dataclass(slots=True)
class _Batching:
    """One teacher's side of one call; in `part` it is at the price of batches, `one_by_one` at its ordinary
    one. `known` questions were answered before; `too_dear` is the worst cost of the question for which the
    cap had no room."""

    part: Part
    sampling: Sampling
    limits: Limits
    ledger: Ledger
    run: str
    tally: Tally
    watch: Watch
    stage: str
    habits: Habits
    cancelling: bool = False
    known: int = 0
    too_dear: float | None = None
    one_by_one: Teacher = field(init=False)
    results: Results = field(init=False)
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        folder = RunFolder(self.ledger.workspace.runs / self.run).batches
        self.one_by_one = self.part.teacher
        self.part = replace(self.part, teacher=at_batch_price(self.part.teacher))
        self.results = Results(self.part, self.limits.retries, self.ledger, self.run, self.tally)
        self.jobs = Jobs(
            self.ledger,
            self.run,
            folder,
            self.results,
            self.limits.timeout,
            self.habits,
            self._show,
            self.cancelling,
        )

    async def all(self, rows: Sequence[Batch], first: int) -> None:
        """Finish what was begun, ask what is missing, and count; `first` is the first leaf of this call."""
        async with self.jobs.working():
            watched = self._watched(first)
            if watched:
                await self.jobs.open()  # without batches there, nothing is asked
                await self._canaries(at_start=True)
            await self._bring_to_end(rows)
            counted = self._counted(first)
            self.known = counted.reused + counted.answered - self.results.new
            if self._going_on() and self.known + self.results.new < len(self.part.questions):
                await self._rounds()
                counted = self._counted(first)
            if self._going_on() and watched:
                await self._canaries(at_start=False)
        _add(self.tally, counted)
        stop = self.results.stop
        if stop is None and self.too_dear is not None:
            stop = budget_reached(self.tally, self.too_dear)
        given_up = sum(question.reason not in LEFT_OUT for question in self.tally.failed)
        stop = stop or too_many_failed(self.tally, given_up, self.limits.max_failures)
        if stop is not None:
            raise stop

    def _going_on(self) -> bool:
        return self.results.stop is None and self.too_dear is None

    def _watched(self, first: int) -> bool:
        """Whether canaries go with what is missing: never more of them in a round than there are answers to
        come. Counts what the run bought of them before."""
        canary = self.part.canary
        if canary is None:
            return False
        for each in asked_rounds(self.part, self.sampling, self.ledger):
            for exchange in each:
                if exchange is not None and exchange.run == self.run:
                    self.tally.count(exchange.completion, exchange.cost)
        counted = self._counted(first)
        self.known = counted.reused + counted.answered
        left_out = sum(question.reason in LEFT_OUT - {"in a batch"} for question in counted.failed)
        return len(self.part.questions) - self.known - left_out >= len(canary.questions)

    async def _canaries(self, at_start: bool) -> None:
        """Ask the next round one by one, and see whether the teacher is still the same. What it comes to stop
        for waits until the batches that are paid for were fetched."""
        part = replace(self.part, teacher=self.one_by_one)
        self._judge(part)  # a change that is known
        if not self._going_on():
            return
        asked = next_rounds(part, self.sampling, self.ledger, at_start)
        mine = Tally(len(asked), budget=self.tally.budget)
        try:
            with self.jobs.aside(), tracing(self.run, self.stage) as trace:
                await Asking(
                    [replace(part, questions=asked, canary=None)],
                    self.sampling,
                    self.limits,
                    self.ledger,
                    self.run,
                    mine,
                    lambda _: self._show(),
                    self.stage,
                    trace=trace,
                ).all()
        except BudgetReached:
            self.too_dear = max(worst_cost(question, self.one_by_one, self.sampling) for question in asked)
        except EndpointError as error:
            self.results.stop = error
        finally:
            self.tally.questions += mine.questions
            self.tally.sent += mine.sent
            self.tally.unknown += mine.unknown
            self.tally.budget = mine.budget
            for kind, count in mine.failures.items():
                self.tally.failures[kind] = self.tally.failures.get(kind, 0) + count
            _add(self.tally, mine)
        if self._going_on():
            self._judge(part)

    def _judge(self, part: Part) -> None:
        try:
            conclude(part, self.sampling, self.ledger, self.tally)
        except EndpointError as error:
            self.results.stop = error

    async def finish(self, rows: Sequence[Batch]) -> None:
        """Only finish what was begun."""
        async with self.jobs.working():
            await self._bring_to_end(rows)

    async def _bring_to_end(self, rows: Sequence[Batch]) -> None:
        created = [await self.jobs.create(row) for row in rows]
        await self.jobs.until_over([row for row in created if row is not None])

    async def _rounds(self) -> None:
        """Ask what is missing until nothing is left that may be asked.

        A provider holds so many tokens of one account and refuses the batches beyond. Then fewer are given
        to it at once, and smaller ones when it took not even one.
        """
        lines, room, refusals = self.habits.lines, len(self.part.questions), 0
        while self.results.stop is None:
            self.jobs.full, self.too_dear = [], None
            rows = await self._submitted(lines, room)
            if not rows:
                return
            failed = sum(self.tally.failures.values())
            await self.jobs.until_over(rows)
            cut_short = len(rows) == room or self.too_dear is not None
            if not cut_short and failed == sum(self.tally.failures.values()):
                return
            taken = len(rows) - len(self.jobs.full)
            room = max(1, taken) if self.jobs.full else room + 1
            refusals = 0 if taken else refusals + 1
            if refusals > REFUSALS:
                self.results.stop = EndpointError(
                    "the provider has no room for a batch",
                    self.jobs.full[0],
                    "run the same command again later; answers so far are kept",
                )
            elif refusals:
                lines = max(1, max(row.lines for row in rows) // 2)
                await self.jobs.rest(self.habits.longest_wait)

    async def _submitted(self, lines: int, room: int) -> list[Batch]:
        """As many batches as there is room for, of so many lines at most, created one after the other."""
        rows: list[Batch] = []
        leave = self.limits.unknown == "leave"
        shards = cut(
            self.part,
            self.sampling,
            self.ledger,
            self.jobs.folder,
            (lines, self.habits.size),
            lambda key: key not in self.results.given_up,
            self._reserve,
            leave,
        )
        for shard in shards:
            await self.jobs.open()
            self.jobs.go_on()
            row = await self.jobs.create(self._intend(shard))
            if row is not None:
                rows.append(row)
            self._show()
            if len(rows) == room:
                break
        return rows

    def _reserve(self, worst: float) -> bool:
        if self.tally.budget.admits(worst):
            self.tally.budget = self.tally.budget.reserve(worst)
            return True
        self.too_dear = worst
        return False

    def _intend(self, shard: Shard) -> Batch:
        teacher = self.part.teacher
        self.tally.sent += len(shard.lines)
        return batches.begin_batch(
            self.ledger,
            run=self.run,
            teacher=(teacher.endpoint, teacher.model, teacher.revision),
            decision=self.part.decision,
            price=teacher.price,
            shard=shard.digest,
            lines=shard.lines,
        )

    def _show(self) -> None:
        tally, new, jobs = self.tally, self.results.new, list(self.jobs.told.values())
        failed = len(tally.failed) + len(self.results.given_up)
        counts = {"failed": failed, "new": tally.answered + new, "reused": tally.reused + self.known}
        if tally.unknown:
            counts["sent, unknown"] = tally.unknown
        notes = list(tally.notices)
        worked = sum(job.completed + job.failed for job in jobs)
        if jobs:
            states = ", ".join(sorted({job.status.replace("_", " ") for job in jobs}))
            bad, total = sum(job.failed for job in jobs), sum(row.lines for row in self.jobs.running.values())
            notes.insert(0, f"{states}: {worked:,} of {total:,} lines, {bad:,} failed")
        recorded = sum(counts[name] for name in ("failed", "new", "reused"))
        in_flight = max(0, sum(row.lines for row in self.jobs.running.values()) - worked)
        spent = reserved = expected = None
        if self.part.teacher.price is not None:
            spent, reserved = tally.budget.spent, tally.budget.reserved
            if new:
                expected = spent + (tally.questions - recorded) * self.results.billed / new
        traffic = Traffic(
            in_flight, in_flight, dict(tally.failures), spent, reserved, expected, len(self.jobs.running)
        )
        done = min(tally.questions, recorded + worked)
        self.watch(Progress(self.stage, done, tally.questions, "answers", counts, "; ".join(notes), traffic))

    def _counted(self, first: int) -> Tally:
        """What became of the part's questions; an answer of this run from leaf `first` on is a new one."""
        tally, teacher, seen = Tally(), self.part.teacher, bytearray(self.ledger.size() - first)
        for group in looked_up(self.part.questions, teacher, self.sampling, self.ledger):
            missing = [key for _, key, stored in group if stored is None]
            left = self.ledger.unknown(missing) if self.limits.unknown == "leave" else set()
            for question, key, stored in group:
                exchange = None if stored is None else as_exchange(question, teacher, stored)
                if exchange is not None:
                    is_new = exchange.leaf >= first and exchange.run == self.run
                    again = is_new and bool(seen[exchange.leaf - first])
                    if is_new:
                        seen[exchange.leaf - first] = True
                    tally.answered += is_new and not again
                    tally.reused += again or not is_new
                    if exchange.run == self.run and not again:
                        tally.count(exchange.completion, exchange.cost)
                    continue
                reason = "erased" if stored is not None and stored.erased else self.results.given_up.get(key)
                if reason is None and key in left:
                    reason = "sent, unknown"
                if reason is None and self.too_dear is None:
                    reason = "in a batch"  # of another run
                if reason is not None:
                    tally.failed.append(
                        Unanswered(question.prompt_id, question.sample_index, teacher.model, reason)
                    )
        return tally


def _add(tally: Tally, part: Tally) -> None:
    """Add what became of a part's questions."""
    tally.reused += part.reused
    tally.answered += part.answered
    tally.failed += part.failed
    tally.prompt_tokens += part.prompt_tokens
    tally.completion_tokens += part.completion_tokens
    tally.bought += part.bought
    tally.billed += part.billed
