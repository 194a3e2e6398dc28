"""What a server says of token ids that it read: exactly as sent, and nothing that only looks like it."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from stillhouse.errors import ModelError
from stillhouse.models.scores import read_scores
from stillhouse.models.vocabulary import read_vocabulary

VOCABULARY = read_vocabulary(tiny_tokenizer().backend_tokenizer.to_str())
IDS = [5, 9, 4, 7]


def spelt(at):
    return VOCABULARY.raw[at].decode() if at < len(VOCABULARY.raw) else ""


def entry(at, logprob, **changes):
    return {str(at): {"logprob": logprob, "rank": 1, "decoded_token": spelt(at), **changes}}


def response(*positions):
    return json.dumps({"choices": [{"text": "", "prompt_logprobs": [None, *positions]}]}).encode()


def told(token, *others):
    return {**entry(token, -1.25), **{at: said for other in others for at, said in other.items()}}


@given(st.lists(st.floats(-60, 0, width=32), min_size=4, max_size=20))
def test_what_was_sent_is_read_exactly_and_likeliest_first(values):
    mass = math.log(sum(map(math.exp, values)))
    values = [float(np.float32(value - max(mass, 0.0))) for value in values]
    position = {at: said for at, value in enumerate(values) for at, said in entry(at, value).items()}
    scores = read_scores(response(told(9), told(4), position), [5, 9, 4, 0], 3, VOCABULARY)
    assert scores.offsets_N1.tolist() == [0, len(values)]
    assert scores.logprobs_E.tolist() == sorted((min(value, 0.0) for value in values), reverse=True)
    assert sorted(scores.ids_E.tolist()) == list(range(len(values)))


def test_padding_of_the_head_and_what_is_impossible_are_left_out():
    position = {**told(7), **entry(len(VOCABULARY.raw) + 3, -2.0), **entry(3, -9999.0)}
    scores = read_scores(response(told(9), told(4), position), IDS, 2, VOCABULARY)
    assert scores.ids_E.tolist() == [4, 7]
    assert scores.offsets_N1.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{}", "not readable"),
        (b'{"choices": [{"text": "", "prompt_logprobs": null}]}', "not readable"),
        (response(told(9), told(4)), "another number of tokens than was sent"),
        (response(told(9), told(4), told(8)), "other tokens than were sent"),
        (response(told(9), None, told(7)), "not readable"),
        (response(told(9), told(4), {**told(7), **entry(3, 0.5)}), "impossible probabilities"),
        (response(told(9), told(4), {**told(7), **entry(3, -0.01)}), "impossible probabilities"),
        (response(told(9), told(4), {**told(7), **entry(3, math.nan)}), "not readable"),
        (response(told(9), told(4), {**told(7), **entry(3, None)}), "not readable"),
    ],
)
def test_a_row_that_cannot_be_trusted_has_a_reason(body, reason):
    assert read_scores(body, IDS, 2, VOCABULARY) == reason


@pytest.mark.parametrize("shown", [" {} ", "\ufffd", "", None])
def test_ways_of_showing_a_token_that_are_no_contradiction(shown):
    said = entry(7, -1.0, decoded_token=shown and shown.format(spelt(7)))
    assert not isinstance(read_scores(response(told(9), told(4), said), IDS, 2, VOCABULARY), str)


def test_a_token_that_is_spelt_otherwise_there_is_an_error():
    with pytest.raises(ModelError, match="other tokens") as stopped:
        read_scores(response(told(9), told(4), entry(7, -1.0, decoded_token="q")), IDS, 2, VOCABULARY)
    assert "'q'" in stopped.value.why
