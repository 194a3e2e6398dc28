"""An event: what is kept of a request to a served model, whatever became of it; and the sums over events.

No text of a request or an answer, no secret and no address of a client is in it. In the store it is a row of
whole numbers and short texts, in the order of `FIELDS`: times in microseconds, `stream` 0 or 1, `changed` in
one text with spaces between. Its canonical form is the RFC 8785 JSON object of that row, which no two writers
of JSON write differently, for it has no fractions.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal, NamedTuple

import orjson

from stillhouse.guard.limits import Step

Ended = Literal["whole", "client_left", "upstream_cut", "refused", "failed"]
Counted = Literal["told", "bound"]
Row = tuple[str | int | None, ...]

# In the order of canonical JSON, so that nothing need be sorted when an event is written.
FIELDS = (
    "account",
    "at",
    "changed",
    "choices",
    "cost",
    "counted",
    "ended",
    "first_byte",
    "id",
    "input_tokens",
    "key",
    "model",
    "organisation",
    "output_tokens",
    "reason",
    "route",
    "seconds",
    "status",
    "stream",
    "upstream",
)
LONGEST_LABEL = 128
MIXED = (
    -1
)  # in place of a price: the request lay in two steps of its schedule, or none of them explains its cost
_DAY = 86_400_000_000  # microseconds
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Event:
    """`at` is when the request came (Unix seconds), `first_byte` and `seconds` are counted from there; `cost`
    is in billionths of a dollar, `counted` says who counted tokens and cost: the upstream told them, or we
    took a bound.
    `upstream` and `organisation` are "" where there is none, `reason` is a code and "" where none is needed.
    """

    id: str
    at: float
    organisation: str
    account: str
    key: str
    model: str
    upstream: str
    route: str
    stream: bool
    status: int
    ended: Ended
    reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    counted: Counted = "told"
    cost: int = 0
    first_byte: float | None = None
    seconds: float = 0.0
    choices: int = 1
    changed: tuple[str, ...] = ()


def row_of(event: Event) -> Row:
    """The event as it is stored. Of the fields that a client can write, the characters that nobody sees are
    escaped and the rest is cut: see `label`."""
    first = event.first_byte
    return (
        event.account,
        round(event.at * 1e6),
        " ".join(event.changed),
        event.choices,
        event.cost,
        event.counted,
        event.ended,
        None if first is None else round(first * 1e6),
        label(event.id),
        event.input_tokens,
        event.key,
        label(event.model),
        event.organisation,
        event.output_tokens,
        label(event.reason),
        event.route,
        round(event.seconds * 1e6),
        event.status,
        int(event.stream),
        event.upstream,
    )


def canonical(row: Row) -> bytes:
    """RFC 8785 JSON of a row. Raises ValueError for what has no such form: numbers beyond 2**53 - 1 and lone
    surrogates."""
    try:
        return orjson.dumps(dict(zip(FIELDS, row, strict=True)), option=orjson.OPT_STRICT_INTEGER)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"an event has no canonical form: {error}") from None


def event_of(row: Row) -> Event:
    values: dict[str, Any] = dict(zip(FIELDS, row, strict=True))
    first = values["first_byte"]
    return Event(
        **values
        | {
            "at": values["at"] / 1e6,
            "first_byte": None if first is None else first / 1e6,
            "seconds": values["seconds"] / 1e6,
            "stream": bool(values["stream"]),
            "changed": tuple(values["changed"].split()),
        }
    )


def label(text: str) -> str:
    """The text itself where it is short and printable; otherwise its beginning with all else escaped."""
    if len(text) <= LONGEST_LABEL and text.isprintable():
        return text
    return text.encode("unicode_escape").decode()[:LONGEST_LABEL]


def date_of(day: int) -> date:
    return _EPOCH + timedelta(days=day)


def number_of(day: date) -> int:
    """The inverse of `date_of`."""
    return (day - _EPOCH).days


class Rate(NamedTuple):
    """What a served model's tokens cost: its schedule's name and steps; none where nothing is charged."""

    schedule: str = ""
    steps: tuple[Step, ...] = ()


class Charge(NamedTuple):
    """What a request is summed under: the model, "" for one that is not served, since its name is the
    client's; its schedule; and the prices of the step that explains what it cost, in billionths of a dollar
    for a token, or MIXED."""

    model: str
    schedule: str
    input_price: int
    output_price: int


class Part(NamedTuple):
    """What usage is summed by: the day, counted from 1970-01-01 (UTC), who asked, and a `Charge`."""

    day: int
    organisation: str
    account: str
    key: str
    model: str
    schedule: str
    input_price: int
    output_price: int


class Usage(NamedTuple):
    """Sums over the requests of a part. `refused` of them were refused by the guard; what `bound` of them
    used or cost was not known for certain, so that a bound was counted."""

    requests: int = 0
    refused: int = 0
    bound: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(*(mine + its for mine, its in zip(self, other, strict=True)))


def charge_of(event: Event, rates: Mapping[str, Rate]) -> Charge:
    """`rates` names every model that is served."""
    rate = rates.get(event.model)
    if rate is None:
        return _UNKNOWN
    taken, given, cost = event.input_tokens, event.output_tokens, event.cost
    if taken or given or cost:
        return Charge(event.model, rate.schedule, *price_of(rate.steps, taken, given, cost))
    return Charge(event.model, "", 0, 0)


def totals(events: Iterable[Event], rates: Mapping[str, Rate]) -> dict[Part, Usage]:
    """Usage by organisation, account, key, model and day, and by price: as the store sums it."""
    sums: dict[Part, Usage] = {}
    for event in events:
        day = round(event.at * 1e6) // _DAY
        part = Part(day, event.organisation, event.account, event.key, *charge_of(event, rates))
        used = Usage(
            1,
            int(event.ended == "refused"),
            int(event.counted == "bound"),
            event.input_tokens,
            event.output_tokens,
            event.cost,
        )
        sums[part] = sums.get(part, Usage()).plus(used)
    return sums


class Minute(NamedTuple):
    """What traffic is summed by: minutes since 1970-01-01 (UTC), and what became of the requests. `status` is
    in hundreds, 0 where nothing was answered."""

    minute: int
    model: str
    status: int
    ended: str
    reason: str


class Traffic(NamedTuple):
    """Sums over the events of a minute; `lasted` is in microseconds."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    lasted: int = 0

    def plus(self, other: Traffic) -> Traffic:
        return Traffic(*(mine + its for mine, its in zip(self, other, strict=True)))


def by_minute(events: Iterable[Event], served: Container[str]) -> dict[Minute, Traffic]:
    """What was asked of a model that is not `served` is summed under the model "", as in `totals`."""
    sums: dict[Minute, list[int]] = {}
    for event in events:
        model = event.model if event.model in served else ""
        minute = Minute(int(event.at // 60), model, event.status // 100, event.ended, label(event.reason))
        sum = sums.get(minute)
        if sum is None:
            sums[minute] = sum = [0, 0, 0, 0, 0]
        sum[0] += 1
        sum[1] += event.input_tokens
        sum[2] += event.output_tokens
        sum[3] += event.cost
        sum[4] += round(event.seconds * 1e6)
    return {minute: Traffic(*sum) for minute, sum in sums.items()}


def price_of(steps: tuple[Step, ...], taken: int, given: int, cost: int) -> tuple[int, int]:
    """The prices (input, output) of the first step that explains this cost; else MIXED twice."""
    for step in steps:
        if taken * step.input + given * step.output == cost:
            return step.input, step.output
    return (MIXED, MIXED) if cost else (0, 0)


_UNKNOWN = Charge("", "", 0, 0)
