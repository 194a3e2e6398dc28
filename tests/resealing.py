"""A release signed again after a change, as only whoever holds its keys could."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillhouse.ledger import Ledger, oms
from stillhouse.ledger.keys import read_model_signing_key, read_signing_key
from stillhouse.ledger.manifest import digests, seal
from stillhouse.workspace import Workspace


def seal_again(folder: Path, workspace: Workspace, name: str, key: Ed25519PrivateKey | None = None) -> None:
    with Ledger.open(workspace) as ledger:
        seal(folder, ledger.origin, name, key or read_signing_key(workspace))
    oms.sign_model(folder, folder.name, digests(folder), read_model_signing_key(workspace))
