"""How often an ordinary account is alarmed: what is promised, what holds in simulation, and where it ends."""

import math
import random
from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stillhouse.guard.calibrating import accounts_needed, threshold
from stillhouse.stats import binomial_at_most, binomial_upper

scores = st.lists(st.floats(-10, 10), min_size=1, max_size=60)
chances = st.floats(0.001, 0.5)


def highest(draw: random.Random, level: float = 0.0, requests: int = 30) -> float:
    """What one account's score reaches in a month: a walk of steps that hang together, with a drift."""
    drift, step, at, most = draw.gauss(level, 0.1), 0.0, 0.0, 0.0
    for _ in range(requests):
        step = 0.7 * step + draw.gauss(0.0, 0.2)
        at = max(0.0, at + drift + step - 0.05)
        most = max(most, at)
    return most


@pytest.mark.parametrize(("hits", "tries"), [(0, 10_000), (4, 10_000), (5, 10_000), (1, 3), (37, 50)])
def test_the_upper_bound_is_clopper_and_pearsons(hits, tries):
    assert binomial_upper(hits, tries) == pytest.approx(
        stats.beta.ppf(0.95, hits + 1, tries - hits), rel=1e-9
    )
    exact = stats.binomtest(hits, tries).proportion_ci(0.9, method="exact")
    assert binomial_upper(hits, tries) == pytest.approx(exact.high, rel=1e-6)


def test_the_upper_bound_where_every_account_or_none_is_there():
    assert binomial_upper(3, 3) == 1.0
    assert binomial_upper(0, 0) == 1.0


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 50), st.floats(0, 1))
def test_hits_are_counted_as_scipy_counts_them(hits, tries, chance):
    assert binomial_at_most(hits, tries, chance) == pytest.approx(
        stats.binom.cdf(hits, tries, chance), abs=1e-9
    )


def test_a_threshold_needs_as_many_accounts_as_it_says():
    assert accounts_needed(1e-3) == 999
    assert accounts_needed(1e-4) == 9_999
    assert accounts_needed(1e-3, 0.95) == 2_995  # Wilks: log 0.05 / log 0.999
    for confidence in (None, 0.95):
        enough = accounts_needed(0.02, confidence)
        assert math.isfinite(threshold(range(enough), 0.02, confidence).score)
        assert threshold(range(enough - 1), 0.02, confidence).score == math.inf


def test_ten_thousand_accounts_at_one_in_a_thousand():
    plain, sure = threshold(range(10_000), 1e-3), threshold(range(10_000), 1e-3, 0.95)
    assert (plain.above, plain.score) == (9, 9_990)
    # of 10,000 tries with 1e-3 each, scipy.stats.binom.cdf gives 2.9 % for 4 hits or fewer, and 6.7 % for 5
    assert (sure.above, sure.score) == (4, 9_995)


@settings(deadline=None)
@given(scores, chances, st.sampled_from([None, 0.95]), st.randoms())
def test_the_rank_is_kept_whatever_the_scores_are(maxima, alarm, confidence, draw):
    found = threshold(maxima, alarm, confidence)
    shuffled = list(maxima)
    draw.shuffle(shuffled)
    assert threshold(shuffled, alarm, confidence) == found
    assert found.above == sum(each > found.score for each in maxima)
    # ties included: of n + 1 accounts alike, no more than their share lie above
    assert (found.above + 1) / (len(maxima) + 1) <= alarm + 1e-9 or found.score == math.inf
    assert threshold(maxima, alarm / 2, confidence).score >= found.score
    if confidence:
        assert found.score >= threshold(maxima, alarm).score or found.score == max(maxima)


@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1, 1.5])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="probabilities"):
        threshold([1.0], wrong)
    with pytest.raises(ValueError, match="probabilities"):
        threshold([1.0], 0.1, wrong)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        threshold([1.0, math.nan], 0.5)


def test_exchangeable_accounts_are_alarmed_no_more_often_than_promised():
    """Account by account, though each account's requests depend on each other."""
    draw = random.Random(8)
    reached = sorted(highest(draw) for _ in range(5_000))
    alarm, n = 0.02, 199
    rates, broken = [], 0
    for _ in range(400):
        sample = draw.choices(reached, k=n)
        for confidence in (None, 0.9):
            line = threshold(sample, alarm, confidence).score
            rate = 1 - bisect_right(reached, line) / len(reached)
            if confidence:
                broken += rate > alarm
            else:
                rates.append(rate)
    assert sum(rates) / 400 == pytest.approx(alarm, rel=0.15)  # 199 accounts keep it to the letter: 4 of 200
    assert broken / 400 <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 400)


def test_the_promise_ends_where_the_accounts_to_come_are_others():
    """A fifth of next month's accounts do something that no account of the calibration month did."""
    draw = random.Random(9)
    line = threshold([highest(draw) for _ in range(1_000)], 0.01).score
    alike = [highest(draw) for _ in range(2_000)]
    others = [highest(draw, level=0.5 if n % 5 == 0 else 0) for n in range(2_000)]
    assert sum(each > line for each in alike) / 2_000 < 0.02
    assert sum(each > line for each in others) / 2_000 > 0.05


def test_the_promise_ends_where_accounts_of_one_source_move_together():
    """Ten sources, each with a level of its own: a month on new sources breaks the promise far more often
    than its confidence says. It is sources that must be many, not accounts."""
    draw = random.Random(10)

    def month() -> list[float]:
        return [highest(draw, level) for level in (draw.gauss(0, 0.3) for _ in range(10)) for _ in range(40)]

    broken = 0
    for _ in range(40):
        line = threshold(month(), 0.02, 0.95).score
        broken += sum(each > line for each in month()) / 400 > 0.02
    assert broken / 40 > 0.2
