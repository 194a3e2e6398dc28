"""What the overview says: traffic over the last hour or day, and whether all is well. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from stillhouse.gateway.console.charts import Series, Stretches, bars
from stillhouse.gateway.console.shown import compact, money
from stillhouse.guard.events import Minute, Traffic

Outcome = Literal["answered", "refused", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "refused", "failed")


@dataclass(frozen=True, slots=True)
class Span:
    """`stretch` is how many minutes a bar stands for."""

    name: str
    minutes: int
    stretch: int


SPANS = {span.name: span for span in (Span("hour", 60, 1), Span("day", 1440, 15))}


@dataclass(slots=True)
class Sums:
    answered: int = 0
    refused: int = 0
    failed: int = 0
    input: int = 0
    output: int = 0
    cost: int = 0
    lasted: int = 0  # microseconds, of those that were sent on

    @property
    def requests(self) -> int:
        return self.answered + self.refused + self.failed

    @property
    def sent(self) -> int:
        return self.answered + self.failed

    @property
    def mean(self) -> float | None:
        """Seconds from the request to the answer's end."""
        return self.lasted / 1e6 / self.sent if self.sent else None

    def add(self, minute: Minute, traffic: Traffic) -> None:
        match outcome(minute):
            case "refused":
                self.refused += traffic.requests
                return
            case "failed":
                self.failed += traffic.requests
            case "answered":
                self.answered += traffic.requests
        self.input += traffic.input_tokens
        self.output += traffic.output_tokens
        self.cost += traffic.cost
        self.lasted += traffic.lasted


@dataclass(frozen=True, slots=True)
class Server:
    """An upstream: `state` is "well", "rests" or "failed", `said` tells more."""

    url: str
    state: str
    said: str


@dataclass(frozen=True, slots=True)
class Overview:
    """`now` is of the last whole minute, `all` of the span; `refusals` are by reason, the commonest first."""

    span: Span
    now: Sums
    all: Sums
    refusals: Sequence[tuple[str, int]]
    models: Mapping[str, Sums]
    charts: Sequence[tuple[str, Markup]]


def outcome(minute: Minute) -> Outcome:
    """An error that the upstream tells of the client's request is an answer."""
    if minute.ended == "refused":
        return "refused"
    return "failed" if minute.ended in ("failed", "upstream_cut") or minute.status == 5 else "answered"


def overview(traffic: Mapping[Minute, Traffic], span: Span, now: float) -> Overview:
    """`traffic` of the span's minutes up to `now` (Unix seconds)."""
    last = int(now // 60)
    first = first_minute(span, now)
    count = (last - first) // span.stretch + 1
    stretches = [Sums() for _ in range(count)]
    whole, minute_ago = Sums(), Sums()
    models: dict[str, Sums] = {}
    refusals: Counter[str] = Counter()
    for minute, sums in traffic.items():
        if not first <= minute.minute <= last:
            continue
        stretches[(minute.minute - first) // span.stretch].add(minute, sums)
        whole.add(minute, sums)
        models.setdefault(minute.model, Sums()).add(minute, sums)
        if minute.minute == last - 1:
            minute_ago.add(minute, sums)
        if outcome(minute) == "refused":
            refusals[minute.reason or "without a reason"] += sums.requests
    over = Stretches(first * 60.0, span.stretch * 60.0, "%H:%M")
    return Overview(span, minute_ago, whole, refusals.most_common(), models, _charts(stretches, over))


def first_minute(span: Span, now: float) -> int:
    """Where the span begins: whole stretches, of which the last one holds `now`."""
    last = int(now // 60)
    return (last // span.stretch - span.minutes // span.stretch + 1) * span.stretch


def verdict(servers: Mapping[str, Sequence[Server]], recording: bool, lost: int) -> tuple[str, str]:
    """The page's first sentence: how grave it is ("well", "ill") and what it says."""
    every = [server for each in servers.values() for server in each]
    ill = [server for server in every if server.state != "well"]
    dark = [name for name, each in servers.items() if all(server.state != "well" for server in each)]
    if not recording:
        return "ill", "Requests are not being recorded."
    if dark:
        what = f"{dark[0]} has" if len(dark) == 1 else f"{len(dark)} models have"
        return "ill", f"{what} no upstream that answers."
    if ill:
        return "ill", f"{len(ill)} of {len(every)} upstreams {'does' if len(ill) == 1 else 'do'} not answer."
    if lost:
        return "ill", f"{lost:,} {'event was' if lost == 1 else 'events were'} lost."
    return "well", "All is well."


def _charts(stretches: Sequence[Sums], over: Stretches) -> Sequence[tuple[str, Markup]]:
    outcomes = [Series(name, name, [getattr(each, name) for each in stretches]) for name in OUTCOMES]
    tokens = [
        Series("read", "input", [each.input for each in stretches]),
        Series("written", "output", [each.output for each in stretches]),
    ]
    spent = [Series("spent", "spent", [each.cost for each in stretches])]
    return (
        ("Requests", bars("Requests", over, outcomes, compact)),
        ("Tokens", bars("Tokens", over, tokens, compact)),
        ("Spend", bars("Spend", over, spent, lambda value: money(round(value)))),
    )
