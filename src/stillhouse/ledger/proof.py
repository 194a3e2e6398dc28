"""One leaf and what shows that it is in the log, in one file (C2SP tlog-proof); nothing of other leaves.

c2sp.org/tlog-proof@v1
extra LEAF-IN-BASE64
index 1270
HASH-IN-BASE64
...

SIGNED CHECKPOINT
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import orjson

from stillhouse.errors import LedgerError
from stillhouse.ledger import merkle
from stillhouse.ledger.checkpoint import Checkpoint, verify_checkpoint
from stillhouse.ledger.leaves import Leaf

if TYPE_CHECKING:
    from stillhouse.ledger.store import Ledger

_HEADER = "c2sp.org/tlog-proof@v1"


def write_proof(ledger: Ledger, index: int) -> bytes:
    """Raises LedgerError when there is no such leaf. Makes a checkpoint, so that the leaf is under one."""
    leaf, checkpoint = ledger.leaf(index), ledger.checkpoint()
    hashes = (base64.b64encode(each).decode() for each in ledger.inclusion(index, checkpoint.size))
    extra = base64.b64encode(leaf.data).decode()
    return (
        "\n".join([_HEADER, f"extra {extra}", f"index {index}", *hashes, "", ""]).encode() + checkpoint.note
    )


def read_proof(proof: bytes, public: bytes) -> tuple[Leaf, Checkpoint]:
    """The leaf and the checkpoint under which it is, when `public` (32 bytes) signed that.

    Raises LedgerError when the file is no proof, or shows nothing.
    """
    head, gap, note = proof.partition(b"\n\n")
    try:
        header, extra, place, *rest = head.decode().split("\n")
        data, index = (
            base64.b64decode(extra.removeprefix("extra "), validate=True),
            place.removeprefix("index "),
        )
        hashes = [base64.b64decode(line, validate=True) for line in rest]
        leaf = orjson.loads(data)
        found = Leaf(int(index), leaf["kind"], leaf["time"], leaf["body"], data, merkle.leaf_hash(data))
        if (
            header != _HEADER
            or not gap
            or str(found.index) != index
            or any(len(each) != 32 for each in hashes)
        ):
            raise ValueError("its lines are not those of a proof")
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        why = str(error) or type(error).__name__
        raise LedgerError(
            "this is no proof of a leaf", why, "give a file that `stillhouse audit prove` wrote"
        ) from None
    checkpoint = verify_checkpoint(note, public)
    if not merkle.verify_inclusion(hashes, found.index, checkpoint.size, found.hash, checkpoint.root):
        raise LedgerError(
            f"leaf {found.index} is not shown to be in the log",
            "the hashes do not lead from it to the signed root",
            "ask for the proof anew",
        )
    return found, checkpoint
