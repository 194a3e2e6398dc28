"""Random bytes and mutated requests over real sockets: never a 500, nothing dies or stays open."""

import asyncio
import contextlib
import json
import socket
import time

import pytest
from gate import SECRET, gate, tree_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HELLO = [{"role": "user", "content": "hello"}]
AT_ONCE = 3
ROUTES = "chat/completions completions embeddings responses models models/whole terms/acceptance ../x".split()
FIELDS = (
    "model messages prompt input stream stream_options max_tokens max_completion_tokens max_output_tokens n "
    "best_of echo logprobs top_logprobs logit_bias tools tool_choice response_format text reasoning include "
    "content type odd"
).split()
WORDS = ["whole", "slowly", "cut", "user", "text", "image_url", "hello", "", "\x00", "\u2028<script>"]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.just(HELLO),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FIELDS, "role", "function", "strict", "0"]), inner, max_size=4)
    ),
    max_leaves=8,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6).map(
    lambda more: json.dumps(
        {"model": "whole", "messages": HELLO, "prompt": "a", "input": "a", **more}
    ).encode()
)
lines = st.sampled_from(
    [
        b"transfer-encoding: chunked",
        b"content-length: 5",
        b"expect: 100-continue",
        b"connection: close",
        b"connection: upgrade\r\nupgrade: websocket",
        b"connection: upgrade\r\nupgrade: h2c",
        b"authorization: Bearer other",
        b"authorization: Basic \xff\xfe",
        b"accept-language: \xe9\xff",
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"tracestate: a=b\tc",
        b"x: " + b"y" * 5000,
    ]
)
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=6)), max_size=3
)  # where, how many bytes go, and what comes in their place


@st.composite
def requests(draw) -> bytes:
    """With KEY where the key stands."""
    body = draw(bodies | st.binary(max_size=40))
    method = draw(st.sampled_from("POST POST POST POST GET HEAD PUT OPTIONS CONNECT".split()))
    path = draw(st.sampled_from(["/v1/", "/v1/", "/v1/", "//v1/", "http://x/v1/", "/v1%2F", "/admin/"]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0", "2.0"]))
    head = [f"{method} {path}{draw(st.sampled_from(ROUTES))} HTTP/{version}".encode(), b"host: x"]
    head += [
        b"authorization: Bearer KEY",
        b"content-length: %d" % len(body),
        *draw(st.lists(lines, max_size=2)),
    ]
    raw = b"\r\n".join([*head, b"", body])
    for where, gone, come in draw(edits):
        at = int(where * len(raw))
        raw = raw[:at] + come + raw[at + gone :]
    return raw


sent = st.tuples(
    st.lists(requests() | st.binary(max_size=200), min_size=1, max_size=3).map(b"".join), st.floats(0, 1)
)


@pytest.fixture(scope="module")
def served(tmp_path_factory, behind):
    folder = tmp_path_factory.mktemp("gateway")
    tree = tree_of(folder, behind.url, "whole", "slowly", "cut")
    tree["server"] |= {"head_seconds": 0.5, "keep_alive_seconds": 1.0}
    tree["tiers"]["default"]["limits"] = {"concurrent": AT_ONCE}
    tree["terms"] = {"version": "1", "document": str(folder / "terms.txt"), "training": "forbidden"}
    (folder / "terms.txt").write_text("Be kind.")
    with gate(folder, tree) as made:
        yield made


def talk(served, raw: bytes, cut: float) -> bytes:
    """All that is answered to it, sent in two pieces and then no more."""
    host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
    raw = raw.replace(b"KEY", served.key.encode())
    at = int(cut * len(raw))
    said = b""
    with (
        socket.create_connection((host, int(port)), timeout=10) as client,
        contextlib.suppress(ConnectionError),
    ):
        client.sendall(raw[:at])
        client.sendall(raw[at:])
        client.settimeout(0.15)
        with contextlib.suppress(TimeoutError):
            while part := client.recv(1 << 16):
                said += part
    return said


def check(served, raw: bytes, cut: float) -> None:
    said = talk(served, raw, cut)
    assert b"HTTP/1.1 500" not in said
    assert b'"code":"internal"' not in said
    assert served.process.poll() is None
    assert '"fault"' not in (served.folder / "log").read_text()


def nothing_is_open(served) -> bool:
    with served.client() as client:
        url = served.url.removesuffix("/v1") + "/metrics"
        text = client.get(url, headers={"authorization": f"Bearer {SECRET}"}).text
    return "stillhouse_guard_in_flight 0.0" in text


LOOSE = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}


@pytest.mark.parametrize("examples", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nothing_that_is_sent_makes_it_fail(served, examples):
    settings(max_examples=examples, **LOOSE)(given(sent)(lambda each: check(served, *each)))()
    deadline = time.monotonic() + 10
    while not nothing_is_open(served) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert nothing_is_open(served)

    async def ask_at_once() -> list[int]:
        import openai

        async with openai.AsyncOpenAI(base_url=served.url, api_key=served.key, max_retries=0) as client:
            asking = [client.chat.completions.create(model="whole", messages=HELLO) for _ in range(AT_ONCE)]
            return [len(answer.choices) for answer in await asyncio.gather(*asking)]

    assert asyncio.run(ask_at_once()) == [1] * AT_ONCE, "nothing is counted as in flight"
