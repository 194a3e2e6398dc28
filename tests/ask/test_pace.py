"""The controller against simulated providers, and what must hold whatever happens."""

import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pace_simulator import Provider, simulate

from stillhouse.ask import pace
from stillhouse.ask.pace import Hints


def most_in_a_minute(moments):
    """The most of them within any 60 seconds."""
    best = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 60:
            first += 1
        best = max(best, last - first + 1)
    return best


def test_a_stated_rate_is_used_and_not_passed():
    provider = Provider(requests_per_minute=lambda _: 600, service=1.5)
    trace = simulate(pace.pace(1000, 0.0, requests_per_minute=600), provider, 600)
    assert not trace.refused
    assert len(trace.answered) >= 0.95 * 600 * 10
    assert most_in_a_minute(trace.sends) <= 600


def test_requests_and_tokens_a_minute_hold_together():
    rng = Random(1)
    sizes = [rng.randint(50, 250) for _ in range(20_000)]
    provider = Provider(requests_per_minute=lambda _: 600, tokens_per_minute=lambda _: 90_000, service=2.0)
    state = pace.pace(1000, 0.0, requests_per_minute=600, tokens_per_minute=90_000)
    # Reserved is what nine in ten stay below; used is what it was
    trace = simulate(state, provider, 900, tokens=lambda n: (230.0, float(sizes[n])))
    used = sum(sizes[: len(trace.answered)]) / 15
    assert len(trace.refused) < 0.01 * len(trace.sends)
    assert max(used / 90_000, len(trace.answered) / 15 / 600) >= 0.95


def test_an_unknown_number_of_slots_is_found_and_followed():
    provider = Provider(slots=lambda now: 40 if now < 300 else 12, service=1.0)
    trace = simulate(pace.pace(1000, 0.0), provider, 900)
    early = [limit for now, limit, _ in trace.states if 150 < now < 300]
    late = [limit for now, limit, _ in trace.states if now > 600]
    assert 25 <= sum(early) / len(early) <= 45
    assert 7 <= sum(late) / len(late) <= 16
    rate = sum(1 for now in trace.answered if 100 < now < 300) / 200
    assert rate >= 0.7 * 40


def test_one_burst_of_refusals_cuts_once():
    state = pace.pace(100, 0.0)
    tickets = []
    for _ in range(20):
        state, ticket = pace.sent(state, 1, 0.0)
        tickets.append(ticket)
    for ticket in tickets:
        state = pace.limited(state, ticket, 1.0, 5.0, Hints())
    assert state.limit == pytest.approx(15)
    assert state.epoch == 1
    assert state.in_flight == 0
    assert pace.wait(state, 1, 1.0) == pytest.approx(5.0)


def test_a_cooldown_is_never_shortened():
    state = pace.pace(100, 0.0)
    state, first = pace.sent(state, 1, 0.0)
    state, second = pace.sent(state, 1, 0.0)
    state = pace.limited(state, first, 0.0, 30.0, Hints())
    state = pace.limited(state, second, 1.0, 1.0, Hints())
    assert state.blocked_until == 30.0


def test_no_herd_leaves_after_a_cooldown():
    state = pace.pace(100, 0.0)
    state, ticket = pace.sent(state, 1, 0.0)
    state = pace.limited(state, ticket, 0.0, 10.0, Hints())
    left = []
    now = 0.0
    while len(left) < 10:
        delay = pace.wait(state, 1, now)
        if delay == 0:
            state, _ = pace.sent(state, 1, now)
            left.append(now)
        else:
            now += delay
    assert left[0] == pytest.approx(10.0)
    assert left[-1] - left[0] > 0.5
    assert all(b - a > 0.05 for a, b in pairwise(left))


def test_growth_needs_the_room_to_be_used():
    idle = simulate(pace.pace(1000, 0.0), Provider(), 300, demand=lambda now: 5)
    assert max(limit for _, limit, _ in idle.states) == pace.START
    busy = simulate(pace.pace(1000, 0.0), Provider(), 30)
    assert max(limit for _, limit, _ in busy.states) > 10 * pace.START


def test_failures_pause_growth_and_many_hold_back():
    state = pace.pace(1000, 0.0)
    for n in range(pace.BREAKER):
        assert pace.wait(state, 1, float(n)) == 0
        state, ticket = pace.sent(state, 1, float(n))
        state = pace.failed(state, ticket, float(n), billed=False)
    assert state.limit == pace.START
    assert pace.wait(state, 1, 9.0) > 0


def test_a_sender_that_dies_says_nothing_of_the_server():
    state, tickets = pace.pace(1000, 0.0, tokens_per_minute=6000), []
    for _ in range(pace.START):
        state, ticket = pace.sent(state, 10, 0.0)
        tickets.append(ticket)
    room = state.tokens.level
    for ticket in tickets:
        state = pace.lost(state, ticket, 0.0)
    assert (state.in_flight, state.limit) == (0, pace.START)
    assert state.tokens.level == room  # what was sent may have been used
    assert pace.wait(state, 1, 60.0) == 0


@pytest.mark.parametrize("slots", [4, 16, 64])
def test_a_server_that_queues_is_kept_near_its_knee(slots):
    provider = Provider(slots=lambda _: slots, queue=True, service=1.0)
    trace = simulate(pace.pace(512, 0.0, follow="latency"), provider, 400)
    flights = [flight for now, _, flight in trace.states if now > 200]
    rate = sum(1 for now in trace.answered if now > 200) / 200
    assert rate >= 0.9 * slots
    assert sum(flights) / len(flights) <= 3 * slots + 8


def test_headers_of_both_kinds_are_read():
    openai = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "90000",
        "x-ratelimit-remaining-tokens": "45000",
        "x-ratelimit-reset-tokens": "30s",
    }
    assert pace.hints_of(openai, 0.0) == Hints(600, 599, 0.1, 90_000, 45_000, 30)
    anthropic = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:20Z",
    }
    assert pace.hints_of(anthropic, 1767225600.0) == Hints(50, 0, 20.0)
    daily = {
        "x-ratelimit-limit-requests": "1440",
        "x-ratelimit-remaining-requests": "1439",
        "x-ratelimit-reset-requests": "1m0s",
    }
    assert pace.hints_of(daily, 0.0).requests == 1440  # until they are used up
    assert pace.hints_of({"x-ratelimit-limit-requests": "many"}, 0.0) == Hints()


def test_learned_rates_bind_and_the_lower_one_holds():
    state = pace.learned(pace.pace(100, 0.0, requests_per_minute=60), Hints(requests=600), 0.0)
    assert state.requests.per_minute == 60
    state = pace.learned(state, Hints(requests=30, requests_left=0, requests_reset=2.0), 0.0)
    assert state.requests.per_minute == 30
    assert pace.wait(state, 1, 0.0) > 1.9


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(30, 3000),
    st.integers(1, 80),
    st.floats(0.05, 5.0),
    st.sampled_from([None, 0.5, 7.0]),
    st.sampled_from(["limits", "latency"]),
)
def test_whatever_the_provider_is_the_work_goes_on_within_its_rates(
    most, rate, slots, service, retry_after, follow
):
    provider = Provider(
        slots=lambda _: slots,
        requests_per_minute=lambda _: rate,
        service=service,
        retry_after=retry_after,
        queue=follow == "latency",
    )
    trace = simulate(pace.pace(most, 0.0, follow=follow, requests_per_minute=rate), provider, 120)
    assert trace.answered
    assert most_in_a_minute(trace.sends) <= rate
    assert all(0 <= flight <= most for _, _, flight in trace.states)
    assert all(1 <= limit <= max(most, 1) for _, limit, _ in trace.states)
    gaps = [b - a for a, b in zip([0.0, *trace.answered], trace.answered, strict=False)]
    assert max(gaps) <= 65 + 2 * service * max(1, math.ceil(most / slots))


@given(
    st.floats(1, 1e6),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5000)), min_size=1, max_size=50),
)
def test_a_bucket_holds_its_rate_in_the_long_run(per_minute, steps):
    bucket, now, taken = pace.Bucket().limited(per_minute, 0.0), 0.0, 0.0
    for gap, amount in steps:
        now += gap
        now += bucket.wait(amount, now)
        bucket = bucket.take(amount, now)
        taken += amount
        largest = max(a for _, a in steps)
        assert taken <= bucket.size() + now * per_minute / 60 + largest + 1e-6


def test_a_rate_that_the_server_raises_is_used_and_the_users_own_still_binds():
    state = pace.learned(pace.pace(100, 0.0), Hints(requests=60), 0.0)
    state = pace.learned(state, Hints(requests=6000), 1.0)
    assert state.requests.per_minute == 6000
    own = pace.learned(pace.pace(100, 0.0, requests_per_minute=120), Hints(requests=60), 0.0)
    assert pace.learned(own, Hints(requests=6000), 1.0).requests.per_minute == 120
