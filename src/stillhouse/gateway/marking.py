"""Marks by selection: the model is asked for several answers, and the one that fits the account's key best is
given, whole; and markers in it, for an account under review.

The first answer goes the way of every request, so that what fails fails as it does without marks. The others
are asked for beside it; what becomes of them changes only how many there are to choose from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson

from stillhouse.gateway.answers import Send
from stillhouse.gateway.aside import Aside, ask_aside
from stillhouse.gateway.exchange import Exchange, Whole, is_chat
from stillhouse.gateway.patience import Patience
from stillhouse.gateway.state import Gateway, Served, Trail
from stillhouse.gateway.stream import Unwritable, written
from stillhouse.guard import markers
from stillhouse.guard.answers import Cut, Filter
from stillhouse.guard.asked import Asked, Denied
from stillhouse.guard.config import Detection
from stillhouse.guard.ladder import Rung
from stillhouse.guard.leaks import Passed
from stillhouse.guard.limits import Used
from stillhouse.guard.marking import another, chosen, has_markers, is_chosen, text_of, unfit
from stillhouse.watermark import Key, account_key

UNMARKED = b"none; why=%s"


@dataclass(frozen=True, slots=True)
class Marking:
    """How the answer to one request is to be marked; `unfit` says why it cannot be, "" where it can. `filter`
    is what every answer loses before it is given."""

    key: Key
    answers: int
    markers: bool
    customer_pays: bool
    unfit: str
    filter: Filter | None


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was admitted, and what answering it needs; `body` is what may be sent on."""

    gateway: Gateway
    trail: Trail
    served: Served
    asked: Asked
    exchange: Exchange
    patience: Patience
    body: Mapping[str, Any]
    headers: Sequence[tuple[bytes, bytes]]
    send: Send
    marking: Marking | None = None


def marking_of(detection: Detection, served: Served, trail: Trail, passed: Passed) -> Marking | None:
    """None where this account's answers are not marked at all."""
    settings = served.config.watermark
    assert trail.caller is not None
    assert trail.asked is not None
    if settings is None or served.key is None:
        return None
    rung: Rung = "observe" if trail.standing is None else trail.standing.rung
    chooses, markers = is_chosen(settings, rung, detection), has_markers(settings, rung, detection)
    if not chooses and not markers:
        return None
    why = unfit(trail.route, passed.body, trail.asked)
    if why == "greedy" and markers:  # one answer can have markers
        chooses, why = False, ""
    return Marking(
        account_key(served.key, trail.caller.account.id),
        settings.best_of if chooses and not why else 1,
        markers,
        settings.paid_by == "customer",
        why,
        passed.filter,
    )


async def run(request: Request, send: Send) -> None:
    """Answer by the model behind, marked where that is due. Raises what Exchange.run raises."""
    exchange, marking = request.exchange, request.marking
    if marking is None or marking.unfit:
        if marking is not None:
            exchange.say_mark(UNMARKED % marking.unfit.encode())
        await exchange.run(request.body, request.headers, send)
        return
    began = request.gateway.clock()
    tasks = [asyncio.create_task(_ask(request, number)) for number in range(1, marking.answers)]
    try:
        first = await exchange.run(another(request.body, 0), request.headers, send, hold=True)
        if first is None:  # nothing is given, and nothing charged
            return
        came = [Aside(first.used, first), *await asyncio.gather(*tasks)]
        exchange.elsewhere += request.gateway.clock() - began
        wholes = [each.whole for each in came if each.whole is not None and is_chat(each.whole.told)]
        texts = [_shown(each, marking.filter) for each in wholes]
        at, why, text, sites = await asyncio.to_thread(_marked, marking, texts)
    except asyncio.CancelledError:
        _count(request, marking, [None] * len(tasks))
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    given = wholes[at]
    exchange.charge(given.used)
    _count(request, marking, [each.used for each in came if each.whole is not given])
    _say(request, marking, given, why, sites)
    try:
        await exchange.give(given.told, send, text if sites else None)
    except Unwritable as error:
        request.trail.ended, request.trail.reason = "upstream_cut", "Unwritable"
        message = f"the server of {request.trail.model} gave an answer that cannot be passed on"
        raise Denied(502, "upstream_cut", message, kind="server_error") from error


def _marked(marking: Marking, texts: Sequence[str | None]) -> tuple[int, str, str, int]:
    """Which of the answers is given; why it was not chosen by the key, "" where it was; its text with its
    markers, and how many it has. Markers come first: they change words, which the choice goes by."""
    made = [
        (text, 0) if text is None or not marking.markers else markers.marked(marking.key, text)
        for text in texts
    ]
    at, why = chosen(marking.key, [text for text, _ in made])
    text, sites = made[at]
    return at, "no_site" if marking.answers == 1 else why, text or "", sites


async def _ask(request: Request, number: int) -> Aside:
    with closing(Patience()) as patience:
        body = another(request.body, number)
        return await ask_aside(
            request.gateway, request.served.behind, request.trail, body, request.asked, patience
        )


def _count(request: Request, marking: Marking, not_given: Sequence[Used | None]) -> None:
    """What the answers took that were asked for and not given, at most where that is not known: charged to
    the customer, or shown among the operator's own figures."""
    exchange, asked = request.exchange, request.asked
    most = Used(asked.input_tokens, asked.output_tokens)
    took = [most if used is None else used for used in not_given]
    if not marking.customer_pays:
        for used in took:
            request.gateway.metrics.not_given(request.trail.model, used.input_tokens, used.output_tokens)
        return
    if exchange.before is not None:
        took.append(exchange.before)
    exchange.before = Used(sum(used.input_tokens for used in took), sum(used.output_tokens for used in took))
    exchange.before_told = exchange.before_told and None not in not_given


def _say(request: Request, marking: Marking, given: Whole, why: str, sites: int) -> None:
    """In the header, and in the event: by whom the answer is marked that is given."""
    ids, trail = [], request.trail
    if not why or sites:
        ids.append(marking.key.id)
    if not why:
        trail.marks += (f"watermark:{marking.key.id}",)
    if sites:
        trail.marks += (f"markers:{marking.key.id}",)
    if given.mark is not None:
        ids.append(given.mark)
        trail.marks += (f"upstream_watermark:{given.mark}",)
    request.exchange.say_mark(", ".join(ids).encode() if ids else UNMARKED % why.encode())


def _shown(whole: Whole, filter: Filter | None) -> str | None:
    """The text as the client would see it; None where there is none, or it cannot be written."""
    told = whole.told
    if filter is not None:
        try:
            told = orjson.loads(written(told))
        except Unwritable:
            return None
        Cut(filter).apply(told)
    return text_of(told)
