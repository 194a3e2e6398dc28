"""What the simulation is made of: accounts, their requests, and how requests come of starts and turns."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from traffic.arrivals import DAY, Span, Trace, arrivals
from traffic.sources import Shelf
from traffic.wording import Month

Side = Literal["ordinary", "hard", "distiller"]

START: dict[Month, float] = {
    "calibrate": 1_788_220_800.0,
    "test": 1_790_812_800.0,
}  # 1 September, 1 October 2026
DAYS = 30
RELEASE = 15 * DAY  # seconds into the month a new model comes out
FEWEST, CAP = 20, 4_000  # requests a month that an account is drawn to ask, at rate 1

OLD_MODEL, NEW_MODEL, SMALL_MODEL = "house-large-1", "house-large-2", "house-small-1"
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Person:
    """One simulated account of one month. `kind`, `side` and `operator` are the truth, for scoring alone."""

    id: str
    kind: str
    side: Side
    source: str  # where its texts come from: names of `sources.SOURCES`, joined by "+"
    trace: str  # whose arrivals it follows, such as "client-7"; "" for a schedule of its own
    declared: str = ""  # a use that the customer declared
    operator: str = ""  # accounts of one operator share this; "" = alone
    language: str = "en"
    application: str = ""  # a packaged application, whose templates other customers use as well
    cover: str = ""  # the kind of ordinary traffic that a distiller hides in
    cover_source: str = ""

    @property
    def sources(self) -> frozenset[str]:
        """Every source that its texts may come from. Code and texts that users of `chat:many` paste are of
        all of the month's sources, without being named here."""
        return frozenset(f"{self.source}+{self.cover_source}".strip("+").split("+"))


@dataclass(frozen=True, slots=True)
class Request:
    """What a gateway sees of one answered request."""

    at: float  # Unix seconds
    model: str
    system: str
    earlier: tuple[str, ...]  # user, assistant, user, ...; "" where not kept
    text: str  # the last user message, template and own words together
    max_tokens: int | None
    temperature: float | None
    n: int
    logprobs: int  # top_logprobs asked for, 0 = none
    reasoning: bool  # the hidden reasoning was asked for
    input_tokens: int
    output_tokens: int

    def body(self) -> dict[str, Any]:
        """The body of it for /v1/chat/completions."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for place, text in enumerate((*self.earlier, self.text)):
            messages.append({"role": ("user", "assistant")[place % 2], "content": text})
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.n > 1:
            body["n"] = self.n
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.logprobs}
        if self.reasoning:
            body["reasoning_effort"] = "high"
        return body


@dataclass(frozen=True, slots=True)
class Style:
    """What stays the same from request to request. From `moves` on (Unix seconds) it is `next_model`."""

    system: str = ""
    model: str = OLD_MODEL
    next_model: str = NEW_MODEL
    moves: float = NEVER
    max_tokens: int | None = None
    temperature: float | None = None
    n: int = 1
    logprobs: int = 0
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """What a kind of account is made from."""

    person: Person
    month: Month
    seed: int
    shelf: Shelf
    trace: Trace | None
    phase: int  # windows by which the trace is shifted
    span: Span  # when the account is active
    volume: float  # requests expected in the span
    place: tuple[int, int]  # which of how many accounts of its operator

    def starts(self, draw: Random, share: float = 1.0, span: Span | None = None) -> Iterator[float]:
        """When a `share` of its requests come, as expected; within `span` instead of its own."""
        span = span or self.span
        return arrivals(draw, self.trace, self.phase, self.start, span, self.volume * share)

    @property
    def start(self) -> float:
        return START[self.month]

    @property
    def release(self) -> float:
        return self.start + RELEASE


Ask = Callable[[float, int], Request]  # when, and in which conversation
Requests = Iterator[Request]


def put(style: Style, at: float, text: str, output: float, earlier: tuple[str, ...] = ()) -> Request:
    """One request; `output` tokens are what the answer would take if nothing cut it."""
    size = len(style.system) + len(text) + sum(map(len, earlier))
    cut = output if style.max_tokens is None else min(output, style.max_tokens)
    return Request(
        at,
        style.model if at < style.moves else style.next_model,
        style.system,
        earlier,
        text,
        style.max_tokens,
        style.temperature,
        style.n,
        style.logprobs,
        style.reasoning,
        size // 4 + 8,
        max(1, int(cut)) * style.n,
    )


def stream(draw: Random, starts: Iterator[float], ask: Ask, turns: float = 1.0) -> Requests:
    """Conversations that begin at `starts`, of `turns` requests in the mean, in order of time.

    Between two turns lie some tens of seconds, log-normal.
    """
    go_on = 1.0 - 1.0 / turns
    waiting: list[tuple[float, int]] = []

    def asked(at: float, talk: int) -> Request:
        if go_on and draw.random() < go_on:
            heapq.heappush(waiting, (at + draw.lognormvariate(3.9, 0.9), talk))
        return ask(at, talk)

    for talk, start in enumerate(starts):
        while waiting and waiting[0][0] <= start:
            yield asked(*heapq.heappop(waiting))
        yield asked(start, talk)
    while waiting:
        yield asked(*heapq.heappop(waiting))


def merged(streams: list[Requests]) -> Requests:
    return heapq.merge(*streams, key=lambda request: request.at)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of account: how many of 10,000, how much it asks, of which sources, and what it does."""

    side: Side
    share: int
    median: float  # requests a month; log-normal
    spread: float  # standard deviation of the logarithm
    sources: dict[Month, tuple[str, ...]]
    make: Callable[[Random, Setting], Requests]
    declared: str = ""
    packaged: float = 0.0  # the share that uses an application which many customers use
    steady: float = 0.0  # the share with a schedule of its own
    days: tuple[float, float] = (DAYS, DAYS)  # for so many it is active
    covers: tuple[str, ...] = ()  # kinds of ordinary traffic to hide in
