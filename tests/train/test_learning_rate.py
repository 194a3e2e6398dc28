"""How the rate rises, stays and falls over a training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stillhouse.recipe import Train
from stillhouse.train.optimisers import learning_rate


def rates(steps: int, **settings: float) -> list[float]:
    return [learning_rate(step, steps, Train(learning_rate=1.0, **settings)) for step in range(steps)]


def test_without_a_hold_it_falls_from_the_warm_up_on() -> None:
    found = rates(21, warmup=0.0, final_rate=0.0)
    assert found[0] == 1.0
    assert found[10] == pytest.approx(0.5)
    assert found[20] == pytest.approx(0.0)
    assert rates(100, warmup=0.1, hold=0.0) == rates(100, warmup=0.1)


def test_it_stays_at_the_peak_for_the_hold_and_ends_where_it_would() -> None:
    found = rates(100, warmup=0.1, hold=0.5, final_rate=0.05)
    assert found[9:61] == [1.0] * 52
    assert found[61] < 1.0
    assert found[99] == pytest.approx(0.05)
    assert sum(found) > sum(rates(100, warmup=0.1, final_rate=0.05))


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_it_rises_stays_and_falls_whatever_is_asked(
    steps: int, warmup: float, hold: float, final: float
) -> None:
    found = rates(steps, warmup=warmup, hold=hold * (1 - warmup) * 0.999, final_rate=final)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert all(min(final, 1 / steps) - 1e-9 <= rate <= 1.0 for rate in found)


def test_more_than_all_steps_is_refused() -> None:
    with pytest.raises(ValidationError, match="more than all steps"):
        Train(warmup=0.5, hold=0.6)
