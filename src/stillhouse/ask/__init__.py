"""Every question that stillhouse puts to a model on its own behalf goes through here.

For each question: is it answered in the ledger already? If not: reserve its worst case against the cap,
write the attempt, send, and write the exchange, in this order. A process that dies in between leaves an
attempt that is shown as `sent, unknown`; an answer that was written is never asked for again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import orjson

from stillhouse.errors import BudgetReached, EndpointError, Interrupted, StillhouseError, UsageError
from stillhouse.ledger import Ledger, StoredExchange, exchange_key, read_workspace_key
from stillhouse.models.endpoint import Endpoint, Failure, parse_chat
from stillhouse.money import Budget, Price, worst_prompt_tokens
from stillhouse.records import Completion, Exchange, Message, Progress, Watch, unwatched

PATH = "/chat/completions"
LOOKUP = 512  # questions looked up in the ledger at once


@dataclass(frozen=True, slots=True)
class Teacher:
    """Whom to ask. `endpoint` and `revision` are lasting names and enter every exchange key; `url` may
    change. `url` is called when the first question must really be sent, so that a local teacher is
    started only when it is needed; None means that nothing can be asked (imported answers)."""

    model: str
    endpoint: str
    revision: str
    url: Callable[[], str] | None
    key_env: str | None = None
    system: str = ""
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    concurrency: int
    timeout: float
    retries: int
    max_cost: float | None = None
    max_failures: float = 1.0


@dataclass(frozen=True, slots=True)
class Question:
    prompt_id: str
    messages: tuple[Message, ...]
    sample_index: int = 0


@dataclass(slots=True)
class Tally:
    """What became of the questions: questions = reused + answered + failed, once the work is over.
    `sent` counts attempts, so retries count again."""

    questions: int = 0
    reused: int = 0
    answered: int = 0
    sent: int = 0
    unknown: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    disputed: int = 0
    budget: Budget = field(default_factory=Budget)


def logical_endpoint(url: str, provider: str | None) -> str:
    return provider or urlsplit(url).hostname or url


def request_body(question: Question, teacher: Teacher, sampling: Sampling) -> dict[str, Any]:
    """The JSON body as it is sent. A seed is sent only where answers are drawn, one for each sample."""
    system = (Message("system", teacher.system),) if teacher.system else ()
    body: dict[str, Any] = {
        "model": teacher.model,
        "messages": [{"role": m.role, "content": m.content} for m in (*system, *question.messages)],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.temperature > 0:
        body["seed"] = question.sample_index
    return body


def question_key(workspace_key: bytes, question: Question, teacher: Teacher, sampling: Sampling) -> str:
    """The exchange key. Imported answers have no sampling settings, so their key holds only the messages."""
    body = request_body(question, teacher, sampling)
    if teacher.url is None:
        body = {"model": teacher.model, "messages": body["messages"]}
    return exchange_key(
        workspace_key,
        path=PATH,
        endpoint=teacher.endpoint,
        revision=teacher.revision,
        body=body,
        sample_index=question.sample_index,
        epoch=0,
    )


def worst_cost(question: Question, teacher: Teacher, sampling: Sampling) -> float:
    """US dollars that one attempt can cost at most; 0 where no price is known and so none can be capped."""
    if teacher.price is None:
        return 0.0
    size = len(teacher.system.encode()) + sum(len(m.content.encode()) for m in question.messages)
    return teacher.price.of(worst_prompt_tokens(size, len(question.messages) + 1), sampling.max_tokens)


def answers(
    questions: Iterable[Question], teacher: Teacher, sampling: Sampling, ledger: Ledger
) -> Iterator[tuple[Question, Exchange | None]]:
    """Each question with its exchange from the ledger, in order; None where there is none (yet)."""
    secret = read_workspace_key(ledger.workspace)
    for batch in _batches(questions, LOOKUP):
        keys = [question_key(secret, q, teacher, sampling) for q in batch]
        found = {stored.key: stored for stored in ledger.exchanges(set(keys))}
        for question, key in zip(batch, keys, strict=True):
            stored = found.get(key)
            yield question, None if stored is None else _exchange(question, teacher, stored)


async def list_models(url: str, key_env: str | None) -> list[str]:
    """The models that a server says it has; asks none of them anything. Raises EndpointError."""
    async with Endpoint(url, key_env) as endpoint:
        return await endpoint.models()


def ask(
    questions: Sequence[Question],
    teacher: Teacher,
    sampling: Sampling,
    limits: Limits,
    ledger: Ledger,
    run: str,
    decision: int,
    watch: Watch = unwatched,
    stage: str = "collect",
) -> Tally:
    """Put every question that the ledger cannot answer to the teacher, and return when none is left.

    Answers are read with `answers`. Raises EndpointError when asking further is pointless (no access, no
    such model, nobody there, too many failures), BudgetReached at the cap and Interrupted on SIGINT;
    in each case what was answered is in the ledger and the same call goes on from there.
    """
    if limits.max_cost is not None and teacher.price is None:
        raise UsageError(
            "max_cost is set, but the price of the teacher is not known",
            "a cap can only be kept when each request's worst case is known",
            "add [teacher.price] with input and output in US dollars per million tokens, or remove max_cost",
        )
    tally = Tally(questions=len(questions), budget=Budget(limits.max_cost))
    tally.unknown = ledger.sweep(run)
    missing = []
    for question, exchange in answers(questions, teacher, sampling, ledger):
        if exchange is None:
            missing.append(question)
        else:
            tally.reused += 1
    watch(_progress(stage, tally))
    if missing:
        if teacher.url is None:
            raise UsageError(
                f"{len(missing)} of {len(questions)} prompts have no imported answer",
                f"the recipe says `imported = true` for {teacher.model}",
                "bring them in with `stillhouse import FILE`, or give the teacher an endpoint",
            )
        secret = read_workspace_key(ledger.workspace)
        asking = _Asking(teacher, sampling, limits, ledger, secret, run, decision, tally, watch, stage)
        with asyncio.Runner() as runner:
            runner.run(asking.all(missing))
    return tally


@dataclass(slots=True)
class _Asking:
    """The state of one call of `ask`: shared by its workers, all on one event loop."""

    teacher: Teacher
    sampling: Sampling
    limits: Limits
    ledger: Ledger
    secret: bytes
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

    async def all(self, questions: Sequence[Question]) -> None:
        assert self.teacher.url is not None
        url = await asyncio.to_thread(self.teacher.url)
        queue = iter(questions)
        loop = asyncio.get_running_loop()
        restore = _on_interrupt(loop, self._interrupt)
        try:
            async with Endpoint(url, self.teacher.key_env) as endpoint:
                workers = [
                    self._worker(endpoint, queue) for _ in range(min(self.limits.concurrency, len(questions)))
                ]
                await asyncio.gather(*workers)
        finally:
            restore()
        if self.stop is not None:
            raise self.stop

    async def _worker(self, endpoint: Endpoint, queue: Iterator[Question]) -> None:
        for question in queue:
            if self.stop is not None:
                return
            await self._question(endpoint, question)
            self.watch(_progress(self.stage, self.tally))

    async def _question(self, endpoint: Endpoint, question: Question) -> None:
        reason = "unknown"
        for attempt in range(self.limits.retries + 1):
            if self.stop is not None:
                return
            outcome = await self._attempt(endpoint, question)
            if outcome is None:
                return
            reason = outcome.kind
            self.tally.failures[reason] = self.tally.failures.get(reason, 0) + 1
            nobody_there = reason == "unreachable" and self.tally.answered == 0 and attempt >= 1
            if outcome.fatal or nobody_there:
                self.stop = self.stop or _fatal(outcome, endpoint.base_url, self.teacher)
                return
            if reason == "bad_request":
                break
            if attempt < self.limits.retries:
                await self._wait(attempt, outcome)
        self.tally.failed[(question.prompt_id, question.sample_index)] = reason
        self._judge_failures()

    async def _wait(self, attempt: int, outcome: Failure) -> None:
        """Exponential with full jitter; a Retry-After holds back every worker, and is only ever extended."""
        now = time.monotonic()
        if outcome.retry_after is not None:
            self.paused_until = max(self.paused_until, now + outcome.retry_after)
        pause = max(self.paused_until - now, 0.0) + self.jitter.uniform(0, min(30.0, 0.25 * 2**attempt))
        while pause > 0 and self.stop is None:
            await asyncio.sleep(min(pause, 0.2))
            pause -= 0.2

    async def _attempt(self, endpoint: Endpoint, question: Question) -> Failure | None:
        """One request. None when it was answered (or the work is to stop), else why it failed."""
        worst = worst_cost(question, self.teacher, self.sampling)
        if not await self._reserve(worst):
            return None
        body = request_body(question, self.teacher, self.sampling)
        key = question_key(self.secret, question, self.teacher, self.sampling)
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
            cost = self._cost(completion, worst)
            leaf = self._leaf(key, question, completion, attempt, milliseconds)
            contents = {"request": orjson.dumps(body), "response": outcome.raw}
            await asyncio.wrap_future(self.ledger.answer(attempt, leaf, contents))
            self._count(completion)
            return None
        finally:
            await self._settle(worst, cost)

    def _leaf(
        self,
        key: str,
        question: Question,
        completion: Completion,
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
        }

    def _cost(self, completion: Completion, worst: float) -> float:
        usage, price = completion.usage, self.teacher.price
        if price is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            return worst
        cost = price.of(usage.prompt_tokens, usage.completion_tokens)
        if cost > worst * (1 + 1e-9):
            self.tally.disputed += 1
            self.stop = self.stop or EndpointError(
                f"the teacher claims usage of {cost:.6f} US$, the request can cost {worst:.6f} at most",
                "its token counts do not fit the request that was sent",
                "the answer is kept and marked; settle it with the provider before going on",
            )
        return cost

    def _count(self, completion: Completion) -> None:
        self.tally.answered += 1
        self.tally.prompt_tokens += completion.usage.prompt_tokens or 0
        self.tally.completion_tokens += completion.usage.completion_tokens or 0

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
        finished = self.tally.answered + len(self.tally.failed)
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


def _exchange(question: Question, teacher: Teacher, stored: StoredExchange) -> Exchange | None:
    """The stored exchange, or None where its content was erased or no longer parses."""
    if stored.response is None:
        return None
    try:
        completion = parse_chat(stored.response)[0]
    except (ValueError, IndexError):
        return None
    return Exchange(
        key=stored.key,
        leaf=stored.leaf,
        decision=int(stored.body["decision"]),
        teacher=teacher.model,
        prompt_id=question.prompt_id,
        messages=question.messages,
        completion=replace(completion, logprobs=None),
        sample_index=question.sample_index,
        reused=True,
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


def _progress(stage: str, tally: Tally) -> Progress:
    done = tally.reused + tally.answered + len(tally.failed)
    counts = {"failed": len(tally.failed), "new": tally.answered, "reused": tally.reused}
    if tally.unknown:
        counts["sent, unknown"] = tally.unknown
    money = f"US$ {tally.budget.spent:.4f}" if tally.budget.spent else ""
    return Progress(stage, done, tally.questions, "answers", counts, money)


def _on_interrupt(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> Callable[[], None]:
    """First SIGINT: `act`. The second one falls through to Python's own handling."""
    import signal

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


def _batches(items: Iterable[Question], size: int) -> Iterator[list[Question]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
