"""Prices against copying: the best schedules, beside every other one that a small case allows."""

import itertools
import json
import math
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import UsageError
from stillhouse.guard import config, prices
from stillhouse.guard.limits import Step
from stillhouse.guard.price_tables import curve_of, months_of
from stillhouse.guard.pricing import (
    Bounds,
    Learned,
    Month,
    best_levels,
    bill,
    copied,
    effect,
    exchanges_for,
    factor,
    price_copies,
    schedule_lines,
    steps_of,
)

TODAY = Step(0, 100_000, 400_000)
CURVE = (Learned(750, 0.467), Learned(1500, 0.812), Learned(3000, 0.947))
MOST_TOKENS = 12  # of a month, in the cases that are searched through
small_months = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(any), min_size=1, max_size=7
).map(lambda used: [Month(str(at), *tokens) for at, tokens in enumerate(used)])
small_bounds = st.builds(
    Bounds,
    st.sampled_from((0.0, 0.2, 0.34, 0.5)),
    st.sampled_from((0.0, 0.05, 0.5)),
    st.sampled_from((0.5, 0.8, 1.0)),
    st.sampled_from((1.0, 2.0, 8.0)),
)


def multiples(levels):
    """The multiple of every token of a month."""
    return [max(m for over, m in levels if over <= token) for token in range(MOST_TOKENS)]


def mean(each, tokens):
    return sum(each[:tokens]) / tokens


def allowed(each, months, bounds, slack=1e-7):
    """The bounds as they are worded, counted account by account."""
    dearer = sum(mean(each, month.tokens) > 1 + bounds.more + slack for month in months)
    now = [bill((TODAY,), month) for month in months]
    then = [mean(each, month.tokens) * cost for month, cost in zip(months, now, strict=True)]
    return (
        dearer <= bounds.share * len(months) + 1e-9
        and sum(then) <= sum(now) * (1 + slack)
        and all(bounds.lowest - slack <= one <= bounds.highest + slack for one in each)
        and all(one <= other + slack for one, other in itertools.pairwise(each))
    )


@settings(max_examples=150, deadline=None)
@given(small_months, st.integers(1, MOST_TOKENS), small_bounds)
def test_no_rising_schedule_is_better_says_another_solver(months, tokens, bounds):
    """Every token of the month has a multiple of its own, and any accounts may be those that pay more."""
    optimize = pytest.importorskip("scipy.optimize")
    each = multiples(best_levels(months, TODAY, tokens, bounds))
    assert allowed(each, months, bounds)
    now = [bill((TODAY,), month) for month in months]

    def row(month, weight=1.0):
        return [weight / month.tokens * (token < month.tokens) for token in range(MOST_TOKENS)]

    rising = [
        [float(t == at) - float(t == at + 1) for t in range(MOST_TOKENS)] for at in range(MOST_TOKENS - 1)
    ]
    together = [sum(column) for column in zip(*map(row, months, now), strict=True)]
    best = 0.0
    for exempt in itertools.combinations(range(len(months)), math.floor(bounds.share * len(months) + 1e-9)):
        bound = [row(month) for at, month in enumerate(months) if at not in exempt]
        found = optimize.linprog(
            [-1 / tokens * (token < tokens) for token in range(MOST_TOKENS)],
            A_ub=[*rising, together, *bound],
            b_ub=[*[0.0] * len(rising), sum(now), *[1 + bounds.more] * len(bound)],
            bounds=(bounds.lowest, bounds.highest),
        )
        best = max(best, -found.fun)
    assert mean(each, tokens) == pytest.approx(best, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(small_months, st.integers(1, MOST_TOKENS), small_bounds)
def test_no_schedule_of_three_steps_is_better_by_trying_all(months, tokens, bounds):
    best = mean(multiples(best_levels(months, TODAY, tokens, bounds)), tokens)
    span = bounds.highest - bounds.lowest
    grid = [bounds.lowest + span * at / 6 for at in range(7)]
    for first, second in itertools.combinations(range(1, MOST_TOKENS), 2):
        for levels in itertools.combinations_with_replacement(grid, 3):
            each = [levels[(token >= first) + (token >= second)] for token in range(MOST_TOKENS)]
            if mean(each, tokens) > best + 1e-7:
                assert not allowed(each, months, bounds, 1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**7)), min_size=1, max_size=60),
    st.integers(1, 10**8),
    small_bounds,
)
def test_what_is_billed_keeps_within_the_bounds(used, tokens, bounds):
    months = [Month(str(at), *one) for at, one in enumerate(used)]
    levels = best_levels(months, TODAY, tokens, bounds)
    assert len(levels) <= 4
    steps = steps_of(levels, TODAY)
    done = effect(steps, TODAY, months, Month("", tokens, 0), bounds.more)
    assert done.over <= bounds.share + 1e-9
    assert done.together <= 1 + 1e-6
    assert done.copy >= 1 - 1e-4  # today's price is within the bounds; steps are whole billionths
    assert list(steps) == sorted(steps, key=lambda step: (step.over, step.input, step.output))
    config.Schedule.model_validate(
        {"steps": [{"over": s.over, "input": s.input / 1000, "output": s.output / 1000} for s in steps]}
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=40), small_bounds, st.data())
def test_a_copy_as_small_as_a_month_that_may_not_pay_more_costs_no_more(volumes, bounds, data):
    """What no rising price can do, and the command says so."""
    months = [Month(str(at), volume, 0) for at, volume in enumerate(volumes)]
    free = math.floor(bounds.share * len(volumes) + 1e-9)
    bound = sorted(volumes)[len(volumes) - free - 1]
    levels = best_levels(months, TODAY, tokens := data.draw(st.integers(1, bound)), bounds)
    assert factor(steps_of(levels, TODAY), TODAY, Month("", tokens, 0)) <= 1 + bounds.more + 1e-6


@given(st.integers(1, 40), st.integers(1, 10**6))
def test_spreading_over_more_accounts_never_costs_more(accounts, tokens):
    steps = (replace(TODAY, input=90_000, output=360_000), Step(10_000, 200_000, 800_000))
    copy = Month("", tokens * accounts, 0)
    assert factor(steps, TODAY, copy, accounts + 1) <= factor(steps, TODAY, copy, accounts) + 1e-3 / tokens
    assert factor(steps, TODAY, copy, accounts) == pytest.approx(factor(steps, TODAY, Month("", tokens, 0)))


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_traffic_of_its_own_makes_a_copy_no_cheaper(own, tokens):
    steps = (replace(TODAY, input=90_000, output=360_000), Step(10_000, 200_000, 800_000))
    alone = prices.cost(steps, 0, tokens, 0)
    assert prices.cost(steps, own, tokens, 0) >= alone


def test_a_bill_is_what_the_gateway_charges_for_an_even_mix():
    steps = (Step(0, 10, 40), Step(1000, 20, 80), Step(2500, 50, 200))
    charged = volume = 0
    for _ in range(400):
        charged += prices.cost(steps, volume, 10, 10)
        volume += 20
    assert bill(steps, Month("a", 4000, 4000)) == charged


def test_the_trade_off_of_a_heavy_tail():
    months = [Month(str(at), int(1000 * 1.08**at), int(300 * 1.08**at)) for at in range(100)]
    found = price_copies(CURVE, months, TODAY, Month("", 1000, 1000), 0.9, Bounds())
    assert found.copy.tokens == pytest.approx(2000 * found.exchanges, rel=1e-6)
    assert not found.held
    factors = [done.copy for _, done in found.tradeoff]
    assert factors == sorted(factors)  # the more may pay more, the dearer the copy
    assert found.best.copy == dict(found.spread)[1] > 2
    assert [done.over <= share for share, done in found.tradeoff] == [True] * len(found.tradeoff)
    spread = [factor for _, factor in found.spread]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] == pytest.approx(0.9)
    assert [level for level, _, _ in found.levels] == [0.467, 0.812, 0.9, 0.947]
    text = schedule_lines("standard", found.best.steps)
    read = config.Schedule.model_validate(tomllib.loads(text)["prices"]["standard"])
    assert prices.steps_of("standard", read) == found.best.steps


def test_a_copy_that_ordinary_accounts_outgrow_is_said_to_be_out_of_reach():
    months = [Month(str(at), 10**7, 10**6) for at in range(100)]
    found = price_copies(CURVE, months, TODAY, Month("", 500, 500), 0.9, Bounds())
    assert found.held
    assert found.above == 1.0
    assert found.best.copy <= 1.05


def test_exchanges_between_points_and_none_beyond_them():
    assert exchanges_for(CURVE, 0.467) == 750
    assert exchanges_for(CURVE, 0.947) == pytest.approx(3000)
    assert exchanges_for(CURVE, (0.812 + 0.947) / 2) == pytest.approx(1500 * 2**0.5)
    dips = (Learned(100, 0.5), Learned(200, 0.8), Learned(400, 0.7), Learned(800, 0.9))
    assert exchanges_for(dips, 0.75) < 200  # where it is first reached
    assert 400 < exchanges_for(dips, 0.85) < 800
    for beyond in (0.3, 0.95, 0.99):
        with pytest.raises(UsageError, match="does not tell"):
            exchanges_for(CURVE, beyond)


def test_a_copy_takes_whole_tokens():
    assert copied(Month("", 3, 7), 10.1) == Month("", 31, 71)


@pytest.mark.parametrize(
    "bounds",
    [Bounds(share=1.0), Bounds(share=-0.1), Bounds(more=-0.1), Bounds(lowest=1.1), Bounds(lowest=0.0),
     Bounds(highest=0.5)],
)  # fmt: skip
def test_bounds_that_leave_out_todays_price_are_refused(bounds):
    with pytest.raises(UsageError, match="no schedule"):
        price_copies(CURVE, [Month("a", 1, 1)], TODAY, Month("", 1, 1), 0.9, bounds)


@pytest.mark.parametrize(("months", "today"), [([], TODAY), ([Month("a", 5, 5)], Step(0, 0, 0))])
def test_traffic_that_costs_nothing_is_refused(months, today):
    with pytest.raises(UsageError, match="costs nothing"):
        price_copies(CURVE, months, today, Month("", 1, 1), 0.9, Bounds())


def test_curves_of_rows_of_the_benchmark_and_of_an_evaluation():
    rows = [
        {"exchanges": "3000", "kept": "0.9"},
        {"exchanges": 750, "kept": 0.4},
        {"exchanges": 750, "kept": 0.5},
    ]
    assert curve_of(rows, None) == (Learned(750, 0.45), Learned(3000, 0.9))
    measured = {
        "header": {},
        "rows": [
            {"what": "text: share kept with 750 exchanges", "value": 0.467},
            {"what": "text: share kept with 1,500 exchanges", "value": 0.812},
            {"what": "whole distributions: share kept with 750 exchanges", "value": 0.9},
            {"what": "text: exchanges for 90%", "value": 2301.0},
        ],
    }
    assert curve_of(measured, "text") == CURVE[:2]
    assert curve_of(measured, "whole distributions") == (Learned(750, 0.9),)
    with pytest.raises(UsageError, match="not told") as several:
        curve_of(measured, None)
    assert "'text', 'whole distributions'" in several.value.why
    with pytest.raises(UsageError, match="no learning curve 'words'"):
        curve_of(measured, "words")
    evaluation = {
        "teacher": {"score": 0.8},
        "further": {"curve": [{"samples": 100, "score": 0.4}, {"samples": 200, "score": 0.72}]},
    }
    assert curve_of(evaluation, None) == (Learned(100, 0.5), Learned(200, pytest.approx(0.9)))


@pytest.mark.parametrize(
    "found",
    [[], {}, "text", 3, [1], [{"exchanges": 0, "kept": 0.5}], [{"exchanges": 10, "kept": 95}],
     [{"kept": 0.5}], [{"exchanges": "many", "kept": 0.5}], [{"exchanges": 10, "kept": float("nan")}],
     {"further": {"curve": None}, "teacher": {"score": 0.5}}, {"further": {"curve": []}, "teacher": None}],
)  # fmt: skip
def test_what_is_no_curve_is_said(found):
    with pytest.raises(UsageError):
        curve_of(found, None)


NAMES = ("rows", "what", "kept", "exchanges", "further", "teacher", "curve", "score", "samples", "value")
anything = st.recursive(
    st.none() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
)


@settings(deadline=None)
@given(anything)
def test_no_file_makes_the_reading_of_curves_fall_over(found):
    try:
        curve = curve_of(json.loads(json.dumps(found)), None)
    except UsageError:
        return
    assert all(point.exchanges >= 1 for point in curve)


def test_usage_is_summed_by_account_and_month():
    rows = [
        {"date": "2026-10-30", "account": "a", "model": "m", "input_tokens": "10", "output_tokens": "5"},
        {"date": "2026-10-31", "account": "a", "model": "m", "input_tokens": "1", "output_tokens": "2"},
        {"date": "2026-11-01", "account": "a", "model": "m", "input_tokens": "3", "output_tokens": "4"},
        {"date": "2026-11-01", "account": "b", "model": "other", "input_tokens": "3", "output_tokens": "4"},
        {"month": "2026-11", "account": "c", "input_tokens": 0, "output_tokens": 0},
        {"month": "2026-11", "account": "d", "input_tokens": 7, "output_tokens": 0},
    ]
    counted = months_of(rows, ["m"])
    assert counted.months == (Month("a", 11, 7), Month("a", 3, 4), Month("d", 7, 0))
    assert (counted.empty, counted.others) == (1, 1)


@pytest.mark.parametrize(
    "row",
    [{}, {"account": "a", "month": "2026-11", "input_tokens": "x", "output_tokens": 1},
     {"account": "a", "month": "2026-11", "input_tokens": -1, "output_tokens": 1},
     {"account": "a", "input_tokens": 1, "output_tokens": 1}],
)  # fmt: skip
def test_a_row_of_traffic_that_cannot_be_read_is_named(row):
    with pytest.raises(UsageError, match="row 2 of the traffic"):
        months_of([{"account": "a", "month": "2026-11", "input_tokens": 1, "output_tokens": 1}, row], ["m"])
