"""The promise holds: p-values against scipy, and a broken promise in at most one of twenty calibrations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stillhouse.cascade.risk import (
    at_most,
    betting_p,
    control,
    families,
    hoeffding_bentkus_p,
    least_rows,
    needed,
    p_value,
    signed_p,
    thresholds_of,
)
from stillhouse.stats import binomial_at_most

LEVEL, MOST, DRAWS = 0.05, 0.01, 150


@given(st.integers(0, 40), st.integers(1, 3000), st.floats(1e-4, 0.6))
@settings(max_examples=200, deadline=None)
def test_the_binomial_p_value_is_that_of_scipy(losses, n, most):
    assert binomial_at_most(losses, n, most) == pytest.approx(stats.binom.cdf(losses, n, most), abs=1e-10)


@given(st.integers(-60, 60), st.integers(1, 400), st.floats(1e-6, 0.4), st.floats(1e-6, 0.4))
@settings(max_examples=100, deadline=None)
def test_a_sum_of_gains_and_losses_has_the_law_of_two_multinomial_counts(total, n, up, down):
    counts = np.arange(n + 1)
    law = stats.binom.pmf(counts, n, up)
    rest = stats.binom.sf(counts - total - 1, n - counts, min(1.0, down / (1 - up)))
    assert at_most(total, n, up, down)[0] == pytest.approx(float(law @ rest), abs=1e-9)


def test_a_signed_p_value_is_at_least_that_of_any_share_of_gains_that_is_likely():
    lost, gained, n = 20, 22, 1500
    p = signed_p(lost, gained, n, MOST)
    for gains in (0.0, 0.005, gained / n, 0.02):
        assert p >= at_most(lost - gained, n, MOST + gains, gains)[0] - 1e-4
    assert p < LEVEL


@pytest.mark.parametrize("shares", [(0.01, 0.0), (0.03, 0.02), (0.3, 0.29)])
def test_a_true_hypothesis_is_rejected_in_at_most_one_of_twenty_draws(shares):
    rng, wrong = np.random.default_rng(17), {"exact": 0, "betting": 0}
    lost, gained = shares
    for _ in range(DRAWS):
        losses = rng.choice([1.0, -1.0, 0.0], size=600, p=[lost, gained, 1 - lost - gained])
        wrong["exact"] += p_value(losses, MOST, gained > 0) <= LEVEL
        wrong["betting"] += betting_p(losses, MOST) <= LEVEL
    bound = stats.binom.ppf(0.999, DRAWS, LEVEL)
    assert wrong["exact"] <= bound
    assert wrong["betting"] <= bound


def test_partial_losses_are_bounded_as_well():
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(500):
        losses = np.where(rng.random(500) < 0.02, rng.random(500), 0.0)  # mean 0.01
        wrong += p_value(losses, MOST, signed=False) <= LEVEL
    assert wrong <= stats.binom.ppf(0.999, 500, LEVEL)
    assert hoeffding_bentkus_p(0.0, 299, MOST) <= LEVEL < hoeffding_bentkus_p(0.0, 200, MOST)
    assert hoeffding_bentkus_p(0.02, 500, MOST) == 1.0


def draw(rng, n, slope=6.0):
    """Risks that tell something: the chance of a loss rises with the risk, to 30 %."""
    risk = rng.random(n)
    return risk, (rng.random(n) < 0.3 * risk**slope).astype(float)


def true_loss(threshold, slope=6.0):
    return 0.3 * threshold ** (slope + 1) / (slope + 1)


def test_the_promise_is_broken_in_at_most_one_of_twenty_calibrations_and_little_is_deferred():
    rng, broken, deferred = np.random.default_rng(3), 0, []
    for _ in range(200):
        fitted, _ = draw(rng, 300)
        risk, losses = draw(rng, 1000)
        found = control(risk, losses, thresholds_of(fitted), signed=False)
        if found.threshold is not None:
            broken += true_loss(min(1.0, found.threshold)) > MOST
        deferred.append(found.deferred)
    assert broken <= stats.binom.ppf(0.999, 200, LEVEL)
    best = 1 - (MOST * 7 / 0.3) ** (1 / 7)
    assert np.mean(deferred) < best + 0.2


def test_a_calibration_set_that_is_too_small_says_how_many_more_rows_are_needed():
    risk, losses = np.linspace(0, 1, 100), np.zeros(100)
    found = control(risk, losses, thresholds_of(risk), signed=False)
    assert found.threshold is None
    assert found.deferred == 1.0
    assert least_rows() == 299
    assert 100 + found.more in (299, 300)
    more = 100 + found.more
    whole = control(np.linspace(0, 1, more), np.zeros(more), thresholds_of(risk), signed=False)
    assert whole.threshold == 1.0


def test_rows_that_only_lose_need_no_more_of_their_kind():
    assert needed(np.ones(50), signed=False, most=MOST, level=LEVEL) is None
    assert needed(np.zeros(400), signed=False, most=MOST, level=LEVEL) == 0
    assert needed(np.zeros(400), signed=True, most=MOST, level=LEVEL) == 412
    assert needed(np.zeros(0), signed=False, most=MOST, level=LEVEL) == 299


def test_families_hold_together_and_one_with_few_rows_promises_nothing():
    rng = np.random.default_rng(11)
    risk, losses = draw(rng, 2000)
    names = ["many"] * 1900 + ["few"] * 100
    found = families(risk, losses, names, thresholds_of(risk), signed=False)
    assert found["many"].threshold is not None
    assert found["many"].p <= LEVEL / 2
    assert found["few"].threshold is None
    assert found["few"].more > 0
