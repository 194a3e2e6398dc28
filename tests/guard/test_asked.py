"""What a request can take at most is never less than what it takes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stillhouse.guard.asked import Denied, read
from stillhouse.guard.config import Model

GPT2 = Path(__file__).parents[3] / "shared/data/tokenizers/gpt2.json"
MODEL = Model.model_validate(
    {"name": "m", "upstreams": [{"url": "http://localhost/v1"}], "max_output_tokens": 500}
)
KNOWN = MODEL.model_copy(update={"context_tokens": 2048})


def asked(body, route="chat/completions", model=MODEL):
    return read(route, body, len(json.dumps(body).encode()), model)


def chat(**more):
    return {"model": "m", "messages": [{"role": "user", "content": "hello"}], **more}


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_no_prompt_has_more_tokens_than_its_bound(texts):
    """By the hardest tokenizer there is: one token for every byte, and 16 around each message."""
    body = chat(messages=[{"role": "user", "content": text} for text in texts])
    tokens = sum(len(text.encode("utf-8", "surrogatepass")) + 16 for text in texts) + 16
    assert asked(body).input_tokens >= tokens


@pytest.mark.skipif(not GPT2.is_file(), reason="../shared/data is absent")
def test_a_real_tokenizer_stays_under_the_bound():
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(GPT2))
    for text in ("plain words " * 50, "漢字かな交じり文" * 30, "\x00\x01\u200b🏴󠁧󠁢󠁥󠁮󠁧󠁿" * 20, "   \n\t" * 40):
        assert asked(chat(messages=[{"role": "user", "content": text}])).input_tokens > len(
            tokenizer(text)["input_ids"]
        )


@pytest.mark.parametrize(
    ("more", "length", "set_length"),
    [
        ({}, 500, 500),
        ({"max_tokens": None}, 500, 500),
        ({"max_tokens": 20}, 20, None),
        ({"max_completion_tokens": 30}, 30, None),
        ({"max_tokens": 20, "max_completion_tokens": 30}, 30, None),
        ({"max_tokens": 20, "n": 3}, 60, None),
    ],
)
def test_an_answer_is_bounded_over_all_its_choices(more, length, set_length):
    found = asked(chat(**more))
    assert (found.output_tokens, found.set_length) == (length, set_length)


def test_answers_that_are_not_shown_and_wrong_predictions_are_bounded_too():
    assert asked(chat(max_tokens=20, n=2, best_of=4)).output_tokens == 80
    said = chat(max_tokens=20, prediction={"type": "content", "content": "a" * 1000})
    assert asked(said).output_tokens >= 1020


def test_prompts_of_a_completion_are_answered_each():
    body = {"model": "m", "prompt": ["a", "b", "c"], "max_tokens": 10, "n": 2, "best_of": 4}
    assert asked(body, "completions").output_tokens == 120
    ids = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 10}
    assert asked(ids, "completions").output_tokens == 10


def test_an_embedding_has_no_output():
    assert asked({"model": "m", "input": ["a", "b"]}, "embeddings").output_tokens == 0


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": -1},
        {"max_tokens": True},
        {"max_tokens": 1.5},
        {"max_tokens": "9"},
        {"max_tokens": 0},
        {"max_tokens": 501},
        {"max_tokens": 1 << 70},
        {"n": 0},
        {"n": -3},
        {"n": False},
        {"stream": "yes"},
        {"stream_options": "x", "stream": True},
        {"messages": []},
        {"messages": None},
        {"messages": {"role": "user"}},
    ],
)
def test_what_would_make_a_reservation_wrong_is_refused(more):
    with pytest.raises(Denied) as caught:
        asked(chat(**more))
    assert caught.value.status == 400
    assert caught.value.param in (*more, None)


DATA = "data:image/png;base64,AAAA"
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA}}]}]


def user(*content):
    return [{"role": "user", "content": list(content)}]


def returned(*output):
    return [{"type": "function_call_output", "call_id": "c", "output": list(output)}]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("chat/completions", {"model": "m", "messages": PICTURE}),
        ("chat/completions", {"model": "m", "messages": user({"image_url": DATA})}),
        ("chat/completions", {"model": "m", "messages": user({"text": "a", "image_url": DATA})}),
        ("chat/completions", {"model": "m", "messages": user({"type": "text", "text": "a", "kind": "u"})}),
        ("chat/completions", {"model": "m", "messages": [{"role": "assistant", "audio": {"data": "AAAA"}}]}),
        ("embeddings", {"model": "m", "messages": PICTURE}),
        ("responses", {"model": "m", "input": returned({"type": "input_image", "image_url": DATA})}),
        ("responses", {"model": "m", "input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
    ],
)
def test_what_lies_elsewhere_is_bounded_by_the_context_or_refused(route, body):
    with pytest.raises(Denied) as caught:
        asked(body, route)
    assert caught.value.code == "prompt_not_bounded"
    assert asked(body, route, KNOWN).input_tokens == 2048


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", " HTTP://a", "file:///etc/passwd", "//a/b", "/etc/x"]
)
def test_a_url_that_the_server_would_fetch_is_refused(url):
    for route, body in (
        ("chat/completions", {"messages": user({"type": "image_url", "image_url": {"url": url}})}),
        ("chat/completions", {"messages": user({"image_url": url})}),
        (
            "chat/completions",
            {"messages": user({"type": "text", "text": "a", "kind": "u", "audio_url": url})},
        ),
        ("embeddings", {"messages": user({"type": "video_url", "video_url": {"url": url}})}),
        ("responses", {"input": user({"type": "input_file", "file_url": url})}),
        ("responses", {"input": returned({"type": "input_image", "image_url": url})}),
        ("responses", {"input": [{"type": "computer_call_output", "output": {"image_url": url}}]}),
    ):
        with pytest.raises(Denied) as caught:
            asked(body, route, KNOWN)
        assert (caught.value.status, caught.value.code) == (400, "url_refused")


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("responses", {"input": "go on", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"input": "go on", "conversation": {"id": "c"}}, "conversation"),
        ("responses", {"input": "go on", "conversation": "c"}, "conversation"),
        ("responses", {"input": "go on", "prompt": {"id": "p"}}, "prompt"),
        ("responses", {"input": "go on", "background": True}, "background"),
        ("responses", {"input": "go on", "service_tier": "priority"}, "service_tier"),
        ("responses", {"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ("responses", {"input": [{"id": "x"}]}, "input"),
        ("responses", {"input": [{"type": "image_generation_call", "id": "ig_1"}]}, "input"),
        ("responses", {"input": user({"type": "input_file", "file_id": "f"})}, "input"),
        ("responses", {"input": returned({"type": "input_image", "file_id": "f"})}, "input"),
        *(
            ("responses", {"input": "find it", "tools": [{"type": "function"}, {"type": kind}]}, "tools")
            for kind in ("mcp", "file_search", "web_search", "code_interpreter")
        ),
        ("chat/completions", chat(web_search_options={"user_location": None}), "web_search_options"),
        ("chat/completions", chat(web_search_options={}), "web_search_options"),
        ("chat/completions", chat(search_parameters={"mode": "on"}), "search_parameters"),
        ("chat/completions", chat(plugins=[{"id": "web"}]), "plugins"),
        ("chat/completions", chat(data_sources=[{"type": "azure_search"}]), "data_sources"),
        ("chat/completions", chat(models=["dear/one"]), "models"),
        ("chat/completions", chat(fallbacks=["dear"]), "fallbacks"),
        ("chat/completions", chat(priority=-1), "priority"),
        ("chat/completions", chat(tools=[{"google_search": {}}]), "tools"),
        ("chat/completions", chat(service_tier="flex"), "service_tier"),
        ("chat/completions", chat(messages=user({"type": "file", "file": {"file_id": "f"}})), "messages"),
        ("chat/completions", chat(messages=[{"role": "assistant", "audio": {"id": "a"}}]), "messages"),
        *(
            ("chat/completions", chat(messages=user({"type": "image_url", "uuid": "u", **more})), "messages")
            for more in ({"image_url": None}, {"image_url": {"url": DATA}})
        ),
    ],
)
def test_what_is_of_the_account_that_all_share_is_refused(route, body, param):
    with pytest.raises(Denied) as caught:
        asked(body, route, KNOWN)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "not_offered", param)


def test_what_is_of_the_request_alone_is_taken():
    asked(chat(plugins=[], models=None, priority=0, tools=[{"name": "f"}, {"function": {"name": "f"}}]))
    asked(chat(service_tier="auto", tools=[{"type": "function", "function": {"name": "f"}}]))
    asked({"input": [{"role": "user", "content": "a"}], "background": False, "store": True}, "responses")


def test_text_that_speaks_of_urls_is_text():
    said = {"type": "text", "text": "see http://a/b.png"}
    cited = {**said, "type": "output_text", "annotations": [{"type": "url_citation", "url": "http://a"}]}
    for content in (said, {"text": "http://a"}, {**said, "cache_control": {"type": "ephemeral"}}, cited):
        assert asked(chat(messages=user(content))).input_tokens < 500
    picture = {"type": "input_file", "filename": "a:b.pdf", "file_data": DATA}
    assert asked({"input": user(picture, cited)}, "responses", KNOWN).input_tokens == 2048


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["messages", "prompt", "input", "max_tokens", "n", "best_of", "stream", "stream_options", "tools"]


@given(
    st.sampled_from(["chat/completions", "completions", "embeddings", "responses"]),
    st.dictionaries(st.sampled_from(FIELDS), anything),
)
def test_no_body_makes_it_fall_over(route, body):
    try:
        found = read(route, body, 100, MODEL)
    except Denied as denied:
        assert denied.status == 400  # noqa: PT017 - most bodies are fine, some are not
    else:
        assert found.input_tokens > 0
        assert found.output_tokens >= 0
        assert found.choices >= 1
