"""A request is written in pieces, of which most are written once; it must be what the plain way writes."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.ask import Question, Sampling, Teacher, question_key, request_body
from stillhouse.ask.questions import request_bytes
from stillhouse.ledger import canonical, exchange_key
from stillhouse.records import Message

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ['"messages":[]', '\\"messages\\":[]']
)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT), min_size=1, max_size=3)
TEACHERS = st.builds(
    Teacher, TEXT, TEXT, TEXT, st.sampled_from([None, lambda: "http://x/v1"]), system=TEXT | st.just("")
)
SAMPLINGS = st.builds(
    Sampling,
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.floats(0, 1),
    st.integers(1, 9999),
    st.none() | st.integers(0, 20),
)
TOOLS = st.sampled_from(["", '[{"function":{"name":"f"},"type":"function"}]'])


@given(MESSAGES, TEACHERS, SAMPLINGS, st.integers(0, 5), TOOLS)
def test_the_bytes_and_the_key_are_those_of_the_whole_body(messages, teacher, sampling, seed, tools):
    question = Question("p", tuple(messages), seed, tools)
    body = request_body(question, teacher, sampling)
    assert request_bytes(question, teacher, sampling) == canonical(body)
    asked = body if teacher.url else {"model": teacher.model, "messages": body["messages"]}
    assert question_key(b"k" * 32, question, teacher, sampling) == exchange_key(
        b"k" * 32,
        path="/chat/completions",
        endpoint=teacher.endpoint,
        revision=teacher.revision,
        body=asked,
        sample_index=seed,
    )


@given(st.floats(0, 2), st.floats(0, 1))
def test_numbers_are_sent_as_they_stand_in_the_recipe(temperature, top_p):
    question, sampling = Question("p", (Message("user", "hi"),)), Sampling(temperature, top_p, 5)
    sent = orjson.loads(request_bytes(question, Teacher("m", "", "", lambda: ""), sampling))
    assert (sent["temperature"], sent["top_p"]) == (temperature, top_p)
