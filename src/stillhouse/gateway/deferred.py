"""What cascades deferred and kept, with who may no longer be learned from left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache

from stillhouse.cascade.deferred import Deferred, read
from stillhouse.gateway.sealing import unseal
from stillhouse.gateway.store.events import Events
from stillhouse.gateway.store.register import Register
from stillhouse.gateway.store.rows import NotThere
from stillhouse.gateway.store.texts import TextStore
from stillhouse.gateway.texts import sealer_of
from stillhouse.guard.config import Store
from stillhouse.guard.events import event_of

GIVEN_BY_STUDENT = ("cascade_sure", "cascade_teacher_down")


def deferred_exchanges(
    store: Store, sealing: bytes, register: Register, model: str, since: float
) -> Iterator[Deferred | str]:
    """What the cascade of `model` deferred since a time (Unix seconds), by when it was written down; of each
    request that may not be learned from, or is not there, the reason. `sealing` is what texts are sealed
    under. An account's consent counts as it is now.

    Raises StorageError, also for texts that were sealed under another secret, and StoreDown.
    """
    sealer = sealer_of(sealing, "deferred")

    @lru_cache(None)
    def withdrawn(account: str) -> float | str:
        """When its consent was last taken back; as words why there is none."""
        try:
            standing = register.account(account).training is not None
        except NotThere:
            return "its account is not known"
        taken_back = [at for version, at, _, _ in register.agreements(account) if version is None]
        if not standing:
            took = "took its consent to training back" if taken_back else "has not agreed to training"
            return f"its account {took}"
        return max(taken_back, default=float("-inf"))

    with closing(Events(store)) as events, closing(TextStore(store, "deferred")) as texts:
        for group in events.groups_since(since):
            for row in events.rows(group):
                event = event_of(row)
                by_teacher = event.reason.startswith("cascade_") and event.reason not in GIVEN_BY_STUDENT
                if event.at < since or event.model != model or not by_teacher:
                    continue
                if event.status != 200 or event.ended != "whole":
                    yield "its answer did not come to its end"
                    continue
                at = withdrawn(event.account)
                if isinstance(at, str):
                    yield at
                    continue
                kept = texts.read(event.id)
                if kept is None or kept.wrapped is None:
                    plain = event.reason != "cascade_not_judged"
                    yield "it is erased, or was not kept" if plain else "it was no plain chat, and not kept"
                    continue
                key = sealer.unwrapped(kept.wrapped, kept.account, kept.day)
                one = read(event.id, kept.account, *unseal(key, event.id, kept.account, kept.sealed))
                yield one if one.at > at else "it was kept under a consent that was taken back since"
