import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stillhouse.stats.tails import log_binomial_tail, log_gamma_tail, log_weighted_tail

# scipy's logarithms are of floats: near the smallest one they lose their digits, then become infinite.
SMALLEST = -650


@settings(deadline=None)
@given(st.integers(0, 3000), st.data(), st.floats(0.01, 0.99))
def test_the_binomial_tail_is_scipys(trials, data, share):
    successes = data.draw(st.integers(0, trials))
    found = float(log_binomial_tail(successes, trials, share))
    expected = stats.binom.logsf(successes - 1, trials, share)
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-10) or max(found, expected) < SMALLEST


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0.01, 4.0))
def test_the_gamma_tail_is_scipys(shape, times):
    found = float(log_gamma_tail(shape * times, shape))
    expected = stats.gamma.logsf(shape * times, shape)
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-10) or max(found, expected) < SMALLEST


def test_tails_of_arrays_and_at_the_ends():
    found = np.exp(log_binomial_tail(np.array([0, 3, 10, 11]), 10, 0.5))
    assert found == pytest.approx([1, 968 / 1024, 1 / 1024, 0])
    assert np.exp(log_gamma_tail(np.array([0.0, 1.0]), 1)) == pytest.approx([1, math.exp(-1)])


def test_a_tail_below_the_smallest_float_is_still_a_number():
    assert float(log_binomial_tail(100_000, 100_000, 0.25)) == pytest.approx(100_000 * math.log(0.25))
    assert -70_000 < float(log_gamma_tail(200_000, 100_000)) < -20_000
    assert -math.inf < log_weighted_tail(150_000, [1] * 3, 60_000) < -10_000


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3), st.data())
def test_the_weighted_tail_is_what_counting_gives(weights, trials, data):
    total = data.draw(st.integers(0, trials * sum(weights)))
    coins = weights * trials
    reached = sum(
        sum(itertools.compress(coins, faces)) >= total
        for faces in itertools.product((0, 1), repeat=len(coins))
    )
    assert math.exp(log_weighted_tail(total, weights, trials)) == pytest.approx(
        reached / 2 ** len(coins), rel=1e-9
    )


@pytest.mark.parametrize(("trials", "extra"), [(40, 0.3), (900, 0.05), (5000, 0.2), (5000, -0.1)])
def test_with_equal_weights_it_is_the_binomial(trials, extra):
    heads = round(30 * trials * (0.5 + extra))
    assert log_weighted_tail(heads, [1] * 30, trials) == pytest.approx(
        float(log_binomial_tail(heads, 30 * trials, 0.5)), rel=1e-8, abs=1e-12
    )
    assert log_weighted_tail(7 * heads, [7] * 30, trials) == pytest.approx(
        log_weighted_tail(heads, [1] * 30, trials), rel=1e-8, abs=1e-12
    )
