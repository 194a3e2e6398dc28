"""A stream leaves as it came, however it was cut into pieces, and what it took is read on the way."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.gateway.stream import LONGEST, Passing, Unwritable, usage_of, written
from stillhouse.guard.answers import Cut, Filter


def event(told, end="\n"):
    return (f"data: {json.dumps(told)}" + 2 * end).encode()


def words(count, end="\n"):
    return [event({"choices": [{"delta": {"content": f"w{n} "}}], "usage": None}, end) for n in range(count)]


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}
DONE = b"data: [DONE]\n\n"


def cut(data, places):
    borders = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


def passed(passing, pieces):
    return b"".join([passing.feed(piece) for piece in pieces] + [passing.end()])


@settings(max_examples=300)
@given(st.lists(st.integers(0, 700), max_size=12), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_cut_anywhere_it_is_the_same_stream_and_the_same_usage(places, end, strip):
    before = [b": a comment" + 2 * end.encode(), *words(4, end)]
    data = b"".join([*before, event(USAGE, end), DONE])
    passing = Passing(strip)
    out = passed(passing, cut(data, places))
    assert out == (b"".join([*before, DONE]) if strip else data)
    assert passing.usage == (7, 5)
    assert passing.whole
    assert not passing.failed


@given(st.lists(st.integers(0, 300), max_size=6))
def test_what_the_client_asked_for_never_waits(places):
    data = b"".join([*words(2), event(USAGE), DONE])
    passing = Passing(strip=False)
    for piece in cut(data, places):
        assert passing.feed(piece) == piece
    assert passing.usage == (7, 5)


def test_whole_events_pass_at_once_even_when_the_last_is_held_back():
    passing = Passing(strip=True)
    first, second = words(2)
    assert passing.feed(first + second[:9]) == first
    assert passing.feed(second[9:]) == second


def test_a_last_piece_of_text_that_also_tells_usage_is_kept():
    told = {"choices": [{"delta": {"content": "x"}}], "usage": USAGE["usage"]}
    passing = Passing(strip=True)
    assert passed(passing, [event(told), DONE]) == event(told) + DONE
    assert passing.usage == (7, 5)


def test_a_stream_without_its_end_is_not_whole_and_nothing_is_lost():
    passing = Passing(strip=True)
    data = b"".join(words(3)) + b'data: {"choi'
    assert passed(passing, [data]) == data
    assert not passing.whole


def test_an_error_in_the_middle_is_seen():
    passing = Passing(strip=True)
    passed(passing, [*words(1), event({"error": {"message": "out of memory"}})])
    assert passing.failed


def test_a_response_of_the_newer_kind_tells_its_usage_at_its_end():
    end = {"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 4}}}
    passing = Passing(strip=True)
    data = b"event: response.completed\n" + event(end)
    assert passed(passing, [data]) == data
    assert passing.usage == (3, 4)
    assert passing.whole


@given(st.lists(st.integers(0, 400), max_size=6))
def test_reasoning_is_taken_out_of_events_however_they_are_cut(places):
    thought = event({"choices": [{"index": 0, "delta": {"content": "", "reasoning_content": "secret"}}]})
    data = b"".join([thought, *words(2), event(USAGE), DONE])
    cut_ = Cut(Filter(reasoning=True, texts=1))
    passing = Passing(strip=True, cut=cut_)
    out = passed(passing, cut(data, places))
    assert b"secret" not in out
    assert out.endswith(b"".join([*words(2), DONE]))
    assert passing.usage == (7, 5)
    assert cut_.changed


def said(content, **more):
    return {"choices": [{"index": 0, "delta": {"content": content}, **more}], "usage": None}


EVENTS = st.sampled_from(
    [
        said("w "),
        said('a "usage" and an "error"'),
        said("data: [DONE]"),
        said(""),
        said("<thi"),
        said("nk>h"),
        said("</think>x"),
        said("w", logprobs={"content": [{"token": "w", "logprob": -0.123, "top_logprobs": []}]}),
        said("w", logprobs=None),
        {"choices": [{"index": 0, "delta": {"content": "y", "reasoning": "h"}}]},
        {"choices": [], "hidden_states": [1.5]},
        USAGE,
    ]
)
FILTERS = st.sampled_from(
    [
        Filter(reasoning=True, texts=1),
        Filter("remove"),
        Filter("remove", reasoning=True, texts=1),
        Filter("remove", reasoning=True),
        Filter("cap", 0, 1, 2, True, 1),
    ]
)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(EVENTS, st.sampled_from(["\n", "\n", "\r\n"])), max_size=12),
    FILTERS,
    st.lists(st.integers(0, 2000), max_size=4),
)
def test_however_many_events_come_at_once_each_loses_what_it_would_alone(events, filter, places):
    alone, expected = Cut(filter), []
    for told, end in events:
        left = json.loads(json.dumps(told))
        cuts = alone.apply(left)
        expected.append(b"data: " + written(left) + b"\n\n" if cuts else event(told, end))
    cut_ = Cut(filter)
    passing = Passing(strip=False, cut=cut_)
    out = passed(passing, cut(b"".join(event(*each) for each in events), places))
    assert out == b"".join(expected)
    assert cut_.changed == alone.changed
    assert passing.usage == ((7, 5) if USAGE in [told for told, _ in events] else None)


def test_an_event_beyond_all_bounds_passes_unread_and_is_not_held_where_nothing_is_taken_out():
    passing = Passing(strip=True)
    piece = b"x" * (1 << 20)
    out = passing.feed(b"data: ")
    for _ in range(10):
        out += passing.feed(piece)
    assert len(out) >= LONGEST
    rest = passing.feed(b"\n\n" + event(USAGE) + DONE)
    assert rest == b"\n\n" + DONE
    assert passing.usage == (7, 5)


SECRET = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"secret","content":"a"}'


@pytest.mark.parametrize(
    "unread",
    [
        SECRET + b',"logprobs":{"content":[{"token":"a","logprob":-Infinity}]}}]}\n\n',
        SECRET + b',"x":NaN}]}\n\n',
        SECRET + b',"x":"\xff"}]}\n\n',
        SECRET + b"\n\n",
        SECRET,
        b"data: [" + SECRET[6:] + b"}]}]\n\n",
        SECRET + b',"x":"' + b"x" * LONGEST,
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_what_cannot_be_read_is_not_passed_where_something_may_have_to_be_taken_out(unread, begun):
    passing = Passing(strip=False, cut=Cut(Filter(reasoning=True, texts=1)))
    out = [passing.feed(word) for word in words(2)] if begun else []

    def rest():
        for piece in cut(unread, range(0, len(unread), 1 << 20)):
            out.append(passing.feed(piece))
        out.append(passing.end())

    with pytest.raises(Unwritable):
        rest()
    assert b"secret" not in b"".join(out)
    assert passed(Passing(strip=False), [unread]) == unread


@given(st.lists(st.integers(0, 200), max_size=6))
def test_a_mark_of_the_byte_order_hides_nothing(places):
    mark = b"\xef\xbb\xbf"
    thought = event({"choices": [{"index": 0, "delta": {"content": "", "reasoning_content": "secret"}}]})
    out = passed(
        Passing(strip=True, cut=Cut(Filter(reasoning=True, texts=1))), cut(mark + thought + DONE, places)
    )
    assert b"secret" not in out
    assert out.endswith(DONE)
    passing = Passing(strip=True)
    assert passed(passing, cut(mark + event(USAGE) + DONE, places)) == DONE
    assert passing.usage == (7, 5)


@given(st.binary(max_size=300), st.booleans())
def test_garbage_passes(data, strip):
    assert passed(Passing(strip), [data]) == data or b"usage" in data


def test_usage_that_cannot_be_is_none():
    for usage in ({"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": 1.5}, [], "x", {}):
        assert usage_of({"usage": usage}) is None
    assert usage_of({"usage": {"prompt_tokens": 4}}) == (4, 0)
