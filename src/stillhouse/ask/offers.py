"""Before a server is asked anything: does it say in a document what its answers may be used for?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import date

import aiohttp
from yarl import URL

from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import identity
from stillhouse.terms.offered import LARGEST, WELL_KNOWN, banning_twins, keep, leads_on, origin_of

SECONDS = 5.0  # for all that one server is asked
_MOVES = 3  # redirects that are followed, as `leads_on` allows
_MOVED = (301, 302, 303, 307, 308)
_NONE = (404, 410)


def hear(endpoints: Iterable[str], ledger: Ledger, today: date) -> None:
    """Ask each server for its terms and keep what it says as a terms snapshot, for the gate to decide by.

    A server that cannot be reached, fails, refuses or is busy leaves what is known of it as it is; no key is
    shown to it. The other scheme of its host is asked too where it forbade something, for that counts here.
    """
    origins = [origin for endpoint in endpoints if (origin := origin_of(endpoint))]
    if not origins:
        return
    origins += [twin for origin in origins for twin in banning_twins(ledger, origin)]
    loop = asyncio.new_event_loop()  # `asyncio.run` would leave the thread without one, which Ray asks for
    try:
        found = loop.run_until_complete(_fetch_all(dict.fromkeys(origins)))
    finally:
        loop.close()
    for origin, (told, data) in found.items():
        if told:
            keep(ledger, origin, data, today)


async def _fetch_all(origins: Iterable[str]) -> dict[str, tuple[bool, bytes | None]]:
    async with aiohttp.ClientSession(
        headers={"User-Agent": identity(), "Accept": "application/json"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # `_fetch` bounds all that one server is asked
        trust_env=False,
    ) as session:
        found = await asyncio.gather(*(_fetch(session, origin) for origin in origins))
    return dict(zip(origins, found, strict=True))


async def _fetch(session: aiohttp.ClientSession, origin: str) -> tuple[bool, bytes | None]:
    """Whether the server told, and what: None for no such document. One that refuses, is busy or sends the
    reader elsewhere told nothing: only who says that there is no document has none."""
    url = URL(origin + WELL_KNOWN)
    try:
        async with asyncio.timeout(SECONDS):
            for _ in range(_MOVES + 1):
                async with session.get(url, allow_redirects=False) as answer:
                    if answer.status in _NONE:
                        return True, None
                    if answer.status == 200:
                        return True, await _bounded(answer.content)
                    if answer.status not in _MOVED:
                        return False, None
                    url = url.join(URL(answer.headers.get("Location", "")))
                    if not leads_on(origin, str(url)):
                        return False, None  # a document elsewhere is not this server's word
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
        pass
    return False, None


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """All of it, or one byte more than is allowed: no document, then."""
    data = b""
    while len(data) <= LARGEST and (piece := await content.read(LARGEST + 1 - len(data))):
        data += piece
    return data
