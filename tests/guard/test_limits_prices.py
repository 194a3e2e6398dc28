"""What tokens cost, in whole billionths of a dollar."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import UsageError
from stillhouse.guard.config import Schedule
from stillhouse.guard.limits import Step
from stillhouse.guard.prices import cost, steps_of, worst

prices = st.integers(0, 50)
later = st.lists(st.tuples(st.integers(1, 60), prices, prices), max_size=4, unique_by=lambda s: s[0])
schedules = later.flatmap(
    lambda later: st.tuples(prices, prices).map(
        lambda first: tuple(Step(*row) for row in [(0, *first), *sorted(later)])
    )
)  # fmt: skip
tokens = st.integers(0, 80)


@given(schedules, tokens, tokens, tokens)
def test_a_request_costs_what_its_tokens_cost_one_by_one(steps, volume, inputs, outputs):
    def step(at):
        return [s for s in steps if s.over <= at][-1]

    one_by_one = sum(step(volume + i).input for i in range(inputs))
    one_by_one += sum(step(volume + inputs + i).output for i in range(outputs))
    assert cost(steps, volume, inputs, outputs) == one_by_one


@given(schedules, tokens, tokens, tokens, tokens, st.data())
def test_the_worst_case_is_never_exceeded(steps, settled, more, inputs, outputs, data):
    most = worst(steps, settled, settled + more + inputs + outputs, inputs, outputs)
    volume = data.draw(st.integers(settled, settled + more))
    used = data.draw(st.integers(0, inputs)), data.draw(st.integers(0, outputs))
    assert cost(steps, volume, *used) <= most


def test_prices_in_dollars_for_a_million_tokens_become_billionths_for_one():
    schedule = Schedule(
        steps=[{"input": 0.15, "output": 0.6}, {"over": 10, "input": 0.001, "output": 100_000}]
    )
    assert steps_of("mini", schedule) == (Step(0, 150, 600), Step(10, 1, 100_000_000))


@pytest.mark.parametrize("price", [0.0001, 0.0015, 1.00001])
def test_a_price_finer_than_a_billionth_is_refused(price):
    with pytest.raises(UsageError, match=r"prices\.mini") as caught:
        steps_of("mini", Schedule(steps=[{"input": price, "output": 1.0}]))
    assert "0.001" in caught.value.why
