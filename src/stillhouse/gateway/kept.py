"""Requests of the past whose text was kept: what a replay of a gateway's own traffic can be made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import orjson

from stillhouse.gateway.sealing import Sealer, unseal
from stillhouse.gateway.store.events import Events
from stillhouse.gateway.store.standings import Standings
from stillhouse.gateway.store.texts import TextStore
from stillhouse.guard.config import Store
from stillhouse.guard.events import event_of
from stillhouse.guard.replaying import Past


def kept_requests(store: Store, sealing: bytes, since: float) -> Iterator[Past | str]:
    """Of answered requests since a time (Unix seconds), by when they were written down; those whose text was
    not kept, or is erased, as words that say so. `sealing` is what texts are sealed under.

    Raises StorageError, also for texts that were sealed under another secret.
    """
    sealer = Sealer(sealing)
    with (
        closing(Events(store)) as events,
        closing(TextStore(store)) as texts,
        closing(Standings(store)) as standings,
    ):
        declared = standings.declared()
        for group in events.groups_since(since):
            for row in events.rows(group):
                event = event_of(row)
                if event.at < since or event.status >= 400 or not event.status:
                    continue
                kept = texts.read(event.id)
                if kept is None or kept.wrapped is None:
                    yield "its text was not kept"
                    continue
                key = sealer.unwrapped(kept.wrapped, kept.account, kept.day)
                request, _ = unseal(key, event.id, kept.account, kept.sealed)
                yield Past(
                    event.account,
                    event.at,
                    orjson.loads(request),
                    event.output_tokens,
                    event.route.removeprefix("/v1/"),  # type: ignore[arg-type]
                    declared.get(event.account, ""),
                )
