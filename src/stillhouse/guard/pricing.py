"""Rising prices that a distiller feels and ordinary accounts do not: the best there are, and what they do.

A schedule multiplies today's price by m(u) for the month's u-th token, and m never falls. A month of v tokens
then costs A(v) = (m(1) + ... + m(v)) / v times as much as today, and A never falls either. So the accounts
that pay more are those that use most, and each bound is linear in m: A of the largest account that may not
pay more, what all pay together, the highest multiple. A rising m is a sum of jumps. What a jump at token t
does for the bounds and to the distiller is linear in t between the volumes of two accounts, so the best jumps
stand at such volumes, and there are no more of them than bounds: a vertex of a linear programme. No rising
schedule within the bounds, whatever its steps, costs the distiller more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from stillhouse.errors import UsageError
from stillhouse.guard.limits import Step
from stillhouse.guard.prices import cost

SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # of the trade-off
ACCOUNTS = (1, 2, 3, 5, 10, 20, 50, 100, 500)  # over which a distiller spreads
_ZERO = 1e-11  # in the linear programme, whose numbers are about 1
_ROUNDING = 1e-6


class Learned(NamedTuple):
    """A point of a learning curve: the share of the teacher's score that is kept after so many exchanges."""

    exchanges: float
    kept: float


class Month(NamedTuple):
    """What an account used in a month."""

    account: str
    input_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Bounds:
    """At most `share` of ordinary account-months may cost more than 1 + `more` times as much as today, and
    all of them together no more than today; multiples of today's price lie from `lowest` to `highest`."""

    share: float = 0.01
    more: float = 0.05
    lowest: float = 0.9
    highest: float = 10.0


@dataclass(frozen=True, slots=True)
class Effect:
    """What a schedule does as it is billed, against today: `copy` is the factor for the distiller on one
    account. Of ordinary account-months `over` is the share that costs more than the bounds allow, `dearer`
    the share that costs more at all, `most` the largest factor, `together` that of all of them."""

    steps: tuple[Step, ...]
    copy: float
    over: float
    dearer: float
    most: float
    together: float


@dataclass(frozen=True, slots=True)
class Pricing:
    """`copy` is what the distiller uses in all, and costs `dollars` today; `above` is the share of ordinary
    account-months that use more. `held` says that one which may not pay more uses as much, so that no rising
    price does anything. `tradeoff` has the best schedule for each share of account-months that may pay more;
    under `best`, `spread` has the distiller's factor by number of accounts, and `levels` the exchanges and
    the factor on one account for each share kept."""

    kept: float
    exchanges: float
    copy: Month
    dollars: float
    above: float
    held: bool
    best: Effect
    tradeoff: tuple[tuple[float, Effect], ...]
    spread: tuple[tuple[int, float], ...]
    levels: tuple[tuple[float, float, float], ...]


def price_copies(
    curve: Sequence[Learned],
    ordinary: Sequence[Month],
    today: Step,
    exchange: Month,
    kept: float,
    bounds: Bounds,
) -> Pricing:
    """The best schedule against a distiller who wants `kept` within a month, by exchanges of the size of
    `exchange`, and what it does. `ordinary` are account-months with tokens.

    Raises UsageError for bounds that hold nothing, a share that the curve does not tell, and free traffic.
    """
    _usable(bounds, ordinary, today)
    exchanges = exchanges_for(curve, kept)
    copy = copied(exchange, exchanges)
    found = {}
    for share in sorted({*SHARES, bounds.share}):
        within = replace(bounds, share=share)
        steps = steps_of(best_levels(ordinary, today, copy.tokens, within), today)
        found[share] = effect(steps, today, ordinary, copy, bounds.more)
    best = found[bounds.share]
    bound = _largest_bound([month.tokens for month in ordinary], bounds.share)
    levels = []
    for level in sorted({kept, *(point.kept for point in curve if point.kept >= curve[0].kept)}):
        needed = exchanges_for(curve, level)
        levels.append((level, needed, factor(best.steps, today, copied(exchange, needed))))
    return Pricing(
        kept,
        exchanges,
        copy,
        bill((today,), copy) / 1e9,
        sum(month.tokens > copy.tokens for month in ordinary) / len(ordinary),
        bound is not None and copy.tokens <= bound,
        best,
        tuple(found.items()),
        tuple((accounts, factor(best.steps, today, copy, accounts)) for accounts in ACCOUNTS),
        tuple(levels),
    )


def exchanges_for(curve: Sequence[Learned], kept: float) -> float:
    """After how many exchanges a curve, straight over their logarithm from point to point, first reaches
    `kept`. Raises UsageError for what it does not tell: less than its first point, more than any."""
    top = max(point.kept for point in curve)
    if not curve[0].kept <= kept <= top:
        raise UsageError(
            f"the learning curve does not tell after how many exchanges {kept:.1%} is kept",
            f"it begins with {curve[0].kept:.1%} after {curve[0].exchanges:,.0f} exchanges and comes to "
            f"{top:.1%}; nothing beyond is guessed",
            "name a share in between with --kept, or measure further points",
        )
    at = next(at for at, point in enumerate(curve) if point.kept >= kept)
    if at == 0:
        return curve[0].exchanges
    before, after = curve[at - 1], curve[at]
    share = (kept - before.kept) / (after.kept - before.kept)
    low, high = math.log(before.exchanges), math.log(after.exchanges)
    return math.exp(low + share * (high - low))


def copied(exchange: Month, exchanges: float) -> Month:
    """What so many exchanges use."""
    used = (math.ceil(exchanges * tokens) for tokens in (exchange.input_tokens, exchange.output_tokens))
    return Month(exchange.account, *used)


def best_levels(
    ordinary: Sequence[Month], today: Step, tokens: int, bounds: Bounds
) -> tuple[tuple[int, float], ...]:
    """From which token of the month on which multiple of today's price: of all rising schedules within the
    bounds the one that costs most who uses `tokens` in a month."""
    months = sorted(ordinary, key=lambda month: month.tokens)
    volumes = [month.tokens for month in months]
    places = [0, *sorted({volume for volume in volumes if volume < tokens})]
    tails = _tails(volumes, [bill((today,), month) / month.tokens for month in months], places)
    rows = [[1.0] * len(places), [tail / tails[0] for tail in tails]]
    limits = [bounds.highest - bounds.lowest, 1.0 - bounds.lowest]
    bound = _largest_bound(volumes, bounds.share)
    if bound is not None:
        rows.append([max(0, bound - place) / bound for place in places])
        limits.append(1.0 + bounds.more - bounds.lowest)
    jumps = _most([(tokens - place) / tokens for place in places], rows, limits)
    multiples = {0: bounds.lowest}
    for at, jump in sorted(jumps.items()):
        multiples[places[at]] = max(multiples.values()) + jump
    return tuple(multiples.items())


def steps_of(levels: Sequence[tuple[int, float]], today: Step) -> tuple[Step, ...]:
    """As they are billed: rounded down to whole billionths for a token, so that nobody pays more for it."""
    steps: list[Step] = []
    for over, multiple in levels:
        step = Step(over, *(int(price * multiple + _ROUNDING) for price in (today.input, today.output)))
        if not steps or step != replace(steps[-1], over=over):
            steps.append(step)
    return tuple(steps)


def bill(steps: tuple[Step, ...], month: Month) -> float:
    """Billionths of a dollar, as if the month's input and output tokens came evenly mixed."""
    tokens = month.tokens
    dear = month.input_tokens * cost(steps, 0, tokens, 0) + month.output_tokens * cost(steps, 0, 0, tokens)
    return dear / tokens


def factor(steps: tuple[Step, ...], today: Step, copy: Month, accounts: int = 1) -> float:
    """What a copy costs against today that is evenly spread over account-months."""
    part = Month("", math.ceil(copy.input_tokens / accounts), math.ceil(copy.output_tokens / accounts))
    return bill(steps, part) / bill((today,), part)


def effect(
    steps: tuple[Step, ...], today: Step, ordinary: Sequence[Month], copy: Month, more: float
) -> Effect:
    now = [bill((today,), month) for month in ordinary]
    then = [bill(steps, month) for month in ordinary]
    factors = [after / before for before, after in zip(now, then, strict=True) if before]
    return Effect(
        steps,
        factor(steps, today, copy),
        sum(one > 1 + more + _ROUNDING for one in factors) / len(ordinary),
        sum(one > 1 + _ROUNDING for one in factors) / len(ordinary),
        max(factors),
        sum(then) / sum(now),
    )


def schedule_lines(name: str, steps: Sequence[Step]) -> str:
    """As they stand in guard.toml."""
    rows = [
        f"over = {step.over}, input = {step.input / 1000:g}, output = {step.output / 1000:g}"
        for step in steps
    ]
    return "\n".join([f"[prices.{name}]", "steps = [", *(f"    {{ {row} }}," for row in rows), "]"])


def assumptions(exchange: Month, bounds: Bounds) -> tuple[str, ...]:
    """What the figures rest on, in sentences."""
    return (
        "whoever is in the traffic is ordinary, and will use as much as it did whatever the price is",
        "the distiller takes what it needs within one month on accounts that ask nothing else; the volume "
        "begins anew with each month and each account, so two months are as good as two accounts",
        "nobody has seen which accounts are one operator's: spread over enough of them, the copy costs what "
        "ordinary accounts pay, unless the clusters are found",
        f"an exchange takes {exchange.input_tokens:,} tokens in and {exchange.output_tokens:,} out; the "
        "curve is that of this way to learn, and a better one needs fewer",
        "the curve is straight over the logarithm of exchanges between its points, and ends where they end",
        "the tokens in and out of a month come evenly mixed",
        f"multiples of today's price lie between {bounds.lowest:g} and {bounds.highest:g}, and never fall "
        "within a month",
    )


def _usable(bounds: Bounds, ordinary: Sequence[Month], today: Step) -> None:
    if not (0 <= bounds.share < 1 and bounds.more >= 0 and 0 < bounds.lowest <= 1 <= bounds.highest):
        raise UsageError(
            "no schedule can be within these bounds",
            "today's price itself has to be: shares lie from 0 to 1, --more is 0 or more, --lowest above 0 "
            "and at most 1, --highest at least 1",
            "give others",
        )
    if not ordinary or not sum(bill((today,), month) for month in ordinary):
        raise UsageError(
            "the traffic costs nothing today",
            "it holds no tokens that have a price",
            "give usage of models that have one",
        )


def _largest_bound(volumes: Sequence[int], share: float) -> int | None:
    """The volume of the largest account-month that may not cost more; None where all may."""
    kept = len(volumes) - math.floor(share * len(volumes) + 1e-9)
    return sorted(volumes)[kept - 1] if kept else None


def _tails(volumes: Sequence[int], weights: Sequence[float], places: Sequence[int]) -> list[float]:
    """For each place the weighted sum of what volumes have beyond it. Volumes and places ascend."""
    tails, at, weight, weighted = [], len(volumes), 0.0, 0.0
    for place in reversed(places):
        while at and volumes[at - 1] > place:
            at -= 1
            weight += weights[at]
            weighted += weights[at] * volumes[at]
        tails.append(weighted - weight * place)
    return tails[::-1]


def _most(
    gains: Sequence[float], rows: Sequence[Sequence[float]], limits: Sequence[float]
) -> Mapping[int, float]:
    """The x >= 0, where it is not 0, with the largest gains·x of those with each row·x <= its limit >= 0.

    The simplex method: by Dantzig's rule, and by Bland's, which never goes round, while nothing is gained.
    """
    count = len(gains)
    table = [
        [*row, *(float(other == at) for other in range(len(rows))), limit]
        for at, (row, limit) in enumerate(zip(rows, limits, strict=True))
    ]
    worth = [*gains, *[0.0] * len(rows), 0.0]
    basis = [count + at for at in range(len(rows))]
    gained = True
    while True:
        enters = max(range(len(worth) - 1), key=worth.__getitem__)
        if worth[enters] <= _ZERO:
            return {
                name: row[-1]
                for name, row in zip(basis, table, strict=True)
                if name < count and row[-1] > _ZERO
            }
        if not gained:
            enters = next(at for at, one in enumerate(worth[:-1]) if one > _ZERO)
        room = [(row[-1] / row[enters], basis[at], at) for at, row in enumerate(table) if row[enters] > _ZERO]
        least, _, leaves = min(room)
        gained = least > _ZERO
        basis[leaves] = enters
        scale = table[leaves][enters]
        pivot = table[leaves] = [one / scale for one in table[leaves]]
        for at, row in enumerate(table):
            if at != leaves and row[enters]:
                table[at] = _without(row, pivot, row[enters])
        worth = _without(worth, pivot, worth[enters])


def _without(row: Sequence[float], pivot: Sequence[float], times: float) -> list[float]:
    return [one - times * other for one, other in zip(row, pivot, strict=True)]
