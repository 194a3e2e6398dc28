"""A long body is only read of whoever may still ask: whoever may not is answered by the head alone."""

import json
import socket

import pytest
from behind import PROMPT
from gate import SECRET, gate, tree_of

HELLO = [{"role": "user", "content": "hello"}]
LONG = json.dumps({"model": "whole", "messages": [{"role": "user", "content": "a" * 300_000}]}).encode()
FREE = {"requests_per_minute": 1_000}
TIERS = {
    "default": {"limits": FREE},
    "once": {"limits": {"requests_per_minute": 1}},
    "few": {"limits": {"input_tokens_per_day": PROMPT}},
    "paid": {"limits": FREE, "prepaid": True},
}
TOLD = {"content-length": b"content-length: %d" % len(LONG), "chunked": b"transfer-encoding: chunked"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, behind):
    folder = tmp_path_factory.mktemp("gateway")
    tree = tree_of(folder, behind.url, "whole")
    tree["models"][0] |= {"context_tokens": PROMPT, "price": "dear"}
    tree |= {"tiers": TIERS, "prices": {"dear": {"steps": [{"input": 1000, "output": 1000}]}}}
    with gate(folder, tree) as running:
        yield running


def head(key: str, *lines: bytes) -> bytes:
    first = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + key.encode()
    return b"\r\n".join([first, *lines, b"", b""])


def connected(made) -> socket.socket:
    host, port = made.url.removeprefix("http://").removesuffix("/v1").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def answer_in(client: socket.socket) -> tuple[int, dict[bytes, bytes], dict]:
    """One answer, and not a byte more."""
    said = b""
    while b"\r\n\r\n" not in said:
        part = client.recv(1)
        assert part, said
        said += part
    first, *lines = said.removesuffix(b"\r\n\r\n").split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    body = b""
    while len(body) < int(fields[b"content-length"]):
        body += client.recv(int(fields[b"content-length"]) - len(body))
    return int(first.split()[1]), fields, json.loads(body)


def spend(made, account: str, key: str) -> None:
    with made.client(key) as client:
        body = {"model": "whole", "messages": HELLO}
        assert client.post("/chat/completions", json=body).status_code == 200


def block(made, account: str, key: str) -> None:
    who = {"authorization": f"Bearer {SECRET}", "x-operator": "tester"}
    with made.client() as client:
        url = made.url.removesuffix("/v1") + f"/admin/api/accounts/{account}/block"
        assert client.post(url, headers=who, json={"reason": "a test"}).status_code == 200


def nothing(made, account: str, key: str) -> None:
    pass


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize(
    ("tier", "before", "status", "code"),
    [
        ("once", spend, 429, "rate_limit_exceeded"),
        ("few", spend, 429, "rate_limit_exceeded"),
        ("paid", nothing, 402, "insufficient_quota"),
        ("default", block, 403, "account_blocked"),
    ],
)
def test_a_long_body_of_whoever_may_not_ask_is_not_waited_for(made, behind, told, tier, before, status, code):
    account, key = made.new_key({"name": "a customer", "tier": tier})
    before(made, account, key)
    behind.seen.clear()
    with connected(made) as client:
        client.sendall(head(key, TOLD[told]))
        said, fields, body = answer_in(client)
        assert (said, body["error"]["code"]) == (status, code)
        assert (b"retry-after" in fields) == (status == 429)
        client.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(LONG), LONG) if told == "chunked" else LONG)
        client.sendall(head(made.key, b"content-length: 2") + b"{}")
        assert answer_in(client)[0] == 404, "what was thrown away is taken for no request"
    assert not behind.seen["whole"]


def test_a_long_body_of_whoever_may_ask_is_served_and_charged_once(made):
    _, key = made.new_key({"name": "a customer", "limits": {"requests_per_minute": 2, "concurrent": 1}})
    with connected(made) as client:
        for _ in range(2):
            client.sendall(head(key, TOLD["content-length"]) + LONG)
            assert answer_in(client)[0] == 200
        client.sendall(head(key, TOLD["content-length"]))
        assert answer_in(client)[0] == 429
