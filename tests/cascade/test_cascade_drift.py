"""An alarm comes soon when the traffic changes, and hardly ever while it does not."""

import math

import numpy as np
import pytest
from scipy import stats

from stillhouse.cascade import drift
from stillhouse.cascade.drift import CERTAIN, Evidence, add, audited, must_defer, seen, upper_rate, watch


def alarm(rng, state, rate, requests):
    for _ in range(requests):
        strange = bool(rng.random() < rate)
        state = seen(state, strange, must_defer(state, strange))
        if state.alarm is not None:
            return state
    return state


def test_no_alarm_in_runs_of_ten_thousand_requests():
    rng = np.random.default_rng(17)
    for _ in range(8):
        assert alarm(rng, watch(0.02, 0.02), 0.02, 10_000).alarm is None


def test_the_stated_rate_of_false_alarms_holds():
    """With a lower bar, so that there are any: the chance within t steps is at most t / bar."""
    rng, bar, steps, runs = np.random.default_rng(3), 2000.0, 100, 1000
    alarms = 0
    for _ in range(runs):
        evidence, top = Evidence(0.05), 0.0
        for happened in rng.random(steps) < 0.05:
            evidence = add(evidence, bool(happened))
            top = max(top, evidence.weight)
        alarms += top >= bar
    assert alarms <= stats.binom.ppf(0.999, runs, steps / bar)


def test_a_new_kind_of_prompt_in_a_fifth_of_the_traffic_is_found_within_two_hundred_requests():
    rng = np.random.default_rng(5)
    found = [alarm(rng, watch(0.02, 0.02), 0.2 + 0.8 * 0.01, 1000) for _ in range(200)]
    delays = sorted(state.alarm for state in found)
    assert delays[190] <= 200
    assert "unlike" in found[0].why
    expected = drift.requests_to_alarm(0.02, 0.208)
    assert np.mean(delays) == pytest.approx(expected, rel=0.5)


def test_after_an_alarm_unfamiliar_prompts_are_deferred_and_their_labels_counted_down():
    state = alarm(np.random.default_rng(1), watch(0.02, 0.02), 0.5, 1000)
    assert state.owed == 299
    assert must_defer(state, unfamiliar=True)
    assert not must_defer(state, unfamiliar=False)
    for _ in range(300):
        state = seen(state, unfamiliar=True, deferred=True)
    assert state.owed == 0
    assert must_defer(state, unfamiliar=True)  # until a new calibration is there


def test_a_teacher_that_answers_otherwise_than_before_defers_everything():
    state = watch(0.02, 0.02)
    for n in range(300):
        state = audited(state, differs=n % 3 == 0)
        if state.alarm is not None:
            break
    assert state.alarm is not None
    assert state.audited < 200
    assert must_defer(state, unfamiliar=False)
    assert "differs" in state.why


def test_evidence_never_runs_over():
    evidence = Evidence(0.01)
    for _ in range(5000):
        evidence = add(evidence, happened=True)
    assert math.isfinite(evidence.weight)
    assert evidence.weight >= CERTAIN


@pytest.mark.parametrize(("happened", "of"), [(0, 100), (5, 300), (40, 2000)])
def test_a_usual_rate_is_bounded_from_above(happened, of):
    limit = stats.beta.ppf(1 - drift.SURE, happened + 1, of - happened)
    assert upper_rate(happened, of) == pytest.approx(limit, rel=1e-3)
    assert upper_rate(0, 0) == 0.5
