"""A question to a server beside the one whose answer goes to the client as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from stillhouse.gateway import upstream
from stillhouse.gateway.exchange import Whole, mark_of, object_of, sent_body, whole_of
from stillhouse.gateway.patience import Patience
from stillhouse.gateway.state import Gateway, Trail
from stillhouse.gateway.stream import usage_of
from stillhouse.gateway.upstream import Behind, NoneAnswers
from stillhouse.guard.asked import Asked
from stillhouse.guard.limits import Used

NOTHING = Used(0, 0, sent=False)


@dataclass(frozen=True, slots=True)
class Aside:
    """What came of it: `whole` None where there is no answer, `used` None where nobody told what it took."""

    used: Used | None
    whole: Whole | None = None
    behind: Behind | None = None


async def ask_aside(
    gateway: Gateway,
    servers: Sequence[Behind],
    trail: Trail,
    body: Mapping[str, Any],
    asked: Asked,
    patience: Patience,
) -> Aside:
    """Ask for a whole answer to a chat, once. Never raises for what a server does wrong."""
    behind = response = None
    whole = False
    once = replace(asked, stream=False)
    try:
        behind, response = await upstream.send(
            gateway.session,
            servers,
            trail.route,
            lambda behind: sent_body(body, once, behind, trail.route),
            {"content-type": "application/json", "x-request-id": trail.id},
            gateway.clock,
            patience,
        )
        data = await whole_of(response, behind, patience)
        whole = True
    except NoneAnswers:
        return Aside(NOTHING)
    except (aiohttp.ClientError, OSError):
        if behind is not None:
            behind.failed(gateway.clock())
        return Aside(None)
    finally:
        if response is not None:
            response.release() if whole else response.close()
    if response.status >= 400:
        return Aside(NOTHING)
    told = object_of(data)
    if told is None:
        return Aside(None)
    used = usage_of(told)
    mine = None if used is None else Used(*used)
    return Aside(mine, Whole(told, mine, mark_of(response)), behind)
