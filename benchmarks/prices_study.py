"""How much dearer rising prices can make a copy before ordinary accounts feel them, on simulated traffic.

    .venv/bin/python benchmarks/prices_study.py [--quick] [--json FILE]

SIMULATED accounts (docs/simulation.md). Schedules are reckoned from the ordinary accounts of the calibration
month, and what they do is counted on those of the test month, which shares no source and no arrival trace
with it. Copies are of given sizes, in tokens of one month; an exchange is as large as those of the
simulation's distillers. The learning curve is an EXAMPLE: one seed of an unfinished run of
benchmarks/queries.py. The peer is what one would write down without reckoning: from the volume that 1 in 100
ordinary accounts passes, every token at twice the price. No account of the simulation asks more than 4,000
requests a month, so its largest are smaller than a provider's, and the factors more favourable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rows import DATA, Row, arguments, header, need, show
from traffic.people import people, requests

from stillhouse.errors import UsageError
from stillhouse.guard.limits import Step
from stillhouse.guard.pricing import (
    ACCOUNTS,
    Bounds,
    Effect,
    Learned,
    Month,
    best_levels,
    copied,
    effect,
    exchanges_for,
    factor,
    steps_of,
)
from stillhouse.stats import wilson

SEED = 0
TODAY = Step(0, 2_500, 10_000)  # billionths of a dollar: $2.50 and $10 for a million tokens
SIZES = (250_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 50_000_000)
EXAMPLE = (Learned(750, 0.467), Learned(1500, 0.812), Learned(3000, 0.947))
WANTED = 0.9
BOUNDS = Bounds()


def used(month: str, count: int) -> dict[str, list[Month]]:
    """Account-months by kind; of ordinary and hard accounts also by side."""
    found: dict[str, list[Month]] = {}
    for person in people(month, SEED, count):
        taken = given = 0
        for request in requests(person, month, SEED):
            taken += request.input_tokens
            given += request.output_tokens
        if taken + given:
            for name in {person.kind, person.side}:
                found.setdefault(name, []).append(Month(person.id, taken, given))
    return found


def mean_exchange(count: int) -> Month:
    """Of the pure distillers of the calibration month."""
    sizes = [
        (request.input_tokens, request.output_tokens)
        for person in people("calibrate", SEED, count, {"distiller:pure": 1.0})
        for request in requests(person, "calibrate", SEED)
    ]
    return Month("", *(round(sum(column) / len(sizes)) for column in zip(*sizes, strict=True)))


def like(exchange: Month, tokens: int) -> Month:
    return copied(exchange, tokens / exchange.tokens)


def by_hand(ordinary: Sequence[Month]) -> tuple[Step, ...]:
    volumes = sorted(month.tokens for month in ordinary)
    over = volumes[math.ceil(0.99 * len(volumes)) - 1]
    return TODAY, Step(over, 2 * TODAY.input, 2 * TODAY.output)


def felt(what: str, done: Effect, months: Sequence[Month]) -> list[Row]:
    """What ordinary accounts of the other month feel."""
    over = wilson(round(done.over * len(months)), len(months))
    return [
        Row(
            f"{what}: test accounts that pay over 5% more",
            over.value,
            "",
            over.low,
            over.high,
            target=f"<= {BOUNDS.share:g}",
            holds=done.over <= BOUNDS.share,
        ),
        Row(f"{what}: test accounts that pay more at all", done.dearer, ""),
        Row(f"{what}: most that a test account pays", done.most, "x"),
        Row(
            f"{what}: all test accounts together",
            done.together,
            "x",
            target="<= 1",
            holds=done.together <= 1,
        ),
    ]


def compared(what: str, copy: Month, fitted: Sequence[Month], checked: Sequence[Month]) -> list[Row]:
    steps = steps_of(best_levels(fitted, TODAY, copy.tokens, BOUNDS), TODAY)
    done = effect(steps, TODAY, checked, copy, BOUNDS.more)
    peer = factor(by_hand(fitted), TODAY, copy)
    ratio = done.copy / peer
    row = Row(f"{what}: costs", done.copy, "x today", peer="by hand", peer_value=peer, ratio=ratio)
    return [row, *felt(what, done, checked)]


def kinds(steps: tuple[Step, ...], months: dict[str, list[Month]]) -> Iterable[Row]:
    """What a schedule does to those who are no ordinary accounts, simulated distillers included."""
    for name, group in sorted(months.items()):
        if name == "hard" or name.startswith("distiller"):
            factors = [factor(steps, TODAY, month) for month in group]
            dear = sum(one > 1 + BOUNDS.more for one in factors) / len(factors)
            yield Row(f"{name}: accounts that pay over 5% more", dear, "")


def main() -> None:
    options = arguments(__doc__ or "")
    need(DATA / "traffic")
    count = 1_000 if options.quick else 10_000
    fitted, tested = used("calibrate", count), used("test", count)
    exchange = mean_exchange(count // 100)
    ordinary, checked = fitted["ordinary"], tested["ordinary"]
    rows = [
        Row("ordinary accounts of the calibration month", len(ordinary), ""),
        Row("tokens of an exchange", exchange.tokens, "tokens"),
    ]
    volumes = sorted(month.tokens for month in ordinary)
    for share in (0.5, 0.9, 0.99, 1.0):
        at = math.ceil(share * len(volumes)) - 1
        rows.append(Row(f"ordinary account-months: {share:.0%} use at most", volumes[at], "tokens"))
    steps = by_hand(ordinary)
    rows += felt("by hand", effect(steps, TODAY, checked, like(exchange, SIZES[-1]), BOUNDS.more), checked)
    for tokens in SIZES:
        rows += compared(f"copy of {tokens:,} tokens", like(exchange, tokens), ordinary, checked)
    for kept in (*(point.kept for point in EXAMPLE[1:]), WANTED):
        try:
            copy = copied(exchange, exchanges_for(EXAMPLE, kept))
        except UsageError:
            continue
        rows += compared(f"example curve, {kept:.1%} kept", copy, ordinary, checked)
    copy = copied(exchange, exchanges_for(EXAMPLE, WANTED))
    for share in (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1):
        bounds = Bounds(share=share)
        steps = steps_of(best_levels(ordinary, TODAY, copy.tokens, bounds), TODAY)
        rows.append(
            Row(
                f"example curve, {WANTED:.1%} kept, {share:.1%} may pay more", factor(steps, TODAY, copy), "x"
            )
        )
    large = like(exchange, 10_000_000)
    steps = steps_of(best_levels(ordinary, TODAY, large.tokens, BOUNDS), TODAY)
    for accounts in ACCOUNTS:
        what = f"copy of 10,000,000 tokens over {accounts} accounts: costs"
        rows.append(Row(what, factor(steps, TODAY, large, accounts), "x today"))
    rows += kinds(steps, tested)
    show(header(SEED, ["stillhouse"]), rows, options.json)


if __name__ == "__main__":
    main()
