"""What shows that an event was recorded, in one file, without a word of any other event.

    {"event": CANONICAL JSON, "events": 9731, "hashes": [HEX, ...], "leaf": PROOF OF A LEAF, "n": 412, "v": 1}

The event is number `n` of the `events` of its group; the hashes lead from it to the group's root (RFC 6962),
which stands in a leaf `served` of the guard's ledger; and that leaf is shown to be in the log by a C2SP
tlog-proof. The other hashes tell nothing: each covers an event with an id that cannot be guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from stillhouse.errors import LedgerError
from stillhouse.guard.events import FIELDS, Event, Row, canonical, event_of
from stillhouse.ledger import Checkpoint, Leaf, merkle
from stillhouse.ledger.proof import read_proof


@dataclass(frozen=True, slots=True)
class Shown:
    """An event that is under a signed checkpoint, and the leaf that covers it."""

    event: Event
    leaf: Leaf
    checkpoint: Checkpoint


def root_of(rows: Sequence[Row]) -> bytes:
    """Merkle root over the events of a group."""
    return merkle.root_of([_hash(row) for row in rows])


def write_proof(rows: Sequence[Row], n: int, leaf: bytes) -> bytes:
    """The file for event `n` of a group; `leaf` is the tlog-proof of the group's leaf."""
    hashes = [_hash(row) for row in rows]

    def node(level: int, index: int) -> bytes:
        return merkle.root_of(hashes[index << level : (index + 1) << level])

    return orjson.dumps(
        {
            "event": canonical(rows[n]).decode(),
            "events": len(rows),
            "hashes": [each.hex() for each in merkle.inclusion_proof(node, n, len(rows))],
            "leaf": leaf.decode(),
            "n": n,
            "v": 1,
        }
    )


def read_event_proof(proof: bytes, public: bytes) -> Shown:
    """The event, when `public` (32 bytes) is the key that signed for it.

    Raises LedgerError when the file is no proof of an event, or shows nothing.
    """
    try:
        said = orjson.loads(proof)
        event, n, count = said["event"].encode(), said["n"], said["events"]
        hashes = [bytes.fromhex(each) for each in said["hashes"]]
        values = orjson.loads(event)
        row = tuple(values[name] for name in FIELDS)
        if said["v"] != 1 or canonical(row) != event or any(len(each) != 32 for each in hashes):
            raise ValueError("its event is not in canonical form")
        found, tlog = event_of(row), said["leaf"].encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error) or type(error).__name__
        raise LedgerError("this is no proof of an event", why, "ask for it anew") from None
    leaf, checkpoint = read_proof(tlog, public)
    body = leaf.body
    if (
        leaf.kind != "served"
        or body.get("count") != count
        or not merkle.verify_inclusion(hashes, n, count, merkle.leaf_hash(event), _root(body.get("root")))
    ):
        raise LedgerError(
            f"event {found.id} is not shown to have been recorded",
            "the hashes do not lead from it to the root in the leaf",
            "ask for the proof anew",
        )
    return Shown(found, leaf, checkpoint)


def _hash(row: Row) -> bytes:
    return merkle.leaf_hash(canonical(row))


def _root(said: object) -> bytes:
    try:
        return bytes.fromhex(str(said))
    except ValueError:
        return b""
