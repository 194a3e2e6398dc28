"""What clients see of a gateway that runs: the wire passed through, refusals, and what is counted."""

import asyncio
import json
import socket
import time

import openai
import pytest
from behind import PROMPT, WORDS
from gate import gate, tree_of

MODELS = (
    "whole status-400 status-404 status-429 status-500 status-503 status-401 no-json half close cut "
    "late-error no-end long-lines bad-utf8 silent-usage overrun slowly stall hang"
).split()
HELLO = [{"role": "user", "content": "hello"}]
IMPATIENT = {"first_byte_seconds": 1.0, "silent_seconds": 1.0}


@pytest.fixture(scope="module")
def served(tmp_path_factory, behind):
    folder = tmp_path_factory.mktemp("gateway")
    tree = tree_of(folder, behind.url, *MODELS)
    tree["models"] += [
        {"name": name, "max_output_tokens": 100, "upstreams": [{"url": behind.url, "model": of, **IMPATIENT}]}
        for name, of in (("impatient-hang", "hang"), ("impatient-stall", "stall"))
    ]
    dead = {"url": "http://127.0.0.1:9/v1", "connect_seconds": 1}
    tree["models"] += [
        {
            "name": "second",
            "upstreams": [dead, {"url": behind.url, "model": "whole"}],
            "max_output_tokens": 9,
        },
        {"name": "nobody", "upstreams": [dead]},
        {"name": "ill", "upstreams": [{"url": behind.url, "model": "status-503"}, {"url": behind.url}]},
    ]
    tree["server"] |= {"head_seconds": 1.0, "body_bytes": 1 << 20}
    with gate(folder, tree) as made:
        yield made


def ask(served, model, route="/chat/completions", **more):
    with served.client() as client:
        return client.post(route, json={"model": model, "messages": HELLO, **more})


def test_the_openai_client_makes_its_ordinary_calls(served):
    with openai.OpenAI(base_url=served.url, api_key=served.key, max_retries=0) as client:
        assert "whole" in [model.id for model in client.models.list()]
        assert client.models.retrieve("whole").id == "whole"
        chat = client.chat.completions.create(model="whole", messages=HELLO, max_tokens=50)
        assert chat.choices[0].message.content.split() == ["word"] * WORDS
        assert chat._request_id.startswith("req_")
        said = client.chat.completions.create(model="whole", messages=HELLO, stream=True)
        assert "".join(each.choices[0].delta.content for each in said).split()[:2] == ["w0", "w1"]
        told = list(
            client.chat.completions.create(
                model="whole", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        )
        assert told[-1].usage.completion_tokens == WORDS
        assert client.completions.create(model="whole", prompt="a").choices[0].text
        assert client.embeddings.create(model="whole", input="a", encoding_format="float").data[0].embedding
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("another")
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="status-429", messages=HELLO)
        assert caught.value.code == "odd"
    with (
        openai.OpenAI(base_url=served.url, api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="whole", messages=HELLO)


def test_unknown_fields_pass_both_ways(served, behind):
    behind.bodies.clear()
    said = ask(served, "whole", odd_field={"a": [1, None, "ü"]}, temperature=0.25, seed=7)
    assert behind.bodies[-1]["odd_field"] == {"a": [1, None, "ü"]}
    assert said.json()["odd"] == {"kept": [1, 2.5, None]}


def test_what_was_checked_is_what_is_sent(served, behind):
    """A field that stands twice is read by some servers at its first place and by others at its last."""
    raw = b'{"max_tokens":1000000,"model":"whole","messages":[{"role":"user","content":"a"}],"max_tokens":5}'
    with served.client() as client:
        assert client.post("/chat/completions", content=raw).status_code == 200
    assert behind.bodies[-1]["max_tokens"] == 5


@pytest.mark.parametrize("route", ["/chat/completions", "/completions"])
def test_a_stream_is_asked_to_tell_its_usage_at_its_end_and_nothing_else(served, behind, route):
    for options in ({}, {"include_usage": True}):
        options |= {"continuous_usage_stats": True}
        assert ask(served, "whole", route, prompt="a", stream=True, stream_options=options).status_code == 200
        assert behind.bodies[-1]["stream_options"] == {"include_usage": True}


def test_the_server_is_told_to_keep_no_answer(served, behind):
    with served.client() as client:
        client.post("/responses", json={"model": "whole", "input": "a"})
        client.post("/responses", json={"model": "whole", "input": "b", "store": True})
        client.post("/chat/completions", json={"model": "whole", "messages": HELLO, "store": True})
    assert [body["store"] for body in behind.bodies[-3:]] == [False, False, False]


def test_no_key_and_no_header_of_a_client_reaches_the_server(served, behind):
    with served.client() as client:
        client.post(
            "/chat/completions",
            json={"model": "whole", "messages": HELLO},
            headers={
                "x-forwarded-for": "1.2.3.4",
                "cookie": "a=b",
                "x-api-key": "mine",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            },
        )
    seen = behind.heads[-1]
    assert not {"authorization", "cookie", "x-api-key", "x-forwarded-for"} & set(seen)
    assert served.key not in json.dumps(seen)
    assert seen["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert seen["x-request-id"].startswith("req_")


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_errors_of_the_server_are_kept(served, status):
    said = ask(served, f"status-{status}")
    assert said.status_code == status
    assert said.json()["error"] == {"message": "as it says", "type": "theirs", "param": "x", "code": "odd"}


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("status-401", 502, "upstream_refused"),
        ("status-503", 503, "odd"),
        ("no-json", 502, "upstream_cut"),
        ("half", 502, "upstream_cut"),
        ("close", 503, "upstream_unreachable"),
        ("nobody", 503, "upstream_unreachable"),
        ("impatient-hang", 504, "upstream_timeout"),
    ],
)
def test_what_goes_wrong_before_the_first_byte_has_a_status(served, model, status, code):
    said = ask(served, model)
    assert (said.status_code, said.json()["error"]["code"]) == (status, code)


def test_a_customer_pays_nothing_where_the_server_refuses_the_gateway(served):
    _, key = served.new_key()
    with served.client(key) as client:

        def left(model):
            said = client.post("/chat/completions", json={"model": model, "messages": HELLO})
            return int(said.headers.get("x-ratelimit-remaining-output-tokens", 0))

        before = left("whole")
        left("status-401")
        assert left("whole") == before - WORDS


def test_the_next_server_is_asked_when_one_is_gone(served, behind):
    behind.seen.clear()
    assert ask(served, "second").status_code == 200
    assert ask(served, "ill").status_code == 200
    assert behind.seen["status-503"] == 1
    assert ask(served, "ill").status_code == 200
    assert behind.seen["status-503"] == 1, "it rests"


@pytest.mark.parametrize("model", ["cut", "late-error", "no-end", "impatient-stall"])
def test_a_stream_that_breaks_off_says_so(served, model):
    said = ask(served, model, stream=True)
    assert said.status_code == 200
    assert b"[DONE]" not in said.content
    last = said.content.decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_cut"


def test_long_lines_pass_as_they_are_and_broken_text_does_not_pass_unread(served):
    said = ask(served, "long-lines", stream=True)
    assert said.content.count(b"y" * (1 << 20)) == WORDS
    assert said.content.endswith(b"data: [DONE]\n\n")
    broken = ask(served, "bad-utf8", stream=True).content
    assert b"\xff\xfe" not in broken
    assert b"upstream_cut" in broken


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"model":"whole"', 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b'{"messages":[{"role":"user","content":"a"}]}', 404, "model_not_found"),
        (b'{"model":["whole"],"messages":[{"role":"user","content":"a"}]}', 404, "model_not_found"),
        (b'{"model":"whole","messages":[],"n":-1}', 400, "invalid_value"),
        (b" " * (1 << 20) + b"{}", 413, "request_too_large"),
    ],
)
def test_what_cannot_be_read_is_refused(served, content, status, code):
    with served.client() as client:
        said = client.post("/chat/completions", content=content)
    assert (said.status_code, said.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fadmin", 404),
        ("GET", "/metrics", 401),
        ("GET", "/health", 200),
        ("GET", "/ready", 200),
    ],
)
def test_other_paths(served, method, path, status):
    with served.client() as client:
        assert client.request(method, served.url.removesuffix("/v1") + path).status_code == status


def test_a_request_that_comes_too_slowly_is_given_up(served):
    host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
    for sent in ("", "POST /v1", head, head + "content-length: 50\r\n\r\n{"):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(sent.encode())
            began = time.monotonic()
            said = client.recv(1000)
            assert not said or b" 408 " in said
            assert time.monotonic() - began < 5


def test_a_client_that_leaves_takes_the_request_along(served, behind):
    async def leave_in_the_middle():
        async with openai.AsyncOpenAI(base_url=served.url, api_key=served.key, max_retries=0) as client:
            stream = await client.chat.completions.create(model="slowly", messages=HELLO, stream=True)
            async for _ in stream:
                break
            await stream.close()

    async def leave_before_the_answer():
        async with openai.AsyncOpenAI(base_url=served.url, api_key=served.key, max_retries=0) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.chat.completions.create(model="hang", messages=HELLO)

    asyncio.run(leave_in_the_middle())
    asyncio.run(leave_before_the_answer())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not (behind.left["slowly"] and behind.left["hang"]):
        time.sleep(0.02)
    assert behind.left["slowly"] == 1
    assert behind.left["hang"] >= 1


def test_hundreds_of_connections_that_say_nothing_do_not_stop_the_others(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole")
    tree["server"] |= {"head_seconds": 30.0, "connections": 2000}
    with gate(tmp_path, tree) as made:
        host, port = made.url.removeprefix("http://").removesuffix("/v1").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(800)]
        try:
            assert ask(made, "whole").status_code == 200
        finally:
            for each in idle:
                each.close()


def test_tokens_are_counted_as_they_were_told(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole", "silent-usage", "overrun")
    tree["tiers"]["default"]["limits"] = {"output_tokens_per_minute": 1000}
    with gate(tmp_path, tree) as made:

        def left():
            headers = ask(made, "whole", max_tokens=WORDS).headers
            return int(headers["x-ratelimit-remaining-output-tokens"])

        before = left()
        assert left() == before - WORDS
        assert ask(made, "whole", stream=True).status_code == 200  # 100 reserved, 20 used
        assert left() == before - 3 * WORDS
        assert ask(made, "silent-usage", max_tokens=30).status_code == 200  # not told: what was reserved
        assert left() == before - 4 * WORDS - 30
        ask(made, "overrun")
        said = ask(made, "whole")
        assert said.status_code == 429
        assert said.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(said.headers["retry-after"]) <= 66
        assert said.headers["x-ratelimit-remaining-output-tokens"] == "0"


def test_drained_answers_end_and_new_settings_are_taken(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "slowly")
    with gate(tmp_path, tree) as made:
        assert ask(made, "whole").status_code == 404
        tree["models"].append({**tree["models"][0], "name": "whole"})
        made.reload()
        deadline = time.monotonic() + 10
        while ask(made, "whole").status_code == 404 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ask(made, "whole").status_code == 200
        made.tree = {"models": []}
        made.reload()
        assert ask(made, "whole").status_code == 200, "settings that cannot be served change nothing"
        with made.client() as client:
            body = {"model": "slowly", "messages": HELLO, "stream": True}
            with client.stream("POST", "/chat/completions", json=body) as said:
                parts = said.iter_bytes()
                first = next(parts)
                made.process.terminate()
                rest = b"".join(parts)
        assert (first + rest).endswith(b"data: [DONE]\n\n")
        assert made.process.wait(20) == 0


def test_usage_of_the_prompt_is_what_the_server_says(served):
    assert ask(served, "whole").json()["usage"]["prompt_tokens"] == PROMPT
