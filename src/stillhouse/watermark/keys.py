"""The keys of watermarks: made, derived for an account, written to a file and read from it.

A key file is JSON with a secret of 32 bytes, so it is readable by its owner only. The id says which key it
is and nothing about it, and goes into records and headers. A key is never changed: rotating makes a new one,
and texts marked before are found with the old ones, which are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from stillhouse.errors import UsageError, storage
from stillhouse.watermark.hashing import SipKey
from stillhouse.watermark.schemes import Scheme, described, read_scheme
from stillhouse.workspace import Workspace, write_private

_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Key:
    """`account` names the customer that the key was derived for, "" where it is the provider's own."""

    scheme: Scheme
    secret: bytes = field(repr=False)
    created: datetime
    account: str = ""

    @property
    def id(self) -> str:
        """8 hex digits of a hash of the secret; the provider's key keeps its own in those derived from it."""
        return hashlib.sha256(b"stillhouse watermark key\0" + self.secret).hexdigest()[:8]

    @property
    def sip(self) -> SipKey:
        """The key of the keyed hash: another for each scheme and width, so that a secret may serve two."""
        purpose = f"hash\0{self.scheme.name}\0{self.scheme.width}"
        half = _derived(self.secret, purpose)
        return int.from_bytes(half[:8], "little"), int.from_bytes(half[8:16], "little")


def new_key(scheme: Scheme, now: datetime) -> Key:
    return Key(scheme, secrets.token_bytes(_SECRET_BYTES), now)


def account_key(key: Key, account: str) -> Key:
    """The key that marks the answers of one account: HMAC-SHA256 of its name under the provider's secret."""
    return Key(key.scheme, _derived(key.secret, f"account\0{account}"), key.created, account)


def decoy_keys(key: Key, count: int) -> list[Key]:
    """Keys that marked nothing, the same ones each time: what a text scores under them is chance."""
    return [Key(key.scheme, _derived(key.secret, f"decoy\0{at}"), key.created) for at in range(count)]


def write_key(key: Key, path: Path) -> None:
    """Mode 0600; the file must not be there."""
    row = {
        "id": key.id,
        "created": key.created.astimezone(UTC).isoformat(timespec="seconds"),
        "scheme": described(key.scheme),
        "account": key.account,
        "secret": key.secret.hex(),
    }
    write_private(path, (json.dumps(row, indent=2) + "\n").encode())


def read_key(path: Path) -> Key:
    """Raises UsageError when the file is missing or holds no key."""
    try:
        row = json.loads(path.read_bytes())
        secret = bytes.fromhex(row["secret"])
        created = datetime.fromisoformat(row["created"])
        key = Key(read_scheme(row["scheme"]), secret, created, str(row["account"]))
        if len(secret) != _SECRET_BYTES or row["id"] != key.id:
            raise ValueError("its id does not belong to its secret")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"cannot use the watermark key {path}",
            str(error) or type(error).__name__,
            "restore it from a backup; `stillhouse watermark rotate` makes a new one",
        ) from error
    return key


def workspace_keys(workspace: Workspace) -> list[Key]:
    """Every key of the workspace, the newest first: that one is in force."""
    keys = [read_key(path) for path in workspace.watermark_keys()]
    return sorted(keys, key=lambda key: key.created, reverse=True)


def rotate(workspace: Workspace, scheme: Scheme, now: datetime) -> tuple[Key, Path]:
    """Make a key that is from now on the newest. Raises StorageError when it cannot be written."""
    key = new_key(scheme, now)
    path = workspace.watermark_key(key.id)
    with storage("write", path):
        write_key(key, path)
    return key, path


def chosen(keys: Sequence[Key], accounts: Sequence[str]) -> list[Key]:
    """The keys themselves and, for every account, those derived from them."""
    return [*keys, *(account_key(key, account) for key in keys for account in accounts)]


def _derived(secret: bytes, purpose: str) -> bytes:
    return hmac.digest(secret, f"stillhouse watermark\0{purpose}".encode(), "sha256")
