"""Who is there in a month, and what each of them asks.

    everyone = people("calibrate", seed=0, count=10_000)
    for request in requests(everyone[0], "calibrate", seed=0): ...

An account depends on the month, the seed, its kind and its number within the kind, and on nothing else: it is
the same in a month of ten accounts and in one of ten thousand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from random import Random

from traffic import distillers, hard, ordinary
from traffic.account import CAP, DAYS, FEWEST, START, Kind, Person, Request, Setting
from traffic.applications import PACKAGES
from traffic.arrivals import DAY, Span, phase_of, read_trace, trace_names
from traffic.sources import shelf
from traffic.wording import Month

__all__ = ["KINDS", "MIX", "Person", "Request", "people", "person", "requests"]

KINDS: dict[str, Kind] = {**ordinary.KINDS, **hard.KINDS, **distillers.KINDS}
MIX: dict[str, float] = {name: kind.share for name, kind in KINDS.items()}
SIZES = (50, 500)  # accounts of one operator


def people(month: Month, seed: int, count: int, mix: Mapping[str, float] = MIX) -> list[Person]:
    """`count` accounts, of each kind in proportion to its weight in `mix`, kind after kind. What is left by
    rounding down goes to the kinds that lost most."""
    total = sum(mix.values())
    exact = {kind: count * weight / total for kind, weight in mix.items()}
    numbers = {kind: math.floor(number) for kind, number in exact.items()}
    by_loss = sorted(exact, key=lambda kind: numbers[kind] - exact[kind])
    for kind in by_loss[: count - sum(numbers.values())]:
        numbers[kind] += 1
    return [person(month, seed, kind, number) for kind in mix for number in range(numbers[kind])]


def person(month: Month, seed: int, kind: str, number: int) -> Person:
    """The `number`-th account of a kind."""
    what = KINDS[kind]
    name = f"{kind}/{number}"
    draw = Random(f"{month}/{seed}/{name}/who")
    operator = ""
    packaged = draw.random() < what.packaged
    package = draw.choices(range(PACKAGES), [1.0 / (rank + 1) for rank in range(PACKAGES)])[0]
    cover = draw.choice(what.covers) if what.covers else ""
    cover_source = draw.choice(KINDS[cover].sources[month]) if cover else ""
    if kind == "distiller:operator":
        operator = f"operator-{_team(month, seed, number)[0]}"
        draw = Random(f"{month}/{seed}/{operator}/who")  # source and trace are the operator's
    source = draw.choice(what.sources[month])
    trace = "" if draw.random() < what.steady else draw.choice(trace_names(month))
    return Person(
        name,
        kind,
        what.side,
        source,
        trace,
        what.declared,
        operator,
        application=f"{kind}#{package}" if packaged else "",
        cover=cover,
        cover_source=cover_source,
    )


def requests(person: Person, month: Month, seed: int, rate: float = 1.0) -> Iterator[Request]:
    """What the account asks in the month, in order of time: at least one request, at most `CAP * rate`;
    `rate` multiplies how much. Raises FileNotFoundError where the data are absent."""
    kind = KINDS[person.kind]
    draw = Random(f"{month}/{seed}/{person.id}/volume")
    volume = kind.median * math.exp(kind.spread * draw.gauss(0.0, 1.0))
    volume = min(CAP, max(FEWEST, volume)) * rate
    end, most = START[month] + DAYS * DAY, math.ceil(CAP * rate)
    number = 0
    for again in itertools.count():
        for request in itertools.islice(_drawn(person, month, seed, volume, again), most):
            if request.at >= end:
                break
            yield request
            number += 1
        if number:
            return


def _drawn(person: Person, month: Month, seed: int, volume: float, again: int) -> Iterator[Request]:
    """An account's requests, for the `again`-th time: a client may pause for as long as an account is there,
    and an account that asks nothing is none."""
    draw = Random(f"{month}/{seed}/{person.id}/requests/{again}")
    together = Random(f"{month}/{seed}/{person.operator}/when") if person.operator else draw
    kind = KINDS[person.kind]
    span = _span(together, kind)
    trace = read_trace(person.trace) if person.trace else None
    phase = phase_of(together, trace, span[0]) if trace else 0
    place = _place(month, seed, person)
    return kind.make(draw, Setting(person, month, seed, shelf(month), trace, phase, span, volume, place))


def _span(draw: Random, kind: Kind) -> Span:
    """One in eight of those who would be there all month came in the course of it."""
    length = draw.uniform(*kind.days) * DAY
    first = draw.uniform(0.0, DAYS * DAY - length)
    if kind.days == (DAYS, DAYS) and draw.random() < 0.125:
        first = draw.uniform(0.0, 0.8 * DAYS) * DAY
        length = DAYS * DAY - first
    return first, first + length


def _place(month: Month, seed: int, person: Person) -> tuple[int, int]:
    """Which of how many accounts of its operator this is."""
    if not person.operator:
        return 0, 1
    number = int(person.id.rpartition("/")[2])
    _, first, size = _team(month, seed, number)
    return number - first, size


@lru_cache(maxsize=1 << 16)
def _team(month: Month, seed: int, number: int) -> tuple[int, int, int]:
    """The operator of the `number`-th account that has one: which, its first account, how many it has. Sizes
    are log-uniform."""
    draw = Random(f"{month}/{seed}/operators")
    first = operator = 0
    low, high = map(math.log, SIZES)
    while True:
        size = round(math.exp(draw.uniform(low, high)))
        if number < first + size:
            return operator, first, size
        first, operator = first + size, operator + 1
