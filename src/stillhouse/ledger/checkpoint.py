"""Checkpoints: a signed statement of the log's size and root, as C2SP tlog-checkpoint on C2SP signed-note.

stillhouse/1f2e3d4c5b6a7988
1270
qINS1GRFhWHwdkUeqLEoP4yEMkTBBzxBkGwGQlVlVcs=

— stillhouse/1f2e3d4c5b6a7988 KEY-ID-AND-SIGNATURE-IN-BASE64
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillhouse.errors import LedgerError
from stillhouse.ledger.keys import public_bytes, signed_by

_ED25519 = b"\x01"
_MARK = "— "


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log had `size` leaves with this Merkle root; `note` is the signed text that says so."""

    origin: str
    size: int
    root: bytes
    note: bytes


def sign_checkpoint(origin: str, size: int, root: bytes, key: Ed25519PrivateKey) -> Checkpoint:
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    return Checkpoint(origin, size, root, sign_note(origin, text, key))


def sign_note(name: str, text: str, key: Ed25519PrivateKey) -> bytes:
    """A C2SP signed-note by one signer; `text` ends with a newline."""
    signature = key_id(name, public_bytes(key)) + key.sign(text.encode())
    return f"{text}\n{_MARK}{name} {base64.b64encode(signature).decode()}\n".encode()


def read_checkpoint(note: bytes) -> Checkpoint:
    """Parse a checkpoint without looking at its signatures. Raises LedgerError when it is none."""
    text, _ = note_parts(note)
    lines = text.split("\n")
    try:
        origin, size, root = lines[0], lines[1], base64.b64decode(lines[2], validate=True)
        plain = base64.b64encode(root).decode() == lines[2]
        if not origin or str(int(size)) != size or int(size) < 0 or len(root) != 32 or not plain:
            raise ValueError
    except (IndexError, ValueError, binascii.Error):
        raise _not_a_checkpoint("its first three lines are not an origin, a size and a root") from None
    return Checkpoint(origin, int(size), root, note)


def signer_of(note: bytes, keys: Iterable[bytes]) -> bytes | None:
    """Which of these Ed25519 public keys (32 bytes each) signed the note; None when none did."""
    text, signatures = note_parts(note)
    origin = text.split("\n", 1)[0]
    for public in keys:
        wanted = key_id(origin, public)
        for name, blob in signatures:
            if name == origin and blob[:4] == wanted and signed_by(public, blob[4:], text.encode()):
                return public
    return None


def verify_checkpoint(note: bytes, public: bytes) -> Checkpoint:
    """The checkpoint, when `public` (32 bytes) signed it. Raises LedgerError when not, or when it is none."""
    checkpoint = read_checkpoint(note)
    if signer_of(note, [public]) is None:
        raise LedgerError(
            "the checkpoint's signature does not hold",
            f"it was not signed by the key {public.hex()[:8]}..., or was changed after signing",
            "use the public key that came from the log's operator, and an unchanged checkpoint",
        )
    return checkpoint


def key_id(name: str, public: bytes) -> bytes:
    """4 bytes: SHA-256 over name, newline, algorithm 1 (Ed25519) and public key (C2SP signed-note)."""
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def note_text(note: bytes) -> str:
    """What a signed note says, whoever signed it. Raises LedgerError when it is none."""
    return note_parts(note)[0]


def note_parts(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The signed text with its last newline, and the signatures as (name, key id + signature)."""
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise _not_a_checkpoint("it is not UTF-8 text") from None
    text, gap, tail = whole.rpartition("\n\n")
    if not gap or not tail.endswith("\n"):
        raise _not_a_checkpoint("it has no signature lines after an empty line")
    signatures = []
    for line in tail[:-1].split("\n"):
        name, space, blob = line.removeprefix(_MARK).partition(" ")
        try:
            raw = base64.b64decode(blob, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        plain = base64.b64encode(raw).decode() == blob  # the same bits have other spellings
        if not line.startswith(_MARK) or not name or not space or len(raw) < 5 or not plain:
            raise _not_a_checkpoint(f"{line[:60]!r} is not a signature line")
        signatures.append((name, raw))
    return text + "\n", signatures


def _not_a_checkpoint(why: str) -> LedgerError:
    return LedgerError("this is not a checkpoint", why, "give a file that `stillhouse ledger export` wrote")
