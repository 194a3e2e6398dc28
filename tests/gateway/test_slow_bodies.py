"""A body that never comes keeps no connection, on the routes that anybody may send one to as well."""

import socket
import time

import pytest
from gate import SECRET, gate, tree_of


@pytest.fixture(scope="module")
def served(tmp_path_factory, behind):
    folder = tmp_path_factory.mktemp("gateway")
    tree = tree_of(folder, behind.url, "whole")
    tree["server"] |= {"head_seconds": 1.0, "keep_alive_seconds": 1.0}
    with gate(folder, tree) as made:
        yield made


def connected(served) -> socket.socket:
    host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize(
    "head",
    [
        "POST /admin/login HTTP/1.1\r\ncontent-type: application/x-www-form-urlencoded",
        f"POST /admin/api/accounts HTTP/1.1\r\nauthorization: Bearer {SECRET}\r\nx-operator: ann",
    ],
)
def test_a_body_for_the_operator_that_never_comes_keeps_no_connection(served, head):
    with connected(served) as client:
        client.sendall(f"{head}\r\nhost: x\r\ncontent-length: 100\r\n\r\na".encode())
        began = time.monotonic()
        answer = b""
        while part := client.recv(10_000):
            answer += part
        assert b" 499 " in answer.splitlines()[0]
        assert time.monotonic() - began < 6
