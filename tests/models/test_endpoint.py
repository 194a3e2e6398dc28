import asyncio
from contextlib import suppress
from email.utils import formatdate

import orjson
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import EndpointError, UsageError
from stillhouse.models import endpoint as module
from stillhouse.models.endpoint import Endpoint, Failure, Reply, parse_chat, redact, retry_after
from stillhouse.records import Usage

KEY = "sk-proj-0123456789abcdefWXYZ"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
GOOD = {
    "model": "m-2026",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


def ask(handler, body=BODY, timeout=5.0, key_env=None):
    """One request to a real server whose answer `handler` gives."""

    async def run():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/v1/", key_env) as server:
                return await server.chat(orjson.dumps(body), timeout)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def ask_raw(answer, timeout=5.0):
    """One request to a socket that answers with these bytes and hangs up."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1") as client:
            return await client.chat(orjson.dumps(BODY), timeout)

    return asyncio.run(run())


def says(status, body, headers=None):
    async def handler(request):
        return web.json_response(body, status=status, headers=headers)

    return handler


def error(message, **fields):
    return {"error": {"message": message, **fields}}


def test_a_good_answer_comes_back_whole_and_read():
    async def handler(request):
        assert request.headers["User-Agent"].startswith("stillhouse/")
        assert "Cookie" not in request.headers
        assert await request.json() == BODY
        return web.json_response(GOOD, headers={"X-Request-Id": "r-1", "X-RateLimit-Remaining-Tokens": "7"})

    reply = ask(handler)
    assert isinstance(reply, Reply)
    assert orjson.loads(reply.raw) == GOOD
    assert reply.headers["x-request-id"] == "r-1"
    assert reply.headers["x-ratelimit-remaining-tokens"] == "7"
    assert (reply.completions[0].text, reply.completions[0].model) == ("yes", "m-2026")
    assert reply.completions[0].usage == Usage(3, 1)


@pytest.mark.parametrize(
    ("status", "body", "kind", "fatal", "sent"),
    [
        (401, error("bad key", code="invalid_api_key"), "auth", True, False),
        (403, error("no"), "auth", True, False),
        (404, error("no model m", code="model_not_found"), "not_found", True, False),
        (400, error("too long", code="context_length_exceeded"), "bad_request", False, False),
        (422, {"detail": [{"loc": ["n"], "msg": "bad"}]}, "bad_request", False, False),
        (413, error("too much"), "too_large", False, False),
        (429, error("slow down", type="requests"), "rate_limited", False, False),
        (
            429,
            error("You exceeded your current quota", type="x", code="insufficient_quota"),
            "quota",
            True,
            False,
        ),
        (429, error("pay", code="billing_hard_limit_reached"), "quota", True, False),
        (402, error("pay"), "quota", True, False),
        (500, error("boom"), "server", False, True),
        (503, error("busy"), "server", False, True),
        (307, {}, "not_found", True, False),
    ],
)
def test_a_refusal_is_told_by_its_kind(status, body, kind, fatal, sent):
    failure = ask(says(status, body))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.status, failure.fatal, failure.sent) == (kind, status, fatal, sent)
    if "error" in body:
        assert body["error"]["message"] in failure.detail


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "9", "Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After": formatdate(1_700_000_090, usegmt=True), "Date": formatdate(1_700_000_000)}, 90),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_the_server_asks_for(headers, seconds):
    failure = ask(says(429, error("slow"), headers))
    assert failure.retry_after == (seconds if seconds is None else pytest.approx(seconds))


def test_retry_after_is_never_negative_or_endless():
    past = formatdate(1_700_000_000, usegmt=True)
    assert retry_after({"retry-after": past}, now=1_800_000_000) == 0
    assert retry_after({"retry-after": past}) is None
    assert retry_after({"retry-after": "-5"}) == 0
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after": "inf"}) is None


def test_a_server_that_hangs_times_out_and_may_have_billed():
    async def handler(request):
        await asyncio.Event().wait()

    failure = ask(handler, timeout=0.3)
    assert (failure.kind, failure.sent, failure.fatal) == ("timeout", True, False)


def test_nothing_listens():
    async def run():
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with Endpoint(f"http://127.0.0.1:{port}/v1") as client:
            return await client.chat(orjson.dumps(BODY), 5)

    failure = asyncio.run(run())
    assert (failure.kind, failure.sent) == ("unreachable", False)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [', "cut"),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cho', "cut"),
        (b"", "cut"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a": 1}x', "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe\xfd\xfc", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "malformed"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "cut"),
    ],
    ids=["short body", "short chunk", "no answer", "not JSON", "not UTF-8", "empty", "not HTTP"],
)
def test_broken_answers(answer, kind):
    failure = ask_raw(answer)
    assert isinstance(failure, Failure)
    assert failure.sent
    assert failure.kind == kind


def test_an_endless_body_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "MAX_REPLY_BYTES", 100_000)
    failure = ask(says(200, {"x": "y" * 300_000}))
    assert (failure.kind, failure.sent) == ("too_large", True)


def test_json_of_another_shape_and_errors_inside_a_200():
    failure = ask(says(200, {"object": "list", "data": []}))
    assert failure.kind == "malformed"
    assert "no choices" in failure.detail
    failure = ask(says(200, error("upstream is busy", code=429)))
    assert (failure.kind, failure.fatal) == ("rate_limited", False)


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)

    async def handler(request):
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        return web.json_response(error(f"wrong key {KEY} or {KEY[:8]}****WXYZ"), status=401)

    failure = ask(handler, key_env="SOME_KEY")
    assert failure.kind == "auth"
    for part in (KEY, KEY[:8], "WXYZ"):
        assert part not in failure.detail
    assert KEY not in repr(Endpoint("http://localhost/v1", "SOME_KEY"))
    assert "secret" not in redact("Bearer secret-value", "")


def test_bad_settings_stop_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UsageError) as caught:
        Endpoint("http://localhost/v1", "NO_KEY")
    assert "NO_KEY" in caught.value.what
    for url in ("localhost:8000", "ftp://x/v1", "http://", "http://user:pw@host/v1", "http://h/v1?key=abc"):
        with pytest.raises(UsageError) as caught:
            Endpoint(url)
        assert "pw" not in f"{caught.value.what}{caught.value.why}{caught.value.mend}".replace("http", "")


def test_listing_models():
    async def run(payload):
        async def handler(request):
            return web.json_response(payload)

        app = web.Application()
        app.router.add_get("/v1/models", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/v1") as server:
                return await server.models()
        finally:
            await runner.cleanup()

    assert asyncio.run(run({"data": [{"id": "a"}, {"id": "b"}]})) == ["a", "b"]
    with pytest.raises(EndpointError):
        asyncio.run(run({"models": []}))


# ---------------------------------------------------------------- reading a 200


def read(**message):
    return parse_chat(orjson.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}))[0]


def test_messages_in_all_their_shapes():
    assert read(content=None, refusal="I will not").refusal == "I will not"
    assert read(content=None).text == ""
    assert read(content="a", reasoning_content="because").reasoning == "because"
    assert read(content="a", reasoning="since").reasoning == "since"
    assert read(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]).text == "ab"
    assert read(content="a").usage == Usage(None, None)


def test_finish_reasons_logprobs_and_order():
    def choice(index, reason, **more):
        return {"index": index, "message": {"content": str(index)}, "finish_reason": reason} | more

    scored = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]}
    choices = [choice(2, "eos"), choice(0, "length", logprobs=scored), choice(1, "function_call")]
    body = {"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": True}}
    found = parse_chat(orjson.dumps(body))
    assert [c.text for c in found] == ["0", "1", "2"]
    assert [c.finish_reason for c in found] == ["length", "tool_calls", "unknown"]
    assert [c.usage for c in found] == [Usage(1, None), Usage(), Usage()]
    for odd in ({"content": [{"token": "a"}, None]}, {"content": "a"}, [], 3, {"content": None}):
        assert parse_chat(orjson.dumps({"choices": [choice(0, "stop", logprobs=odd)]}))[0].text == "0"
    with pytest.raises(ValueError, match="index"):
        parse_chat(orjson.dumps({"choices": [choice(0, "stop"), choice(0, "stop")]}))


scalars = (
    st.none() | st.booleans() | st.integers(-3, 2**53) | st.floats(allow_nan=False) | st.text(max_size=5)
)
names = st.sampled_from(
    "choices message content index finish_reason logprobs usage refusal token logprob type text top_logprobs "
    "prompt_tokens model reasoning".split()
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=5), max_leaves=12
)
choices = st.fixed_dictionaries(
    {"message": st.dictionaries(names, values, max_size=3) | values},
    optional={"index": values, "logprobs": values, "finish_reason": values},
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=50) | values.map(lambda v: orjson.dumps(v, option=orjson.OPT_NON_STR_KEYS)))
def test_anything_is_read_or_refused_by_value_error(raw):
    with suppress(ValueError):
        assert parse_chat(raw)


@settings(max_examples=300, deadline=None)
@given(st.lists(choices, min_size=1, max_size=3), values)
def test_nearly_right_answers_are_read_or_refused_by_value_error(found, usage):
    with suppress(ValueError):
        for completion in parse_chat(orjson.dumps({"choices": found, "usage": usage})):
            assert isinstance(completion.text, str)
            assert completion.usage.prompt_tokens is None or completion.usage.prompt_tokens >= 0
