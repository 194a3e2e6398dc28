"""What tokens cost, in billionths of a dollar: whole numbers, so that no sum depends on its order.

A price may change with the payer's volume of the month: `Step.over` tokens, input and output together, are
charged at the steps before it. A request's input comes before its output.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from stillhouse.errors import UsageError
from stillhouse.guard.limits import Step

if TYPE_CHECKING:
    from stillhouse.guard.config import Schedule

BILLIONTHS = 1000  # billionths of a dollar for a token at one dollar for a million


def steps_of(name: str, schedule: Schedule) -> tuple[Step, ...]:
    """Raises UsageError for a price that is no whole number of billionths of a dollar for a token."""
    return tuple(
        Step(step.over, _whole(name, step.input), _whole(name, step.output)) for step in schedule.steps
    )


def cost(steps: tuple[Step, ...], volume: int, input_tokens: int, output_tokens: int) -> int:
    """Of a request when `volume` tokens of the month came before it. Costs of requests one after the other
    sum to the price of the month."""
    between = volume + input_tokens
    total = 0
    for step, until in _stretches(steps):
        total += step.input * _overlap(volume, between, step.over, until)
        total += step.output * _overlap(between, between + output_tokens, step.over, until)
    return total


def worst(steps: tuple[Step, ...], begin: int, end: int, input_tokens: int, output_tokens: int) -> int:
    """The most that so many tokens can cost that lie somewhere among the `begin`-th to the `end`-th of the
    month."""
    dear_input = dear_output = 0
    for step, until in _stretches(steps):
        if step.over < end and (until is None or begin < until):
            dear_input = max(dear_input, step.input)
            dear_output = max(dear_output, step.output)
    return dear_input * input_tokens + dear_output * output_tokens


def _stretches(steps: tuple[Step, ...]) -> list[tuple[Step, int | None]]:
    return list(zip(steps, [*(step.over for step in steps[1:]), None], strict=True))


def _overlap(begin: int, end: int, over: int, until: int | None) -> int:
    return max(0, (end if until is None else min(end, until)) - max(begin, over))


def _whole(name: str, dollars: float) -> int:
    exact = Decimal(repr(dollars)) * BILLIONTHS
    if exact != int(exact):
        raise UsageError(
            f"the price {dollars} in `prices.{name}` is too fine",
            "prices are kept in billionths of a dollar for a token, which is $0.001 for a million tokens",
            "round it to three digits after the point",
        )
    return int(exact)
