"""The servers behind the gateway: which of them are well, and one request sent to the first that is."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import ResolveResult

from stillhouse.gateway.patience import Patience
from stillhouse.guard.config import Upstream
from stillhouse.guard.reading import forbidden_address

FIRST_REST = 1.0  # seconds that a server which failed is left alone; twice as long each time, up to
LONGEST_REST = 30.0
GONE = frozenset({502, 503, 504})

Clock = Callable[[], float]


class NoneAnswers(Exception):
    """No upstream took the request; nothing of it was answered."""


@dataclass(slots=True)
class Behind:
    """An upstream with its key, and what is known of its health."""

    config: Upstream
    headers: dict[str, str]
    failures: int = 0
    rests_until: float = 0.0
    most_input: float = 0.0  # the largest share of a prompt's bound that was used
    most_output: float = 0.0  # the most tokens in an event
    url: str = field(init=False)
    timeout: aiohttp.ClientTimeout = field(init=False)

    def __post_init__(self) -> None:
        self.url = self.config.url.rstrip("/")
        self.timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.config.connect_seconds)

    def well(self) -> None:
        self.failures, self.rests_until = 0, 0.0

    def failed(self, now: float) -> None:
        self.failures += 1
        doubled = min(self.failures - 1, 10)  # of more a float would run over
        self.rests_until = now + min(LONGEST_REST, FIRST_REST * 2.0**doubled)

    def learn(self, bound: int, told: tuple[int, int], events: int) -> None:
        if bound:
            self.most_input = max(self.most_input, told[0] / bound)
        if events:
            self.most_output = max(self.most_output, told[1] / events)


class Resolver(aiohttp.ThreadedResolver):
    """No name leads to an address that is refused: who owns a name may change where it leads."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        for each in found:
            if why := forbidden_address(each["host"]):
                raise OSError(f"{host} leads where nothing may be sent: {why}")
        return found


def in_order(upstreams: Sequence[Behind], now: float) -> list[Behind]:
    """Those that are well in the order given; then those that rest, first the one that wakes first."""
    if upstreams[0].rests_until <= now:
        return list(upstreams)
    return sorted(upstreams, key=lambda each: max(0.0, each.rests_until - now))


async def send(
    session: aiohttp.ClientSession,
    upstreams: Sequence[Behind],
    route: str,
    body_for: Callable[[Behind], bytes],
    headers: dict[str, str],
    clock: Clock,
    patience: Patience,
) -> tuple[Behind, aiohttp.ClientResponse]:
    """The answer's beginning from the first upstream that has one. The next is tried where one cannot be
    reached, breaks off before its first byte or says that it cannot serve now (502, 503, 504); the last such
    word is passed on when there is no other. Raises NoneAnswers, TimeoutError when a server that took the
    request stayed silent."""
    last: tuple[Behind, aiohttp.ClientResponse] | None = None
    why = ""
    for behind in in_order(upstreams, clock()):
        try:
            with patience.within(behind.config.first_byte_seconds):
                response = await session.post(
                    f"{behind.url}/{route}",
                    data=body_for(behind),
                    headers={**headers, **behind.headers},
                    timeout=behind.timeout,
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, OSError) as error:
            behind.failed(clock())
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                _close(last)
                raise
            why = f"{type(error).__name__}: {error}"
            continue
        except BaseException:  # the client left
            _close(last)
            raise
        if response.status in GONE:
            behind.failed(clock())
            _close(last)
            last = behind, response
            continue
        _close(last)
        behind.well()
        return behind, response
    if last is not None:
        return last
    raise NoneAnswers(why)


def _close(last: tuple[Behind, aiohttp.ClientResponse] | None) -> None:
    if last is not None:
        last[1].close()


async def look(session: aiohttp.ClientSession, behind: Behind) -> bool:
    """Whether a server that failed is back: it answers to its list of models."""
    try:
        async with session.get(
            f"{behind.url}/models", headers=behind.headers, timeout=aiohttp.ClientTimeout(total=5.0)
        ) as response:
            return response.status < 500
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
