"""The algorithm of the limits, which every store of counts follows: reserve, settle, reap.

Nothing here reads a clock or a disk: `now` is the store's time in whole microseconds since 1970 (UTC), and it
never goes back. A request belongs to the slots and the month in which it was reserved.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stillhouse.guard.limits import Granted, Limit, Measure, Refused, Room, Used, Wanted, Window
from stillhouse.guard.prices import cost as price
from stillhouse.guard.prices import worst
from stillhouse.guard.windows import (
    MOST,
    SECOND,
    WIDTH,
    Code,
    Counters,
    begin_of_month,
    gone_at,
    is_limited,
    slots,
)

LATE = 3600 * SECOND  # a reservation can still be settled so long after its time
TWICE = 15 * SECOND  # and so long after the first time, which changes nothing
MONEY: Code = ("money", "month")

Charged = tuple[str, Code, int, int]  # subject, counter, where it begins and where was added
Row = tuple[Counters, Code] | None  # the counter of a limit; None for what is in flight


@dataclass(frozen=True, slots=True)
class Spent:
    """What a durable record says that a subject used at a time (unix seconds): amounts by measure and window,
    and tokens by the name of the schedule that priced them, which is the payer's volume."""

    subject: str
    at: float
    amounts: Mapping[tuple[Measure, Window], int]
    volume: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reserved:
    wanted: Wanted
    charged: tuple[Charged, ...]
    at: int
    cost: int


@dataclass(slots=True)
class Book:
    """All that is counted. `states` are what has to outlive the process; requests in flight end with it."""

    states: dict[str, Counters] = field(default_factory=dict)
    reserved: dict[str, Reserved] = field(default_factory=dict)
    in_flight: dict[str, dict[str, int]] = field(default_factory=dict)  # subject -> request -> its time is up
    ends: list[tuple[int, str]] = field(default_factory=list)  # heap of these times
    late: list[tuple[int, str]] = field(default_factory=list)  # heap: when it can no longer be settled
    settled: dict[str, int] = field(default_factory=dict)
    settled_at: deque[tuple[int, str]] = field(default_factory=deque)

    def counters(self, name: str) -> Counters:
        found = self.states.get(name)
        if found is None:
            found = self.states[name] = Counters()
        return found


def settled_code(schedule: str) -> Code:
    """The payer's settled tokens of the month under a schedule, its volume."""
    return f"settled {schedule}", "month"


def open_codes(schedule: str) -> tuple[Code, Code, Code]:
    """What is reserved and not settled of it: input tokens, output tokens, and the money held for them."""
    return (f"input {schedule}", "month"), (f"output {schedule}", "month"), (f"held {schedule}", "month")


def amounts(wanted: Wanted, cost: int) -> dict[str, int]:
    return {
        "requests": 1,
        "input_tokens": wanted.input_tokens,
        "output_tokens": wanted.output_tokens,
        "concurrent": 1,
        "money": cost,
    }


def names(wanted: Wanted) -> tuple[str, ...]:
    """The subjects whose states a request changes."""
    each = [subject.name for subject in wanted.subjects]
    return tuple(dict.fromkeys([*each, wanted.payer] if wanted.steps else each))


def reserve(book: Book, wanted: Wanted, now: int) -> Granted | Refused:
    """Charge the bounds of the request to all of its subjects, or to none. The payer's money of the month is
    counted with or without a limit on it, so that a budget given later knows what was spent before."""
    reap(book, now)
    at = slots(now)
    cost = 0
    charged: dict[tuple[str, Code], tuple[Counters, int]] = {}  # each counter once, and where to add to it
    if wanted.steps:
        payer = book.counters(wanted.payer)
        cost = _held_for(payer, wanted, at["month"])
        charged[wanted.payer, MONEY] = payer, payer.look(MONEY, at["month"])[1]
    amount = amounts(wanted, cost)
    used: list[int] = []
    rows: list[Row] = []
    fits = True
    for subject in wanted.subjects:
        counters = book.counters(subject.name)
        for limit in subject.limits:
            measure, window = limit.measure, limit.window
            if measure == "concurrent":
                counted = len(book.in_flight.get(subject.name, ()))
                rows.append(None)
            else:
                code: Code = (measure, window)
                counted, where = counters.look(code, at[window])
                charged[subject.name, code] = counters, where
                rows.append((counters, code))
            used.append(counted)
            if (more := amount[measure]) and counted + more > min(limit.amount, MOST):
                fits = False
    if not fits:
        return refuse(wanted, used, rows, cost, lambda i: _frees(book, wanted, i), now)
    for (_, code), (counters, where) in charged.items():
        counters.put(where, counters.numbers[where] + amount[code[0]])
    if wanted.steps:
        held = (wanted.input_tokens, wanted.output_tokens, cost)
        for code, more in zip(open_codes(wanted.schedule), held, strict=True):
            payer.enter(code, at["month"], at["month"], more)
    end = now + round(wanted.seconds * SECOND)
    cells = tuple((name, code, c.layout[code], where) for (name, code), (c, where) in charged.items())
    book.settled.pop(wanted.id, None)
    book.reserved[wanted.id] = Reserved(wanted, cells, now, cost)
    heapq.heappush(book.ends, (end, wanted.id))
    for subject in wanted.subjects:
        for limit in subject.limits:
            if limit.measure == "concurrent":
                book.in_flight.setdefault(subject.name, {})[wanted.id] = end
    limits = _limits(wanted)
    after = [count + amount[limit.measure] for count, limit in zip(used, limits, strict=True)]
    return Granted(wanted.id, cost, rooms(limits, after, _newest_in(rows, at), now))


def full(book: Book, wanted: Wanted, now: int) -> Refused | None:
    """Why `reserve` would refuse it for certain: of money, because none at all is left. Charges nothing."""
    reap(book, now)
    at, cost = slots(now), 1 if wanted.steps else 0
    amount = amounts(wanted, cost)
    used: list[int] = []
    rows: list[Row] = []
    for subject in wanted.subjects:
        counters = book.counters(subject.name)
        for limit in subject.limits:
            if limit.measure == "concurrent":
                used.append(len(book.in_flight.get(subject.name, ())))
                rows.append(None)
            else:
                code = (limit.measure, limit.window)
                used.append(counters.look(code, at[limit.window])[0])
                rows.append((counters, code))
    limits = _limits(wanted)
    for count, limit in zip(used, limits, strict=True):
        if (more := amount[limit.measure]) and count + more > min(limit.amount, MOST):
            return refuse(wanted, used, rows, cost, lambda i: _frees(book, wanted, i), now)
    return None


def settle(book: Book, id: str, used: Used, now: int) -> int | None:
    """What the request cost, in billionths of a dollar; what it did not use is given back. None when no such
    reservation is known (any more)."""
    reap(book, now)
    if id in book.settled:
        return book.settled[id]
    reserved = book.reserved.pop(id, None)
    if reserved is None:
        return None
    wanted, at, since = reserved.wanted, slots(now), slots(reserved.at)
    input_tokens, output_tokens = min(used.input_tokens, MOST), min(used.output_tokens, MOST)
    if not used.sent:
        input_tokens = output_tokens = 0
    cost = 0
    if wanted.steps:
        payer = book.counters(wanted.payer)
        settled = settled_code(wanted.schedule)
        payer.at(settled, at["month"])
        volume = payer.of_month(settled, since["month"])
        cost = min(price(wanted.steps, volume, input_tokens, output_tokens), MOST)
        payer.change(settled, since["month"], at["month"], input_tokens + output_tokens)
        held = (wanted.input_tokens, wanted.output_tokens, reserved.cost)
        for code, less in zip(open_codes(wanted.schedule), held, strict=True):
            payer.change(code, since["month"], at["month"], -less)
    change = {
        "requests": 0 if used.sent else -1,
        "input_tokens": input_tokens - wanted.input_tokens,
        "output_tokens": output_tokens - wanted.output_tokens,
        "money": cost - reserved.cost,
    }
    for name, code, _, _ in reserved.charged:
        if by := change[code[0]]:
            book.counters(name).change(code, since[code[1]], at[code[1]], by)
    _land(book, wanted)
    book.settled[id] = cost
    book.settled_at.append((now + TWICE, id))
    return cost


def reap(book: Book, now: int) -> None:
    """Requests whose time is up are no longer in flight; what they were charged stays charged."""
    while book.ends and book.ends[0][0] <= now:
        end, id = heapq.heappop(book.ends)
        if id in book.reserved:
            _land(book, book.reserved[id].wanted)
            heapq.heappush(book.late, (end + LATE, id))
    while book.late and book.late[0][0] <= now:
        book.reserved.pop(heapq.heappop(book.late)[1], None)
    for heap in (book.ends, book.late):
        if len(heap) > 2 * len(book.reserved) + 1000:  # most of it is of what was settled
            heap[:] = [entry for entry in heap if entry[1] in book.reserved]
            heapq.heapify(heap)
    while book.settled_at and book.settled_at[0][0] <= now:
        book.settled.pop(book.settled_at.popleft()[1], None)


def standing(book: Book, name: str, now: int) -> dict[tuple[str, str], int]:
    """What counts now of a subject, by measure and window."""
    reap(book, now)
    at, counters = slots(now), book.counters(name)
    found = {code: counters.look(code, at[code[1]])[0] for code in counters.layout if is_limited(code)}
    if name in book.in_flight:
        found["concurrent", "ever"] = len(book.in_flight[name])
    return found


def enter(states: dict[str, Counters], rows: Iterable[Spent], now: int) -> None:
    """Charge what durable records tell of the past, as far as it still counts."""
    at = slots(now)
    for row in rows:
        since = slots(min(round(row.at * SECOND), now))
        counters = states.setdefault(row.subject, Counters())
        for (measure, window), amount in row.amounts.items():
            counters.enter((measure, window), since[window], at[window], amount)
        for schedule, tokens in row.volume.items():
            counters.enter(settled_code(schedule), since["month"], at["month"], tokens)


def rooms(
    limits: Sequence[Limit], used: Sequence[int], newest: Callable[[int], int | None], now: int
) -> tuple[Room, ...]:
    """What is left under the tightest limit of each measure. `used` stands in the order of the limits;
    `newest` gives the newest slot with something in it for the limit of an index."""
    tightest: dict[str, tuple[int, int]] = {}
    for i, limit in enumerate(limits):
        left = limit.amount - used[i]
        if limit.measure not in tightest or left < tightest[limit.measure][0]:
            tightest[limit.measure] = left, i
    found = []
    for left, i in tightest.values():
        limit = limits[i]
        found.append(Room(limit.measure, limit.amount, max(0, left), _reset(limit, newest(i), now)))
    return tuple(found)


def refuse(
    wanted: Wanted,
    used: Sequence[int],
    rows: Sequence[Row],
    cost: int,
    frees: Callable[[int], float],
    now: int,
) -> Refused:
    """Which limit is the tightest, and when the same request would pass. `used` and `rows` stand in the order
    of the limits; `frees` tells when enough of what is in flight has ended at the latest, for the limit of an
    index."""
    at = slots(now)
    amount = amounts(wanted, cost)
    limits = [(subject.name, limit) for subject in wanted.subjects for limit in subject.limits]
    passes: list[float] = []
    for i, (_, limit) in enumerate(limits):
        more = amount[limit.measure]
        if not more or used[i] + more <= limit.amount:
            passes.append(now)
        elif more > limit.amount:
            passes.append(math.inf)
        else:
            row = rows[i]
            passes.append(_passes(limit, used[i] + more, *row, at) if row else frees(i))
    tightest = max(range(len(limits)), key=lambda i: (passes[i], -i))
    when = max(passes)
    new_month = begin_of_month(at["month"] + 1)
    if wanted.steps and when >= new_month:
        tokens = (wanted.input_tokens, wanted.output_tokens)
        then = worst(wanted.steps, 0, sum(tokens), *tokens)
        for i, (_, limit) in enumerate(limits):
            if limit.measure == "money":
                before = used[i] if limit.window == "ever" else 0
                passes[i] = new_month if before + then <= limit.amount else math.inf
        when = max(new_month, *passes)
    retry_after = None if when == math.inf else (when - now) / SECOND
    room = rooms([limit for _, limit in limits], used, _newest_in(rows, at), now)
    return Refused(*limits[tightest], retry_after, room)


def _held_for(payer: Counters, wanted: Wanted, month: int) -> int:
    """Money to reserve: enough that all that is open, with this one, is covered in whatever order it settles.
    Where prices rise, that others have settled meanwhile can make dearer what was reserved before."""
    volume = payer.look(settled_code(wanted.schedule), month)[0]
    open_ = (payer.look(code, month)[0] for code in open_codes(wanted.schedule))
    inputs, outputs, held = next(open_) + wanted.input_tokens, next(open_) + wanted.output_tokens, next(open_)
    end = volume + inputs + outputs
    own = worst(wanted.steps, volume, end, wanted.input_tokens, wanted.output_tokens)
    return min(max(own, worst(wanted.steps, volume, end, inputs, outputs) - held), MOST)


def _passes(limit: Limit, wanted: int, counters: Counters, code: Code, at: Mapping[str, int]) -> float:
    """When so much of what counts now is gone that `wanted` in all fits."""
    slot = at[limit.window]
    if limit.window not in WIDTH:
        return gone_at(limit.window, slot)
    for old, held in counters.oldest_first(code, slot):
        wanted -= held
        if wanted <= limit.amount:
            return gone_at(limit.window, old)
    raise AssertionError("an empty window lets pass what the limit allows")


def _limits(wanted: Wanted) -> list[Limit]:
    return [limit for subject in wanted.subjects for limit in subject.limits]


def _newest_in(rows: Sequence[Row], at: Mapping[str, int]) -> Callable[[int], int | None]:
    def newest(index: int) -> int | None:
        row = rows[index]
        return row[0].newest(row[1], at[row[1][1]]) if row else None

    return newest


def _reset(limit: Limit, newest: int | None, now: int) -> float:
    """After how many seconds nothing of what counts now counts any more; infinite for money paid in. What is
    in flight may end at any time: 0."""
    return 0.0 if newest is None else (gone_at(limit.window, newest) - now) / SECOND


def _frees(book: Book, wanted: Wanted, index: int) -> float:
    for subject in wanted.subjects:
        if index < len(subject.limits):
            ends = sorted(book.in_flight[subject.name].values())
            return ends[len(ends) - subject.limits[index].amount]
        index -= len(subject.limits)
    raise IndexError(index)


def _land(book: Book, wanted: Wanted) -> None:
    for subject in wanted.subjects:
        flights = book.in_flight.get(subject.name)
        if flights is not None:
            flights.pop(wanted.id, None)
            if not flights:
                del book.in_flight[subject.name]
