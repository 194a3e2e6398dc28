"""Invoices: their lines sum to what the requests cost, to the billionth of a dollar."""

import csv
import io
from datetime import date
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import UsageError
from stillhouse.guard import invoices
from stillhouse.guard.events import Event, Part, Rate, Usage, number_of, totals
from stillhouse.guard.limits import Step

STEPS = (Step(0, 1001, 3000), Step(100_000, 500, 1500), Step(200_000, 33, 77))
RATES = {"large": Rate("list", STEPS), "small": Rate("flat", (Step(0, 7, 9),)), "free": Rate()}
NOVEMBER = 1_793_491_200.0  # 2026-11-01 00:00 UTC


def cost_of(steps, volume, taken, given_out):
    """A token at a time, each at the price of the step that it falls in."""
    cost = 0
    for n in range(taken + given_out):
        step = [step for step in steps if step.over <= volume + n][-1]
        cost += step.input if n < taken else step.output
    return cost


def month_of_requests(seed, count=800):
    random, volume, events = Random(seed), {"list": 0, "flat": 0, "": 0}, []
    for n in range(count):
        model = random.choice(["large", "large", "small", "free"])
        rate = RATES[model]
        taken, given_out = random.randrange(800), random.randrange(300)
        cost = cost_of(rate.steps, volume[rate.schedule], taken, given_out) if rate.steps else 0
        volume[rate.schedule] += taken + given_out
        at = NOVEMBER + n * 3000.0
        key = random.choice(["k1", "k2"])
        events.append(
            Event(
                f"e{n}", at, "o1", "a1", key, model, "u", "chat/completions", False, 200, "whole",
                input_tokens=taken, output_tokens=given_out, cost=cost,
            )
        )  # fmt: skip
    return events


@pytest.mark.parametrize("seed", range(5))
def test_lines_are_tokens_times_price_and_sum_to_the_cost(seed):
    events = month_of_requests(seed)
    others = [Event("x", NOVEMBER, "o2", "a2", "k9", "large", "u", "r", False, 200, "whole", cost=5)]
    bill = invoices.invoice_of(totals([*events, *others], RATES), "a1", "2026-11")
    assert bill.total == sum(event.cost for event in events)
    for line in bill.lines:
        if line.input_price is not None and line.output_price is not None:
            paid = line.input_tokens * line.input_price + line.output_tokens * line.output_price
            assert paid == line.amount
    large = {line.input_price: line for line in bill.lines if line.model == "large"}
    assert {step.input for step in STEPS} <= set(large)
    crossed = large[None]
    assert 1 <= crossed.requests <= 2
    assert sum(line.requests for line in bill.lines) == len(events)
    assert sum(line.input_tokens for line in bill.lines) == sum(event.input_tokens for event in events)


def test_a_month_begins_and_ends_with_its_days_in_utc():
    def used(day, cost):
        return {Part(number_of(day), "", "a", "k", "m", "s", 1, 1): Usage(1, 0, 0, cost, 0, cost)}

    usage = used(date(2028, 1, 31), 1) | used(date(2028, 2, 1), 10) | used(date(2028, 2, 29), 100)
    assert invoices.invoice_of(usage | used(date(2028, 3, 1), 1000), "a", "2028-02").total == 110
    assert invoices.days_of("2026-12") == (number_of(date(2026, 12, 1)), number_of(date(2026, 12, 31)))


@pytest.mark.parametrize("month", ["2026-13", "2026-1", "november", "0000-01", "2026-11-01", ""])
def test_what_is_no_month_is_said_so(month):
    with pytest.raises(UsageError, match="not a month"):
        invoices.days_of(month)


@given(st.integers(-(10**15), 10**15))
def test_dollars_are_exact(billionths):
    text = invoices.dollars(billionths)
    whole, _, digits = text.partition(".")
    assert len(digits) >= 2
    back = int(whole.lstrip("-") or 0) * 10**9 + int(digits.ljust(9, "0"))
    assert (-back if text.startswith("-") else back) == billionths


def test_the_table_has_its_total_last_and_survives_csv():
    bill = invoices.invoice_of(totals(month_of_requests(1, 50), RATES), "a1", "2026-11")
    rows = list(csv.DictReader(io.StringIO(invoices.as_csv(invoices.invoice_rows(bill)))))
    assert rows[-1]["model"] == "total"
    assert rows[-1]["amount"] == invoices.dollars(bill.total)
    assert sum(int(row["input_tokens"]) for row in rows[:-1]) == int(rows[-1]["input_tokens"])
    assert invoices.invoice_json(bill)["total"] == bill.total


def test_a_name_is_no_formula_in_a_spreadsheet():
    text = invoices.as_csv([{"model": '=cmd|"/c calc"!A1', "cost": 1}, {"model": "@x,\n", "cost": 2}])
    assert [row["model"] for row in csv.DictReader(io.StringIO(text, newline=""))] == [
        '\'=cmd|"/c calc"!A1',
        "'@x,\n",
    ]


def test_an_account_that_used_nothing_owes_nothing():
    bill = invoices.invoice_of({}, "a", "2026-11")
    assert (bill.total, bill.lines, invoices.as_csv([])) == (0, (), "")
