"""The ledger: every exchange with a teacher, every decision, every derived row; append-only, provable."""

from stillhouse.ledger.checkpoint import Checkpoint, read_checkpoint, verify_checkpoint
from stillhouse.ledger.keys import exchange_key, read_workspace_key, rotate_signing_key
from stillhouse.ledger.leaves import Leaf, LeafKind, canonical
from stillhouse.ledger.lookup import AttemptCounts, Spent, StoredExchange, nano
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.verify import Check, Verification

__all__ = [
    "AttemptCounts",
    "Check",
    "Checkpoint",
    "Leaf",
    "LeafKind",
    "Ledger",
    "Spent",
    "StoredExchange",
    "Verification",
    "canonical",
    "exchange_key",
    "nano",
    "read_checkpoint",
    "read_workspace_key",
    "rotate_signing_key",
    "verify_checkpoint",
]
