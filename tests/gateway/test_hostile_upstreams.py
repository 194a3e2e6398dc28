"""Servers that answer what no server should: the client gets an error in OpenAI's form, and fair accounts."""

import json
import time

import pytest
from gate import gate, tree_of
from raw_upstream import RawUpstream

from stillhouse.gateway.store.events import Events
from stillhouse.gateway.stream import Passing, usage_of
from stillhouse.gateway.upstream import LONGEST_REST, Behind
from stillhouse.guard.config import Upstream

HELLO = [{"role": "user", "content": "hello"}]
ANSWER = {"id": "c1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "well"}}]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
DEEP = b'{"choices":[{"index":0,"logprobs":{"content":[]},"x":' + b"[" * 600 + b"]" * 600 + b"}]}"


def reply(body: bytes, *headers: bytes, status: bytes = b"200 X") -> bytes:
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def whole(**more) -> bytes:
    return json.dumps({**ANSWER, "usage": USAGE, **more}).encode()


@pytest.fixture(scope="module")
def raw():
    with RawUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("gateway")
    tree = tree_of(folder, raw.url, "m")
    tree["models"][0]["max_output_tokens"] = 4096
    tree["models"][0]["upstreams"][0] |= {"first_byte_seconds": 2.0, "silent_seconds": 2.0}
    tree["tiers"]["default"]["limits"] = {"output_tokens_per_day": 10**9, "concurrent": 100}
    with gate(folder, tree) as made:
        yield made


def ask(served, **more):
    with served.client() as client:
        return client.post(
            "/chat/completions", json={"model": "m", "messages": HELLO, "max_tokens": 50, **more}
        )


def newest(served):
    """The event of the last request, once it is written."""
    time.sleep(0.5)
    kept = Events(served.config.store)
    try:
        return kept.newest(most=1)[0]
    finally:
        kept.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1 999 X\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 099 X\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 204 X\r\n\r\n",
        b"HTTP/1.1 304 X\r\n\r\n",
        b"HTTP/1.1 101 X\r\nupgrade: y\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 X\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 X\r\ncontent-length: -2\r\n\r\n{}",
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}",
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        reply(b""),
        reply(b"[]"),
        reply(b'{"a":' * 2000),
        reply(DEEP),
        reply(b"\x1f\x8b\x08\x00garbage", b"content-encoding: gzip"),
        reply(b"", b"location: http://169.254.169.254/", status=b"302 X"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_whatever_a_server_answers_the_client_is_told_in_our_form(served, raw, answer, stream):
    raw.answer = answer
    said = ask(served, stream=stream, logprobs=True)
    assert said.status_code in (502, 503)
    assert said.json()["error"]["code"] in ("upstream_cut", "upstream_unreachable")


@pytest.mark.parametrize(
    "header",
    [
        b"content-type: application/json\x01",
        b"content-type: a\xff\xfe",
        b"content-type: ",
        b"x-request-id: \x02",
        b"x-request-id: a\x7fb",
        b"retry-after: \x1b[31m",
    ],
)
def test_a_header_that_cannot_be_passed_back_is_left_out(served, raw, header):
    raw.answer = reply(whole(), header)
    said = ask(served)
    assert (said.status_code, said.json()["choices"]) == (200, ANSWER["choices"])


def test_what_a_server_refuses_the_gateway_itself_is_not_charged_to_the_client(served, raw):
    raw.answer = reply(b'{"error":{"message":"no"}}', status=b"401 X")
    assert ask(served).json()["error"]["code"] == "upstream_refused"
    event = newest(served)
    assert (event.input_tokens, event.output_tokens, event.ended, event.status) == (0, 0, "refused", 502)


def test_an_error_that_breaks_off_is_not_charged(served, raw):
    raw.answer = b"HTTP/1.1 500 X\r\ncontent-length: 900\r\n\r\n{"
    assert ask(served).status_code == 502
    event = newest(served)
    assert (event.output_tokens, event.ended) == (0, "upstream_cut")


def test_an_error_told_as_a_success_is_passed_on_and_not_charged(served, raw):
    raw.answer = reply(b'{"error":{"message":"no memory","code":500}}')
    assert ask(served).json()["error"]["message"] == "no memory"
    assert newest(served).output_tokens == 0


def test_an_error_told_as_a_stream_is_passed_on_and_not_charged(served, raw):
    raw.answer = reply(b"data: no\n\n", b"content-type: text/event-stream", status=b"500 X")
    said = ask(served, stream=True)
    assert (said.status_code, said.content) == (500, b"data: no\n\n")
    assert newest(served).output_tokens == 0


@pytest.mark.parametrize("words", [0, 1])
def test_a_stream_that_fails_is_charged_where_anything_came_of_it(served, raw, words):
    said = [{"choices": [{"index": 0, "delta": {"content": "well"}}]}] * words
    events = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in [*said, {"error": {"code": 500}}]]
    raw.answer = reply(b"".join(events), b"content-type: text/event-stream")
    assert b'"code": 500' in ask(served, stream=True).content
    event = newest(served)
    assert (event.ended, event.output_tokens > 0) == ("upstream_cut", words > 0)


def test_a_server_that_stays_silent_ends_the_request_as_cut(served, raw):
    raw.answer, raw.wait = b"", True
    try:
        assert ask(served).status_code == 504
    finally:
        raw.wait = False
    event = newest(served)
    assert (event.ended, event.reason, event.counted) == ("upstream_cut", "upstream_timeout", "bound")


def test_a_stream_whose_last_line_lacks_its_end_is_whole(served, raw):
    events = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\ndata: [DONE]\n'
    raw.answer = reply(events, b"content-type: text/event-stream")
    said = ask(served, stream=True, stream_options={"include_usage": True})
    assert said.content == events
    event = newest(served)
    assert (event.ended, event.input_tokens, event.output_tokens) == ("whole", 7, 3)


def test_what_is_told_in_the_middle_of_a_stream_is_the_least_that_is_charged_to_who_leaves(served, raw):
    """vLLM can be asked to tell in each event what its choice took so far, of four choices a fourth."""
    usages = [{"prompt_tokens": 7, "completion_tokens": number // 4 + 1} for number in range(40)]
    told = [{"choices": [{"index": 0, "delta": {"content": "w "}}], "usage": usage} for usage in usages]
    events = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in told)
    raw.answer = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n" + events
    raw.wait = True
    body = {"model": "m", "messages": HELLO, "max_tokens": 10, "n": 4, "stream": True}
    try:
        with served.client() as client, client.stream("POST", "/chat/completions", json=body) as said:
            seen = 0
            for part in said.iter_bytes():
                seen += part.count(b"data:")
                if seen == 40:
                    break
    finally:
        raw.wait = False
    event = newest(served)
    assert (event.ended, event.counted, event.output_tokens) == ("client_left", "bound", 40)


def test_of_several_choices_not_the_first_alone_is_charged(served, raw):
    """llama.cpp puts the choices of a whole answer together and tells what the first took."""
    choices = [{"index": at, "message": {"role": "assistant", "content": "well " * 30}} for at in range(4)]
    told = whole(choices=choices, timings={"predicted_n": 3})
    raw.answer = reply(told)
    assert ask(served, n=4, max_tokens=1000).status_code == 200
    event = newest(served)
    assert (event.ended, event.counted, event.output_tokens) == ("whole", "bound", len(told))
    ask(served, n=4)
    assert newest(served).output_tokens == 200
    ask(served)
    event = newest(served)
    assert (event.counted, event.output_tokens) == ("told", 3)


@pytest.mark.parametrize(
    ("choices", "least"), [([], 50), ([{"index": 0, "delta": {}, "finish_reason": "stop"}], 20)]
)
def test_nor_is_the_last_alone_of_a_stream_that_tells_each(served, raw, choices, least):
    usages = [{"prompt_tokens": 7, "completion_tokens": number} for number in (30, 20)]
    told = [{"choices": [{"index": 0, "delta": {"content": "well " * 30}}]}]
    told += [{"choices": choices, "usage": usage} for usage in usages]
    events = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in told]
    raw.answer = reply(b"".join([*events, b"data: [DONE]\n\n"]), b"content-type: text/event-stream")
    ask(served, n=2, stream=True)
    event = newest(served)
    assert (event.ended, event.counted) == ("whole", "bound")
    assert least <= event.output_tokens <= 100
    ask(served, stream=True)
    event = newest(served)
    assert (event.counted, event.output_tokens) == ("told", 20)


def test_what_a_failed_answer_took_is_charged_where_it_is_told(served, raw):
    said = {"status": "failed", "error": {"code": "server_error"}, "output": [{"type": "message"}]}
    usage = {"input_tokens": 7, "output_tokens": 3}
    for more, tokens in (({"usage": usage}, 3), ({}, 50), ({"output": []}, 0)):
        raw.answer = reply(json.dumps(said | more).encode())
        with served.client() as client:
            client.post("/responses", json={"model": "m", "input": "hello", "max_output_tokens": 50})
        assert newest(served).output_tokens == tokens


@pytest.mark.parametrize("tokens", [-1, 2**53, 2**63, 1.5, True, "3", None, []])
def test_numbers_that_are_no_counts_are_not_taken_for_usage(tokens):
    assert usage_of({"usage": {"prompt_tokens": 7, "completion_tokens": tokens}}) is None
    assert usage_of({"usage": {"prompt_tokens": tokens, "completion_tokens": 7}}) is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_usage_is_found_however_the_stream_is_cut_and_written(end, size):
    lines = [
        b": a comment",
        b"",
        b'data: {"choices":',
        b'data: [],"usage":{"prompt_tokens":1,',
        b'data:"completion_tokens":2}}',
    ]
    lines += [
        b"",
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}',
        b"",
        b"data: [DONE]",
        b"",
        b"",
    ]
    data = end.join(lines)
    passing = Passing(strip=False)
    out = b"".join(passing.feed(data[at : at + size]) for at in range(0, len(data), size)) + passing.end()
    assert (out, passing.usage, passing.whole, passing.failed) == (data, (3, 4), True, False)


def test_a_server_that_fails_for_days_is_still_asked_in_the_end():
    behind = Behind(Upstream.model_validate({"url": "http://a.example/v1"}), {})
    for _ in range(5000):
        behind.failed(100.0)
    assert behind.rests_until == 100.0 + LONGEST_REST
