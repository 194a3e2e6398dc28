import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.models.batches import _body, input_line, result_of
from stillhouse.models.endpoint import Failure, Reply

COMPLETION = {
    "model": "m-2026",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "já"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}

NAMES = st.sampled_from(["body", "response", 'a"body', "error", "\\", "x", ""]) | st.text(max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


def line(response=None, error=None, custom_id="c1"):
    return json.dumps({"id": "r", "custom_id": custom_id, "response": response, "error": error}).encode()


@given(body=VALUES, before=st.dictionaries(NAMES, VALUES, max_size=3), data=st.data())
def test_the_body_is_cut_out_of_its_line_as_it_stands(body, before, data):
    """Whatever stands around it, and however a server writes its JSON."""
    style = data.draw(
        st.fixed_dictionaries(
            {
                "ensure_ascii": st.booleans(),
                "separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")]),
            }
        )
    )
    written = json.dumps(body, **style)
    mark = "\x00the body\x00"
    inner = {key: value for key, value in before.items() if key != "body"} | {"body": mark, "after": before}
    outer = {key: value for key, value in before.items() if key != "response"} | {"response": inner}
    text = json.dumps(outer, **style).replace(json.dumps(mark, **style), written)
    assert _body(f" {text}\n".encode()) == written.encode()


def test_an_answer_keeps_its_bytes():
    written = json.dumps(COMPLETION, indent=1).replace("\n", " ")
    text = (
        '{"custom_id": "c1", "error": null, "response": {"status_code": 200, "request_id": "q", "body": %s}}'
    )
    custom_id, reply = result_of((text % written).encode())
    assert custom_id == "c1"
    assert isinstance(reply, Reply)
    assert reply.raw == written.encode()
    assert reply.completions[0].text == "já"
    assert reply.headers == {"x-request-id": "q"}


@pytest.mark.parametrize(
    ("given_line", "kind", "sent"),
    [
        (line(error={"code": "batch_expired", "message": "too late"}), "expired", False),
        (line(error={"code": "batch_cancelled", "message": "stopped"}), "cancelled", False),
        (line(error={"code": "server_error", "message": "oh"}), "server", True),
        (line(error="oh"), "server", True),
        (line(), "server", True),
        (line({"status_code": 400, "body": {"error": {"message": "too long"}}}), "bad_request", False),
        (line({"status_code": 429, "body": {"error": {"message": "slow down"}}}), "rate_limited", False),
        (line({"status_code": 429, "body": {"error": {"code": "insufficient_quota"}}}), "quota", False),
        (line({"status_code": 500, "body": "oh"}), "server", True),
        (line({"status_code": 200, "body": {"choices": []}}), "malformed", True),
        (line({"status_code": 200, "body": None}), "malformed", True),
    ],
)
def test_what_went_wrong_with_a_line_has_a_kind(given_line, kind, sent):
    custom_id, failure = result_of(given_line)
    assert custom_id == "c1"
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.sent) == (kind, sent)
    assert failure.fatal == (kind == "quota")


@pytest.mark.parametrize(
    "given_line",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"response": null}',
        line({"status_code": "200", "body": {}}),
        line({"status_code": 200}),
        line(COMPLETION)[:-20],
        b'{"custom_id": "c1", "response": {"status_code": 200, "body": "\xff"}}',
        line({"status_code": 200, "body": 1}).replace(b"1}", b"[" * 5000 + b"]" * 5000 + b"}"),
    ],
)
def test_what_is_no_result_says_so(given_line):
    with pytest.raises(ValueError):  # noqa: PT011
        result_of(given_line)


@given(text=st.text().filter(lambda text: text.isprintable()))
def test_a_line_that_is_asked_is_one_line_of_json(text):
    body = {"messages": [{"role": "user", "content": text + "\n\u2028"}]}
    written = input_line("ab12", orjson.dumps(body))
    assert written.count(b"\n") == 1
    assert written.endswith(b"\n")
    expected = {"custom_id": "ab12", "method": "POST", "url": "/v1/chat/completions", "body": body}
    assert orjson.loads(written) == expected
