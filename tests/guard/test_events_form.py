"""Events in their canonical form, and what sums of them say."""

import math

import orjson
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard.events import (
    FIELDS,
    LONGEST_LABEL,
    MIXED,
    Event,
    Rate,
    Usage,
    canonical,
    date_of,
    event_of,
    label,
    number_of,
    price_of,
    row_of,
    totals,
)
from stillhouse.guard.limits import Step

COUNT = st.integers(0, 2**53 - 1)
SECONDS = st.floats(0, 1e5, allow_nan=False)
EVENTS = st.builds(
    Event,
    id=st.text(),
    at=st.floats(0, 4e9, allow_nan=False),
    organisation=st.sampled_from(["", "o1"]),
    account=st.sampled_from(["a1", "a2"]),
    key=st.sampled_from(["k1", "k2"]),
    model=st.text(),
    upstream=st.just("http://127.0.0.1:1/v1"),
    route=st.just("chat/completions"),
    stream=st.booleans(),
    status=st.integers(100, 599),
    ended=st.sampled_from(["whole", "client_left", "upstream_cut", "refused", "failed"]),
    reason=st.text(),
    input_tokens=COUNT,
    output_tokens=COUNT,
    counted=st.sampled_from(["told", "bound"]),
    cost=COUNT,
    first_byte=st.none() | SECONDS,
    seconds=SECONDS,
    choices=st.integers(1, 100),
    changed=st.lists(st.sampled_from(["n:capped", "logprobs:rounded"])).map(tuple),
)


def event(**said):
    plain = {
        "id": "e1",
        "at": 1_795_000_000.25,
        "organisation": "o1",
        "account": "a1",
        "key": "k1",
        "model": "m",
        "upstream": "http://127.0.0.1:1/v1",
        "route": "chat/completions",
        "stream": True,
        "status": 200,
        "ended": "whole",
    }
    return Event(**plain | said)


def test_the_canonical_form_is_fixed():
    row = row_of(event(first_byte=0.0125, seconds=1.5, changed=("n:capped", "logprobs:rounded")))
    assert canonical(row) == (
        b'{"account":"a1","at":1795000000250000,"changed":"n:capped logprobs:rounded","choices":1,"cost":0,'
        b'"counted":"told","ended":"whole","first_byte":12500,"id":"e1","input_tokens":0,"key":"k1",'
        b'"model":"m","organisation":"o1","output_tokens":0,"reason":"","route":"chat/completions",'
        b'"seconds":1500000,"status":200,"stream":1,"upstream":"http://127.0.0.1:1/v1"}'
    )


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_the_form_is_rfc_8785_whatever_is_in_it(one):
    row = row_of(one)
    data = canonical(row)
    assert data == rfc8785.dumps(orjson.loads(data))
    assert list(orjson.loads(data)) == sorted(FIELDS)
    assert tuple(orjson.loads(data).values()) == row


@given(EVENTS)
@settings(max_examples=200, deadline=None)
def test_an_event_read_back_is_the_event_to_the_microsecond(one):
    back = event_of(row_of(one))
    assert row_of(back) == row_of(one)
    assert abs(back.at - one.at) <= 1e-6
    assert (back.ended, back.changed, back.stream) == (one.ended, one.changed, one.stream)


@given(st.text())
def test_a_label_is_printable_and_short_whatever_the_client_wrote(text):
    cleaned = label(text)
    assert cleaned.isprintable()
    assert len(cleaned) <= LONGEST_LABEL
    cleaned.encode()
    assert label(cleaned) == cleaned


def test_a_number_that_json_readers_round_has_no_form():
    with pytest.raises(ValueError, match="canonical"):
        canonical(row_of(event(cost=2**53)))


STEPS = (Step(0, 1000, 3000), Step(1_000_000, 500, 1500))
RATES = {"m": Rate("list", STEPS), "free": Rate()}


def test_sums_tell_the_step_that_each_request_was_charged_at():
    events = [
        event(input_tokens=10, output_tokens=5, cost=10 * 1000 + 5 * 3000),
        event(input_tokens=1, output_tokens=1, cost=4000, counted="bound"),
        event(input_tokens=10, output_tokens=5, cost=10 * 500 + 5 * 1500),
        event(input_tokens=10, output_tokens=5, cost=10 * 1000 + 5 * 1500),  # it crossed
        event(ended="refused", status=429, reason="requests_per_minute"),
        event(model="free", input_tokens=7),
    ]
    assert {part[3:]: used for part, used in totals(events, RATES).items()} == {
        ("k1", "m", "list", 1000, 3000): Usage(2, 0, 1, 11, 6, 29_000),
        ("k1", "m", "list", 500, 1500): Usage(1, 0, 0, 10, 5, 12_500),
        ("k1", "m", "list", MIXED, MIXED): Usage(1, 0, 0, 10, 5, 17_500),
        ("k1", "m", "", 0, 0): Usage(1, 1, 0, 0, 0, 0),
        ("k1", "free", "", 0, 0): Usage(1, 0, 0, 7, 0, 0),
    }


def test_names_of_models_that_are_not_served_make_no_rows_of_their_own():
    events = [event(id=str(n), model=f"guess-{n}", ended="refused", status=404) for n in range(1000)]
    (one,) = totals(events, RATES).items()
    assert one[0].model == ""
    assert one[1] == Usage(1000, 1000, 0, 0, 0, 0)


@given(st.lists(EVENTS, max_size=30))
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_in_the_sums(events):
    used = Usage()
    for each in totals(events, RATES).values():
        used = used.plus(each)
    assert used.requests == len(events)
    assert used.refused == sum(one.ended == "refused" for one in events)
    assert used.cost == sum(one.cost for one in events)
    assert used.input_tokens == sum(one.input_tokens for one in events)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 3_000_000))
def test_a_cost_that_a_step_explains_is_that_step_s(taken, given_out, cost):
    before, after = price_of(STEPS, taken, given_out, cost)
    if before == MIXED:
        assert cost
        assert all(taken * step.input + given_out * step.output != cost for step in STEPS)
    elif cost:
        assert taken * before + given_out * after == cost


@given(st.dates())
def test_days_count_from_1970(day):
    assert date_of(number_of(day)) == day
    assert number_of(day) == math.floor((day - date_of(0)).days)
