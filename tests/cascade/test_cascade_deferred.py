"""Which of the exchanges that a cascade deferred may be learned from."""

from dataclasses import replace

import pytest

from stillhouse.cascade.deferred import Deferred, is_one_chat, learnable, read, sampling_in, sort, written

HELLO = [{"role": "user", "content": "hello"}]
ONE = Deferred(
    "req_1",
    "acct_1",
    "desk",
    1000.5,
    "unsure",
    "2026-01",
    "http://teacher/v1",
    "teacher",
    ({"role": "system", "content": "be brief"}, {"role": "user", "content": "wörd 字"}),
    {"max_tokens": 5},
    "an answer",
)


def test_what_is_sealed_is_read_back():
    assert read(ONE.id, ONE.account, *written(ONE)) == ONE


@pytest.mark.parametrize(
    ("more", "judged", "learned"),
    [
        ({}, True, True),
        ({"temperature": 0}, True, True),
        ({"temperature": 0.2}, False, False),
        ({"tools": [{}]}, False, False),
        ({"response_format": {"type": "json_object"}}, False, False),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, False, False),
        ({"messages": [{"role": "developer", "content": "x"}, *HELLO]}, True, False),
        ({"messages": [{"role": "user", "content": "x", "name": "ann"}]}, True, False),
        ({"messages": [*HELLO, {"role": "assistant", "content": "go on"}]}, True, False),
        ({"messages": [{"role": "user", "content": ""}]}, True, False),
        ({"messages": [{"role": ["user"], "content": "x"}]}, True, False),
        ({"messages": []}, True, False),
    ],
)
def test_only_a_plain_conversation_is_judged_and_only_one_that_a_user_ends_is_learned(more, judged, learned):
    body = {"messages": HELLO, **more}
    assert is_one_chat(body, 1) is judged
    assert learnable(body, 1) is learned
    assert not is_one_chat(body, 2)


def test_what_a_request_said_of_its_sampling_is_kept_and_nothing_else():
    body = {"messages": HELLO, "max_tokens": 9, "temperature": 0, "stop": None, "user": "ann"}
    assert sampling_in(body) == {"max_tokens": 9, "temperature": 0}


def test_only_what_the_recipes_teacher_answered_is_taken_and_all_else_is_counted():
    others = [replace(ONE, called="other"), replace(ONE, upstream="http://elsewhere/v1")]
    done = sort([ONE, *others, "erased", "erased"], {"http://teacher/v1": frozenset({"teacher"})})
    assert done.taken == [ONE]
    assert done.left_out == {"another server answered it than the recipe's teacher": 2, "erased": 2}
