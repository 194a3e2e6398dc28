"""What an answer loses: log-probabilities beyond the cap, and reasoning, whole or split over events."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard.answers import TAGS, Cut, Filter

CAP = Filter("cap", told=2, likeliest=2, digits=2)
STRIP = Filter(reasoning=True, texts=1)


def token(said: str, logprob: float, *rivals: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": name, "logprob": value, "bytes": None} for name, value in rivals]
    return {"token": said, "logprob": logprob, "bytes": None, "top_logprobs": top}


def whole(message: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, **more}], "usage": {}}


def event(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def streamed(cut: Cut, pieces: list[str]) -> str:
    """What a client puts together of a text that came in these pieces."""
    events = [event({"role": "assistant", "content": ""}), *(event({"content": piece}) for piece in pieces)]
    said = ""
    for each in [*events, event({}, "stop")]:
        if cut.concerns(json.dumps(each).encode()):
            cut.apply(each)
        said += each["choices"][0]["delta"].get("content") or ""
    return said


def test_log_probabilities_are_cut_and_rounded() -> None:
    answer = whole(
        {"content": "a"},
        logprobs={"content": [token("a", -0.1234, ("a", -0.1234), ("b", -2.3456), ("c", -4.0))]},
    )
    cut = Cut(CAP)
    assert cut.apply(answer)
    said = answer["choices"][0]["logprobs"]["content"][0]
    assert said["logprob"] == -0.12
    assert [(each["token"], each["logprob"]) for each in said["top_logprobs"]] == [("a", -0.12), ("b", -2.35)]
    assert cut.changed == {"logprobs:rounded"}


def test_a_token_that_is_not_among_the_likeliest_tells_nothing_of_itself() -> None:
    # As vLLM orders them: the written token first, whatever its place
    rare = token("z", -11.5, ("z", -11.5), ("a", -0.5), ("b", -1.5))
    answer = whole({"content": "z"}, logprobs={"content": [rare]})
    cut = Cut(CAP)
    cut.apply(answer)
    assert rare["logprob"] == -9999.0
    assert [each["token"] for each in rare["top_logprobs"]] == ["a", "b"]
    assert "logprobs:masked" in cut.changed


def test_without_alternatives_only_a_token_that_must_be_likely_is_told() -> None:
    likely, unlikely = token("a", -1.0), token("b", -1.2)
    Cut(CAP).apply(whole({}, logprobs={"content": [likely, unlikely]}))
    # exp(-1.0) is above one third, so at most one token is likelier
    assert (likely["logprob"], unlikely["logprob"]) == (-1.0, -9999.0)


def test_the_older_form_has_columns() -> None:
    said = {
        "tokens": ["a", "z"],
        "token_logprobs": [-0.1234, -11.5],
        "top_logprobs": [{"a": -0.1234, "b": -2.0}, {"z": -11.5, "a": -0.5, "b": -1.5}],
    }
    answer = {"choices": [{"index": 0, "text": "az", "logprobs": said, "finish_reason": "stop"}]}
    Cut(CAP).apply(answer)
    assert said["token_logprobs"] == [-0.12, -9999.0]
    assert said["top_logprobs"] == [{"a": -0.12, "b": -2.0}, {"a": -0.5, "b": -1.5}]


def test_what_was_not_asked_for_is_removed() -> None:
    answer = whole({"content": "a"}, logprobs={"content": [token("a", -0.1)]}, hidden_states=[0.1])
    answer["prompt_logprobs"] = [None]
    cut = Cut(Filter("remove"))
    assert cut.apply(answer)
    assert answer == whole({"content": "a"}, logprobs=None)
    assert cut.changed == {"logprobs:removed"}


def test_very_unlikely_and_none_stay_what_they_are() -> None:
    said = {"token_logprobs": [None, -9999.0], "top_logprobs": [None, {"a": -1.0, "b": None}]}
    Cut(CAP).apply({"choices": [{"text": "", "logprobs": said}]})
    assert said == {"token_logprobs": [None, -9999.0], "top_logprobs": [None, {"a": -1.0, "b": None}]}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_fields_go(name: str) -> None:
    answer = whole({"content": "4", name: "two and two"}, logprobs={"content": [token("two", -0.1)]})
    cut = Cut(Filter(reasoning=True, texts=1))
    assert cut.concerns(json.dumps(answer).encode())
    assert cut.apply(answer)
    # The log-probabilities would spell the reasoning
    assert answer["choices"][0] == {"index": 0, "message": {"content": "4"}, "logprobs": None}
    assert cut.changed == {"reasoning:stripped", "logprobs:removed"}


def test_streamed_reasoning_goes_event_by_event() -> None:
    cut = Cut(STRIP)
    first, second = event({"reasoning_content": "two"}), event({"content": "4"})
    assert cut.apply(first)
    assert first["choices"][0]["delta"] == {}
    assert not cut.apply(second)
    assert not cut.concerns(b'{"choices":[{"delta":{"content":" apples"}}]}')


def test_parts_of_reasoning_go() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}]
    answer = whole({"content": parts})
    assert Cut(STRIP).apply(answer)
    assert answer["choices"][0]["message"]["content"] == [{"type": "text", "text": "4"}]


def test_reasoning_items_are_emptied_and_keep_their_place() -> None:
    reasoning = {"type": "reasoning", "id": "r1", "summary": [{"text": "hm"}], "encrypted_content": "gAAA"}
    said = {"type": "message", "content": [{"type": "output_text", "text": "<think>a</think>4"}]}
    answer = {"object": "response", "reasoning": {"effort": "low"}, "output": [reasoning, said]}
    cut = Cut(Filter(reasoning=True))
    assert cut.apply(answer)
    assert reasoning == {"type": "reasoning", "id": "r1", "summary": [], "encrypted_content": None}
    assert said["content"] == [{"type": "output_text", "text": "4"}]
    assert answer["reasoning"] == {"effort": "low"}


def test_events_of_reasoning_are_emptied() -> None:
    cut = Cut(Filter(reasoning=True))
    for kind, field in (("reasoning_text.delta", "delta"), ("reasoning_summary_text.done", "text")):
        said = {"type": f"response.{kind}", field: "hm", "sequence_number": 3}
        assert cut.apply(said)
        assert said == {"type": f"response.{kind}", field: "", "sequence_number": 3}
    texts = []
    for piece in ("<thi", "nk>a</th", "ink>", "\n\n4"):
        said = {"type": "response.output_text.delta", "item_id": "m", "content_index": 0, "delta": piece}
        cut.apply(said)
        texts.append(said["delta"])
    assert texts == ["", "", "", "4"]


@pytest.mark.parametrize("kind", ["reasoning_text", "summary_text"])
def test_parts_of_reasoning_are_emptied_wherever_they_stand(kind: str) -> None:
    part = {"type": kind, "text": "hm"}
    message = {"type": "message", "content": [part]}
    for said in (
        {"type": "response.content_part.added", "part": part},
        {"type": "response.content_part.done", "part": part},
        {"type": "response.output_item.done", "item": message},
        {"type": "response.completed", "response": {"output": [message]}},
        {"object": "response", "output": [message]},
    ):
        answer, cut = copy.deepcopy(said), Cut(Filter(reasoning=True))
        assert cut.concerns(json.dumps(answer).encode())
        assert cut.apply(answer)
        assert json.dumps(answer) == json.dumps(said).replace("hm", "")
        assert cut.changed == {"reasoning:stripped"}


def test_what_model_and_server_said_to_each_other_is_taken_out() -> None:
    said = {"output": [], "input_messages": [{"a": 1}], "output_messages": [{"channel": "analysis"}]}
    for answer in (copy.deepcopy(said), {"type": "response.completed", "response": copy.deepcopy(said)}):
        cut = Cut(Filter(reasoning=True))
        assert cut.apply(answer)
        assert "messages" not in json.dumps(answer)
        assert cut.changed == {"reasoning:stripped"}


def test_a_text_whose_tag_the_template_opened_is_cut_when_it_is_whole() -> None:
    answer = whole({"content": "two and two\n</think>\n\n4"}, finish_reason="stop")
    cut = Cut(STRIP)
    assert cut.apply(answer)
    assert answer["choices"][0]["message"]["content"] == "4"
    assert cut.changed == {"reasoning:stripped"}


def test_reasoning_that_was_cut_short_shows_nothing() -> None:
    answer = whole({"content": "<think>two and"}, finish_reason="length")
    Cut(STRIP).apply(answer)
    assert answer["choices"][0]["message"]["content"] == ""


def test_the_start_of_a_tag_that_was_none_is_given_at_the_end() -> None:
    assert streamed(Cut(STRIP), ["<th"]) == "<th"
    assert streamed(Cut(STRIP), ["  ", "<", "b>bold"]) == "  <b>bold"


def test_each_of_several_texts_begins_for_itself() -> None:
    cut = Cut(Filter(reasoning=True, texts=2))
    events = [
        event({"content": "plain"}, index=0),
        event({"content": "<th"}, index=1),
        event({"content": "ink>a</think>4"}, index=1),
    ]
    for each in events:
        if cut.concerns(json.dumps(each).encode()):
            cut.apply(each)
    assert [each["choices"][0]["delta"]["content"] for each in events] == ["plain", "", "4"]


def in_pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


TEXT = st.text(alphabet="ab<>/think \n[]TK", max_size=20)


@given(st.sampled_from(TAGS), TEXT, TEXT, st.lists(st.integers(0, 60), max_size=12))
def test_no_way_of_splitting_lets_reasoning_through(
    tag: tuple[str, str], hidden: str, shown: str, cuts: list[int]
) -> None:
    begin, end = tag
    if end in hidden + end[:-1]:
        return
    cut = Cut(STRIP)
    assert streamed(cut, in_pieces(f"\n{begin}{hidden}{end}\n{shown}", cuts)) == shown.lstrip()
    assert cut.changed == {"reasoning:stripped"}


@given(TEXT, st.lists(st.integers(0, 60), max_size=12))
def test_a_text_without_a_leading_tag_comes_out_whole(text: str, cuts: list[int]) -> None:
    if any(text.lstrip().startswith(begin) for begin, _ in TAGS):
        return
    pieces = in_pieces(text, cuts)
    assert streamed(Cut(STRIP), pieces) == text


NAMES = st.sampled_from(
    "delta message content text logprobs top_logprobs token_logprobs logprob output item part type reasoning "
    "index finish_reason response summary".split()
)
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5)
OBJECTS = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
        max_leaves=20,
    ),
    max_size=5,
)
ANSWERS = OBJECTS | st.fixed_dictionaries({"choices": st.lists(OBJECTS, max_size=2)})
FILTERS = st.sampled_from([CAP, STRIP, Filter("remove", reasoning=True)])


@settings(max_examples=500)
@given(ANSWERS, FILTERS)
def test_no_answer_breaks_it_and_what_it_says_unchanged_is(answer: Any, filter: Filter) -> None:
    before = copy.deepcopy(answer)
    if not Cut(filter).apply(answer):
        assert repr(answer) == repr(before)
