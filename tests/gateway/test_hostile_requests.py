"""Requests that were written to make the gateway fail, or to get more than was reserved."""

import contextlib
import json
import socket
import time

import gate as gate_module
import pytest
from gate import gate, tree_of

from stillhouse.gateway.store.events import Events

HELLO = [{"role": "user", "content": "hello"}]


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


def connected(served) -> socket.socket:
    host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def request(served, model="whole", **more) -> bytes:
    body = json.dumps({"model": model, "messages": HELLO, **more}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def until(done, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(done())


def test_a_body_that_nobody_waits_for_does_not_keep_a_connection_open(served):
    """It was refused before its body was there; a byte now and then is no reason to wait on."""
    with connected(served) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert b" 401 " in client.recv(10_000)
        began = time.monotonic()
        client.settimeout(0.1)
        while not closed(client) and time.monotonic() - began < 5:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"x")
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * (1 << 20),
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 100_000,
        b"GET /" + b"y" * (1 << 20),
        b"POST /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
        + b"x: y\r\n" * 100_000,
    ],
)
def test_fields_without_end_are_not_held_in_memory(served, sent):
    with connected(served) as client:
        try:
            client.sendall(sent)
            said = client.recv(10_000)
        except ConnectionError:
            return
        assert not said or b" 400 " in said or b" 405 " in said or b" 404 " in said
        assert until(lambda: closed(client), 3)


def closed(client: socket.socket) -> bool:
    try:
        return not client.recv(10_000)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def endings(served, model: str) -> list[str]:
    kept = Events(served.config.store)
    try:
        return [event.ended for event in kept.newest(most=1000) if event.model == model]
    finally:
        kept.close()


def test_a_client_that_takes_nothing_is_let_go(served):
    """And its slowness is not laid at the server's door."""
    with connected(served) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request(served, "long-lines", stream=True))
        assert until(lambda: endings(served, "long-lines"))
    assert endings(served, "long-lines") == ["client_left"]


def test_a_client_that_vanishes_with_a_second_request_behind_the_first_is_noticed(served, behind):
    behind.left.clear()
    with connected(served) as client:
        client.sendall(request(served, "slowly", stream=True) + request(served))
        assert b" 200 " in client.recv(100)
    assert until(lambda: behind.left["slowly"], 0.8)


def test_requests_one_behind_the_other_are_answered_in_order(served):
    with connected(served) as client:
        client.sendall(request(served) + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        said = b""
        while part := client.recv(1 << 16):
            said += part
    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert said.endswith(b'{"status":"ok"}')


def test_connections_leave_files_for_what_answers_them(tmp_path, behind, monkeypatch):
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
    monkeypatch.setattr(gate_module, "SERVE", few + gate_module.SERVE)
    with gate(tmp_path, tree_of(tmp_path, behind.url, "whole")) as made, made.client() as client:
        body = {"model": "whole", "messages": HELLO}
        assert client.post("/chat/completions", json=body).status_code == 200
        idle = [connected(made) for _ in range(80)]
        refused = [each for each in idle[71:] if b"too_many_connections" in each.recv(10_000)]
        assert len(refused) == 9
        assert client.post("/chat/completions", json=body).status_code == 200
        for each in idle:
            each.close()


def test_beyond_the_most_connections_new_ones_are_refused_and_open_ones_go_on(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole")
    tree["server"] |= {"connections": 5}
    with gate(tmp_path, tree) as made:
        with made.client() as client:
            body = {"model": "whole", "messages": HELLO}
            assert client.post("/chat/completions", json=body).status_code == 200
            idle = [connected(made) for _ in range(4)]
            with connected(made) as more:
                said = more.recv(10_000)
                assert b" 503 " in said
                assert b"too_many_connections" in said
            assert client.post("/chat/completions", json=body).status_code == 200
            for each in idle:
                each.close()
        with made.client() as client:
            assert until(lambda: client.post("/chat/completions", json=body).status_code == 200)
