"""The leaf `served` of a group of events, and the proof that an event is under one."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillhouse.errors import LedgerError
from stillhouse.gateway.store.events import Events, Group
from stillhouse.guard.config import Store
from stillhouse.guard.events import label
from stillhouse.guard.proof import write_proof
from stillhouse.ledger import Ledger
from stillhouse.ledger.leaves import utc_stamp
from stillhouse.ledger.proof import write_proof as write_leaf_proof
from stillhouse.workspace import init_workspace


class NoSuchEvent(LedgerError):
    """It was never recorded, or has expired."""


def body_of(group: Group, root: bytes) -> dict[str, Any]:
    assert group.first is not None
    assert group.last is not None
    return {
        "count": group.events,
        "first": _stamp(group.first),
        "group": group.id,
        "last": _stamp(group.last),
        "replica": group.replica,
        "root": root.hex(),
    }


def proof_in(store: Store, id: str) -> bytes:
    """`proof_of` for whoever has neither open, also while the gateway runs. Raises StorageError as well."""
    with closing(Events(store)) as events, Ledger.open(init_workspace(Path(store.folder))) as ledger:
        return proof_of(events, ledger, id)


def proof_of(events: Events, ledger: Ledger, id: str) -> bytes:
    """Proof, for `guard.proof.read_event_proof`, that the event was recorded; makes a checkpoint.

    Raises NoSuchEvent; LedgerError when its group is not sealed yet, which takes a minute, and when this is
    not the ledger of the replica that recorded it.
    """
    found = events.find(label(id))
    if found is None:
        why = "it was never recorded, is one of many refusals that are only counted, or has expired"
        raise NoSuchEvent(f"no event {id!r}", why, "see its date")
    group, n, _ = found
    if group.root is None or group.leaf is None:
        raise LedgerError(f"event {id!r} is under no leaf yet", "its group is still filled", "wait a minute")
    elsewhere = LedgerError(
        f"this ledger has no leaf for event {id!r}",
        f"it was recorded by the replica {group.replica}",
        "ask there: each replica keeps a ledger in its folder",
    )
    try:
        leaf = ledger.leaf(group.leaf)
    except LedgerError:
        raise elsewhere from None
    if leaf.body != body_of(group, group.root):
        raise elsewhere
    return write_proof(events.rows(group.id), n, write_leaf_proof(ledger, leaf.index))


def _stamp(microseconds: int) -> str:
    seconds, rest = divmod(microseconds, 1_000_000)
    return utc_stamp(datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest))
