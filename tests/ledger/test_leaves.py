import math
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import LedgerError
from stillhouse.ledger.keys import exchange_key
from stillhouse.ledger.leaves import LIMIT, canonical, commitment, new_leaf

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SAFE = 2**53 - 1
texts = st.text(st.characters(codec="utf-8"))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-SAFE, SAFE)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_canonical_json_is_that_of_the_rfc8785_package_and_reads_back_the_same(value):
    try:
        assert canonical(value) == rfc8785.dumps(value)
    except LedgerError:
        assert any(2**53 <= abs(number) < 2**64 for number in floats_in(value))
    else:
        assert canonical(orjson.loads(canonical(value))) == canonical(value)


def floats_in(value):
    if isinstance(value, float):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [number for item in inner for number in floats_in(item)]


def test_the_example_of_rfc8785_section_3_2_2():
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"\u002f",
        "literals": [None, True, False],
    }
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, 2**53, 2.0**53, "\ud800", {1: 2}, {"a": b"bytes"}, {"a": {1, 2}}]
)
def test_what_json_cannot_hold_is_refused(bad):
    with pytest.raises(LedgerError, match="cannot be written"):
        new_leaf("row", {"x": bad}, {}, NOW)


def test_a_leaf_holds_commitments_and_no_content():
    leaf = new_leaf("exchange", {"key": "ab" * 32, "tokens": 3}, {"request": b"my secret question"}, NOW)
    (name, salt, content) = leaf.contents[0]
    assert b"secret" not in leaf.data
    assert orjson.loads(leaf.data) == {
        "body": {"key": "ab" * 32, "tokens": 3},
        "commitments": {name: commitment(salt, content)},
        "kind": "exchange",
        "time": "2026-11-21T09:30:00.000000Z",
        "v": 1,
    }
    again = new_leaf("exchange", {"key": "ab" * 32}, {"request": b"my secret question"}, NOW)
    assert again.contents[0][1] != salt


def test_a_leaf_time_is_utc():
    there = NOW.astimezone(timezone(timedelta(hours=13)))
    assert new_leaf("row", {}, {}, there).time == "2026-11-21T09:30:00.000000Z"


def test_a_leaf_is_under_64_kib():
    room = LIMIT - len(new_leaf("row", {"x": ""}, {}, NOW).data)
    assert len(new_leaf("row", {"x": "a" * room}, {}, NOW).data) == LIMIT == 2**16 - 1
    with pytest.raises(LedgerError, match="too long"):
        new_leaf("row", {"x": "a" * (room + 1)}, {}, NOW)


def test_an_unknown_kind_or_a_malformed_key_is_refused():
    with pytest.raises(LedgerError, match="no leaf kind"):
        new_leaf("note", {}, {}, NOW)
    with pytest.raises(LedgerError, match="exchange key"):
        new_leaf("exchange", {"key": "short"}, {}, NOW)


BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.0}
ASKED = {"path": "/chat/completions", "endpoint": "desk", "revision": "r1", "body": BODY}


def test_an_exchange_key_is_this_one():
    """Computed with openssl dgst -sha256 -mac HMAC over the canonical text: the format must never change."""
    assert exchange_key(bytes(range(32)), **ASKED) == KEY_BY_OPENSSL


KEY_BY_OPENSSL = "c097c50930ca506b0b02271e8bcea7a78cc4541a3396dbf7ac38eae5abe3647d"


def test_what_does_not_change_the_answer_is_not_in_the_key():
    key = exchange_key(b"k" * 32, **ASKED)
    noise = {"stream": True, "stream_options": {"include_usage": True}, "user": "u", "metadata": {"a": "b"}}
    assert exchange_key(b"k" * 32, **{**ASKED, "body": {**noise, **BODY}}) == key
    assert exchange_key(b"k" * 32, **{**ASKED, "body": {**BODY, "temperature": 0}}) == key


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/completions"},
        {"endpoint": "other"},
        {"revision": "r2"},
        {"body": {**BODY, "temperature": 0.5}},
        {"body": {**BODY, "seed": 1}},
        {"sample_index": 1},
        {"epoch": 1},
    ],
)
def test_what_changes_the_question_changes_the_key(change):
    assert exchange_key(b"k" * 32, **{**ASKED, **change}) != exchange_key(b"k" * 32, **ASKED)
    assert exchange_key(b"j" * 32, **ASKED) != exchange_key(b"k" * 32, **ASKED)
