"""The workspace's keys: one names exchanges, one signs checkpoints, one `model.sig`. See docs/keys.md."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from hmac import digest as hmac_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from stillhouse.errors import LedgerError, UsageError, storage
from stillhouse.ledger.leaves import canonical
from stillhouse.workspace import Workspace, make_model_signing_key, pems, write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from stillhouse.ledger.store import Ledger

NOT_ASKED = frozenset({"stream", "stream_options", "user", "metadata"})


def exchange_key(
    workspace_key: bytes,
    *,
    path: str,
    endpoint: str,
    revision: str,
    body: Mapping[str, Any] | bytes,
    sample_index: int = 0,
    epoch: int = 0,
) -> str:
    """Names a question (64 hex digits): the same question has the same key in this workspace only.

    HMAC-SHA256 under the workspace key over the canonical JSON of {v, path, endpoint, revision, body,
    sample_index, epoch}. `path` is the route below the base URL, such as `/chat/completions`; `endpoint`
    the logical id of the server, never its host and port, which may change; `revision` the declared one,
    or for a local model the hash of its weights; `body` the request as sent. What does not change the
    answer (`stream`, `stream_options`, `user`, `metadata`) is left out of it; headers and secrets must not
    be in it. As bytes, `body` is canonical and without these. A refresh raises `epoch`. Raises LedgerError
    for a body that JSON cannot hold.
    """
    if not isinstance(body, bytes):
        body = canonical({name: value for name, value in body.items() if name not in NOT_ASKED})
    # The names are in canonical order.
    question = b'{"body":%b,"endpoint":%b,"epoch":%d,"path":%b,"revision":%b,"sample_index":%d,"v":1}' % (
        body,
        canonical(endpoint),
        epoch,
        canonical(path),
        canonical(revision),
        sample_index,
    )
    return hmac_digest(workspace_key, question, "sha256").hex()


def read_workspace_key(workspace: Workspace) -> bytes:
    """The 32 bytes for `exchange_key`. Raises UsageError when the file is missing or holds something else."""
    path = workspace.workspace_key
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise _lost(path, str(error)) from None
    if len(key) != 32:
        raise _lost(path, f"it holds {len(key)} bytes instead of 32")
    return key


def read_signing_key(workspace: Workspace) -> Ed25519PrivateKey:
    """Raises UsageError when the file is missing or not an Ed25519 key."""
    key = _read_private(workspace.signing_key)
    if not isinstance(key, Ed25519PrivateKey):
        raise _lost(workspace.signing_key, "it is not an Ed25519 key")
    return key


def read_model_signing_key(workspace: Workspace) -> ec.EllipticCurvePrivateKey:
    """The key that signs `model.sig`, made now where a workspace has none. Raises UsageError when the file
    holds something else."""
    make_model_signing_key(workspace)
    key = _read_private(workspace.model_signing_key)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _lost(workspace.model_signing_key, "it is not a P-256 key")
    return key


def read_public_key(workspace: Workspace) -> bytes:
    """The 32 bytes of the public key in force. Raises UsageError when the file is missing or damaged."""
    return read_public_pem(workspace.verifying_key)


def read_public_pem(path: Path) -> bytes:
    """The 32 bytes of a public key in a file. Raises UsageError when it is missing or damaged."""
    try:
        return public_of_pem(path.read_bytes())
    except (OSError, LedgerError) as error:
        raise _lost(path, str(error)) from None


def was_ours(public: bytes, workspace: Workspace) -> bool:
    """Whether a public key (32 bytes) is the workspace's, or was before it was changed."""
    earlier = workspace.earlier_verifying_key(public)  # named by four bytes of it, which others can have too
    return public == read_public_key(workspace) or (earlier.is_file() and read_public_pem(earlier) == public)


def public_of_pem(pem: bytes) -> bytes:
    """The 32 bytes of an Ed25519 public key. Raises LedgerError when it is none."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        key, why = None, str(error)
    else:
        why = "it is a key of another kind"
    if not isinstance(key, Ed25519PublicKey):
        raise LedgerError("this is no Ed25519 public key", why, "give the PEM file that the maker published")
    return public_bytes(key)


def public_bytes(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """The 32 raw bytes of the public key."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes_raw()


def public_pem(public: bytes) -> bytes:
    return Ed25519PublicKey.from_public_bytes(public).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def pre_authentication(kind: str, payload: bytes) -> bytes:
    """What is signed of a payload of this type: DSSE's pre-authentication encoding.

    https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
    """
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)


def signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def rotation_body(origin: str, old: bytes, new: bytes, signer: Ed25519PrivateKey | None) -> dict[str, Any]:
    """Body of the `correction` leaf that names a new signing key; without the old key it is unsigned."""
    body = {
        "what": "signing key replaced",
        "origin": origin,
        "old_public_key": base64.b64encode(old).decode(),
        "new_public_key": base64.b64encode(new).decode(),
    }
    signature = base64.b64encode(signer.sign(canonical(body))).decode() if signer else None
    return {**body, "signature": signature}


def rotation_signed(body: Mapping[str, Any]) -> bool | None:
    """Whether the old key signed the rotation; None when it bears no signature, because the key was lost."""
    if body["signature"] is None:
        return None
    statement = {name: value for name, value in body.items() if name != "signature"}
    try:
        old, signature = (base64.b64decode(body[name]) for name in ("old_public_key", "signature"))
    except (ValueError, TypeError):
        return False
    return signed_by(old, signature, canonical(statement))


def rotate_signing_key(workspace: Workspace, ledger: Ledger) -> int:
    """Replace both keys that sign; returns the leaf of the correction that the old key signed.

    A checkpoint by the old key comes before and one by the new key after. The old public key stays in
    keys/ under the first 8 hex digits of its bytes; the old private key is gone. If the process dies
    between the change of files and the leaf, the next checkpoint records the change without a signature.
    No leaf names the key of `model.sig`: every release holds the one that it was signed with.
    """
    old, new = read_signing_key(workspace), Ed25519PrivateKey.generate()
    ledger.checkpoint()
    body = rotation_body(ledger.origin, public_bytes(old), public_bytes(new), old)
    old_public = public_bytes(old)
    write_atomic(workspace.earlier_verifying_key(old_public), public_pem(old_public))
    for key, private, public in (
        (ec.generate_private_key(ec.SECP256R1()), workspace.model_signing_key, workspace.model_verifying_key),
        (new, workspace.signing_key, workspace.verifying_key),
    ):
        private_pem, pem = pems(key)
        _replace_private(private, private_pem)
        write_atomic(public, pem)
    leaf = ledger.append("correction", body)
    ledger.checkpoint()
    return leaf


def utc_now() -> datetime:
    return datetime.now(UTC)


def _read_private(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _lost(path, str(error)) from None


def _replace_private(path: Path, data: bytes) -> None:
    """As write_atomic, but never readable by others, not even for a moment."""
    fresh = path.with_name(f".{path.name}.new")
    with storage("write", path):
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _lost(path: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot use the key {path}",
        why,
        "restore it from a backup; see docs/keys.md for going on without one",
    )
