"""Requests that were written to make the gateway fail, or to get more than was reserved."""

import pytest
from behind import Behind
from gate import gate, tree_of

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def behind():
    with Behind() as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory, behind):
    folder = tmp_path_factory.mktemp("gateway")
    tree = tree_of(folder, behind.url, "whole", "slowly", "long-lines")
    tree["server"] |= {"head_seconds": 1.0, "keep_alive_seconds": 1.0}
    tree["tiers"]["default"]["limits"] = {"output_tokens_per_day": 10**6, "concurrent": 100}
    with gate(folder, tree) as made:
        yield made


def left(served) -> int:
    """Tokens of answers, as the headers of a small request tell them."""
    with served.client() as client:
        said = client.post("/chat/completions", json={"model": "whole", "messages": HELLO, "max_tokens": 20})
    return int(said.headers["x-ratelimit-remaining-output-tokens"])


def deep(levels: int) -> bytes:
    return (
        b'{"model":"whole","messages":[{"role":"user","content":"a"}],"odd":'
        + (b"[" * levels + b"]" * levels)
        + b"}"
    )


@pytest.mark.parametrize("levels", [252, 253, 254, 1000, 100_000])
def test_what_is_nested_too_deeply_to_be_sent_on_is_refused_and_not_charged(served, levels):
    before = left(served)
    with served.client() as client:
        said = client.post("/chat/completions", content=deep(levels))
    if levels < 254:
        assert said.status_code == 200
    else:
        assert (said.status_code, said.json()["error"]["code"]) == (400, "invalid_json")
        assert left(served) == before - 20


@pytest.mark.parametrize("kind", [[], {}, None, 1, [["text"]]])
@pytest.mark.parametrize("route", ["chat/completions", "responses"])
def test_a_part_whose_kind_is_no_word_counts_as_one_that_cannot_be_bounded(served, route, kind):
    parts = [{"role": "user", "content": [{"type": kind, "text": "a"}]}]
    field = "messages" if route == "chat/completions" else "input"
    with served.client() as client:
        said = client.post(f"/{route}", json={"model": "whole", field: parts})
    assert (said.status_code, said.json()["error"]["code"]) == (400, "prompt_not_bounded")


@pytest.mark.parametrize("name", ["n_predict", "num_predict", "n_cmpl", "max_new_tokens"])
def test_a_length_by_another_servers_name_is_refused(served, behind, name):
    """llama.cpp lets its own `n_predict` overrule `max_tokens`, -1 for no end."""
    with served.client() as client:
        body = {"model": "whole", "messages": HELLO, "max_tokens": 1, name: -1}
        said = client.post("/chat/completions", json=body)
    assert (said.status_code, said.json()["error"]["code"]) == (400, "another_length")


def test_no_tokens_at_all_is_no_way_to_have_all_of_them(served):
    """Ollama takes 0 for no end."""
    with served.client() as client:
        said = client.post("/chat/completions", json={"model": "whole", "messages": HELLO, "max_tokens": 0})
        assert (said.status_code, said.json()["error"]["param"]) == (400, "max_tokens")
        body = {"model": "whole", "prompt": "scored, not continued", "max_tokens": 0}
        said = client.post("/completions", json=body)
        assert said.status_code == 200
