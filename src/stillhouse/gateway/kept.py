"""Requests and answers of the past whose text was kept: for a replay of a gateway's own traffic, and for an
auditor who asks what a model may have been taught with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import orjson

from stillhouse.gateway.sealing import Sealer, unseal
from stillhouse.gateway.store.events import Events
from stillhouse.gateway.store.standings import Standings
from stillhouse.gateway.store.texts import TextStore
from stillhouse.gateway.stream import said_in
from stillhouse.guard.config import Store
from stillhouse.guard.events import Event, event_of
from stillhouse.guard.replaying import Past

NOT_KEPT = "its text was not kept"


def kept_requests(store: Store, sealing: bytes, since: float) -> Iterator[Past | str]:
    """Of answered requests since a time (Unix seconds), by when they were written down; those whose text was
    not kept, or is erased, as words that say so. `sealing` is what texts are sealed under.

    Raises StorageError, also for texts that were sealed under another secret.
    """
    with closing(Standings(store)) as standings:
        declared = standings.declared()
    for event, request, _ in _kept(store, sealing, since, None):
        if request is None:
            yield NOT_KEPT
            continue
        yield Past(
            event.account,
            event.at,
            orjson.loads(request),
            event.output_tokens,
            event.route.removeprefix("/v1/"),  # type: ignore[arg-type]
            declared.get(event.account, ""),
        )


def kept_answers(store: Store, sealing: bytes, since: float, account: str) -> Iterator[dict[str, Any] | str]:
    """What an account was answered in chats since a time: event, time, prompt, answer and the ids of keys
    that marked it. What cannot be told is one text that says why. Raises as `kept_requests`."""
    for event, request, answer in _kept(store, sealing, since, account):
        if request is None or answer is None:
            yield NOT_KEPT
            continue
        given = said_in(answer)
        messages = orjson.loads(request).get("messages")
        said = [each["content"] for each in messages or () if isinstance(each.get("content"), str)]
        if given is None or not given.text or not said or len(said) < len(messages):
            yield "it is no chat in words alone"
            continue
        marks = [each.partition(":") for each in event.changed]
        yield {
            "event": event.id,
            "at": event.at,
            "prompt": "\n".join(said),
            "answer": given.text,
            "marked": [id for what, _, id in marks if what in ("watermark", "upstream_watermark", "markers")],
        }


def _kept(
    store: Store, sealing: bytes, since: float, account: str | None
) -> Iterator[tuple[Event, bytes | None, bytes | None]]:
    """Answered events with request and answer; None for both where they are not kept."""
    sealer = Sealer(sealing)
    with closing(Events(store)) as events, closing(TextStore(store)) as texts:
        for group in events.groups_since(since):
            for row in events.rows(group):
                event = event_of(row)
                if event.at < since or event.status >= 400 or not event.status:
                    continue
                if account is not None and event.account != account:
                    continue
                kept = texts.read(event.id)
                if kept is None or kept.wrapped is None:
                    yield event, None, None
                    continue
                key = sealer.unwrapped(kept.wrapped, kept.account, kept.day)
                yield event, *unseal(key, event.id, kept.account, kept.sealed)
