"""Which server is asked, and which never is."""

import asyncio
import socket

import pytest

from stillhouse.gateway.patience import Patience
from stillhouse.gateway.upstream import FIRST_REST, LONGEST_REST, Behind, Resolver, in_order, send
from stillhouse.guard.config import Upstream


def behind(name: str) -> Behind:
    return Behind(Upstream.model_validate({"url": f"http://{name}.example/v1/"}), {})


def test_those_that_failed_rest_longer_each_time_and_are_asked_last():
    first, second = behind("a"), behind("b")
    assert first.url == "http://a.example/v1"
    now = 100.0
    first.failed(now)
    assert in_order([first, second], now) == [second, first]
    assert in_order([first, second], now + FIRST_REST) == [first, second]
    for _ in range(20):
        first.failed(now)
    assert first.rests_until == now + LONGEST_REST
    second.failed(now)
    assert in_order([first, second], now) == [second, first], "the one that wakes first"
    first.well()
    assert in_order([first, second], now) == [first, second]


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "fe80::1"])
def test_a_name_that_comes_to_lead_to_a_machines_own_secrets_is_not_followed(monkeypatch, address):
    """The system's own resolver answers, as the owner of a name makes it answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = [(family, socket.SOCK_STREAM, 6, "", (address, 80, 0, 0) if ":" in address else (address, 80))]

    async def resolve() -> None:
        loop = asyncio.get_running_loop()

        async def answered(*_, **__):
            return found

        async def named(address_, _flags):
            return address_[0], str(address_[1])

        monkeypatch.setattr(loop, "getaddrinfo", answered)
        monkeypatch.setattr(loop, "getnameinfo", named)
        await Resolver().resolve("innocent.example", 80, socket.AF_UNSPEC)

    with pytest.raises(OSError, match="nothing may be sent"):
        asyncio.run(resolve())


@pytest.mark.parametrize("end", [TimeoutError, asyncio.CancelledError])
def test_what_an_ill_server_said_is_let_go_when_the_next_one_brings_nothing(end):
    class Ill:
        status, closed = 503, False

        def close(self):
            self.closed = True

    ill = Ill()
    answers = iter([ill, end()])

    class Session:
        async def post(self, *_, **__):
            answer = next(answers)
            if isinstance(answer, BaseException):
                raise answer
            return answer

    async def ask():
        await send(Session(), [behind("a"), behind("b")], "x", lambda _: b"{}", {}, lambda: 0.0, Patience())

    with pytest.raises(end):
        asyncio.run(ask())
    assert ill.closed


def test_this_machine_is_found():
    async def resolve():
        return await Resolver().resolve("localhost", 80)

    assert asyncio.run(resolve())[0]["host"] == "127.0.0.1"
