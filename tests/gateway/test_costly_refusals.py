"""What is refused after it was read is not free, and what is too broad is not walked."""

import json

import pytest
from gate import gate, tree_of

from stillhouse.guard import breadth
from stillhouse.guard.asked import Denied

HELLO = [{"role": "user", "content": "hello"}]
GOOD = {"model": "whole", "messages": HELLO}
NESTED = json.dumps(GOOD | {"odd": 0}).replace("0", "[" * 500 + "]" * 500).encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory, behind):
    folder = tmp_path_factory.mktemp("gateway")
    tree = tree_of(folder, behind.url, "whole")
    tree["tiers"]["default"]["limits"] = {"requests_per_day": 3, "output_tokens_per_day": 300}
    with gate(folder, tree) as running:
        yield running


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[]", 400, "invalid_json"),
        (NESTED, 400, "invalid_json"),
        (json.dumps(GOOD | {"model": "another"}).encode(), 404, "model_not_found"),
        (json.dumps(GOOD | {"n": 99}).encode(), 400, "n_too_large"),
        (json.dumps(GOOD | {"messages": [{}] * 8_193}).encode(), 400, "too_many_parts"),
        (json.dumps(GOOD | {"n_predict": 1}).encode(), 400, "another_length"),
    ],
)
def test_what_is_refused_once_it_was_read_counts_as_a_request(made, body, status, code):
    _, key = made.new_key()
    with made.client(key) as client:
        for _ in range(2):
            said = client.post("/chat/completions", content=body)
            assert (said.status_code, said.json()["error"]["code"]) == (status, code)
        said = client.post("/chat/completions", json=GOOD | {"max_tokens": 20})
        assert said.status_code == 200
        assert said.headers["x-ratelimit-remaining-requests"] == "0"
        assert said.headers["x-ratelimit-remaining-output-tokens"] == "280"
        said = client.post("/chat/completions", content=body)
        assert (said.status_code, said.json()["error"]["code"]) == (429, "rate_limit_exceeded")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({f"field {n}": 0 for n in range(257)}, None),
        ({"tools": [{}] * 1_025}, "tools"),
        ({"messages": [{}] * 8_193}, "messages"),
        ({"messages": [1] + [{}] * 8_192}, "messages"),
        ({"input": [{}] * 8_193}, "input"),
        ({"prompt": [True] * 8_193}, "prompt"),
        ({"messages": [{"role": "user", "content": [{}] * 32_768}]}, "messages"),
        ({"input": [{"output": {str(n): n for n in range(32_768)}}]}, "input"),
        ({"messages": [{str(n): n for n in range(32_769)}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["a"] * 100}] * 400}, "messages"),
    ],
)
def test_what_has_too_many_parts_is_refused(given, param):
    with pytest.raises(Denied) as refused:
        breadth.check(given)
    told = refused.value
    assert (told.status, told.code, told.param) == (400, "too_many_parts", param)


@pytest.mark.parametrize(
    "given",
    [
        {"messages": [{"role": "user", "content": "a"}] * 8_192, "tools": [{}] * 1_024},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 30_000}]},
        {"prompt": [1] * 500_000},
        {"input": [[1] * 500_000]},
        {"messages": None, "tools": 1, "input": "a" * 100_000, "prompt": []},
    ],
)
def test_what_is_long_and_not_broad_passes(given):
    breadth.check(given)
