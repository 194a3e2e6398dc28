"""Ten thousand clients that ask nothing: held in little memory, no burden for others, let go in time."""

import resource
import socket
import statistics
import time
from pathlib import Path

import pytest
from gate import gate, tree_of

MANY = 10_000
AT_ONCE = 250
OWN = 10  # of the gateway's other files so many come and go
PATIENCE = 60.0  # seconds: longer than it takes to open them all
HELLO = [{"role": "user", "content": "hello"}]
MOST_EACH = 16 << 10  # bytes of memory
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def many_files():
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < MANY + 1000:
        pytest.skip(f"only {most} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))


def memory(pid: int) -> int:
    """Bytes of it that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def sockets(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def opened(made) -> list[socket.socket]:
    """From several addresses. One in two has been answered before; the others never said a word."""
    host, port = made.url.removeprefix("http://").removesuffix("/v1").split(":")
    clients = []
    for begin in range(0, MANY, AT_ONCE):
        numbers = range(begin, begin + AT_ONCE)
        some = [
            socket.create_connection((host, int(port)), 30, (f"127.0.0.{2 + number % 8}", 0))
            for number in numbers
        ]
        for client in some[::2]:
            client.sendall(HEALTH)
        assert all(client.recv(1000).startswith(b"HTTP/1.1 200 OK") for client in some[::2])
        clients += some
    return clients


def asked(made) -> float:
    """Seconds until it is answered, on a connection of its own."""
    began = time.monotonic()
    with made.client() as client:
        said = client.post("/chat/completions", json={"model": "whole", "messages": HELLO})
    assert said.status_code == 200
    return time.monotonic() - began


def until(done, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(done())


@pytest.mark.slow
def test_ten_thousand_idle_connections_are_held_and_let_go(tmp_path, behind, many_files):
    tree = tree_of(tmp_path, behind.url, "whole")
    tree["server"] |= {"head_seconds": PATIENCE, "keep_alive_seconds": PATIENCE}
    with gate(tmp_path, tree) as made:
        pid = made.process.pid
        for _ in range(20):
            asked(made)
        assert until(lambda: sockets(pid) < 100, 10)
        files, before = sockets(pid), memory(pid)
        began = time.monotonic()
        clients = opened(made)
        took = time.monotonic() - began
        assert took < PATIENCE - 20, "the first would be let go before the last has come"
        assert until(lambda: sockets(pid) >= files + MANY - OWN, 10), (files, sockets(pid))
        each = (memory(pid) - before) / MANY
        waits = [asked(made) for _ in range(5)]
        assert sockets(pid) >= files + MANY - OWN, "none was let go to answer others"
        assert until(lambda: sockets(pid) <= files + OWN, PATIENCE + 10)
        lasted = time.monotonic() - began
        after = memory(pid)
        for client in clients:
            while client.recv(1000):  # what is left of an answer, and then the end
                pass
            client.close()
        again = opened(made)
        second = memory(pid)
        for client in again:
            client.close()
        assert until(lambda: sockets(pid) <= files + OWN, 10)
        print(
            f"\n{MANY:,} idle connections: opened in {took:.1f} s, {each:,.0f} bytes each, others answered in"
            f" {statistics.median(waits) * 1000:.0f} ms, gone after {lasted:.1f} s; memory {before >> 20},"
            f" {int(before + each * MANY) >> 20}, {after >> 20}, {second >> 20}, {memory(pid) >> 20} MiB"
        )
        assert each <= MOST_EACH
        assert statistics.median(waits) < 1
        assert lasted < took + PATIENCE + 5
        assert second < before + each * MANY * 1.25 + (4 << 20), "what they took is used again"
        assert made.stop() == 0
