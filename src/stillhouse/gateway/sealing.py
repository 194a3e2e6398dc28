"""Prompts and answers sealed, so that deleting a few bytes makes many unreadable.

Each account has a data key for each day. It seals that day's texts (zstd, then AES-256-GCM with the event's
id and the account bound to it) and is itself kept only wrapped by a key that is derived from the store's
secret. Without the wrapped key nobody can open its texts, wherever copies of them lie; without the store's
secret nobody can open any.
"""

from __future__ import annotations

import os
from hashlib import sha256

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stillhouse.errors import StorageError

_NONCE = 12  # bytes, random: a data key seals far fewer than the 2**32 texts for which that is safe
_LENGTH = 8  # bytes that say where the request ends


class Sealer:
    """`under` names the secret without telling it. What is sealed as one of `what` opens as no other."""

    def __init__(self, secret: bytes, what: str = "kept texts") -> None:
        derived = HKDF(SHA256(), 32, None, f"stillhouse guard: {what}".encode()).derive(secret)
        self.under = sha256(b"name of a key" + derived).hexdigest()[:16]
        self._wrapping = AESGCM(derived)

    def fresh(self, account: str, day: int) -> bytes:
        """A new data key, wrapped."""
        return _sealed(self._wrapping, AESGCM.generate_key(256), _bound(account, str(day)))

    def unwrapped(self, wrapped: bytes, account: str, day: int) -> AESGCM:
        """Raises StorageError when it was wrapped under another secret, or for another account or day."""
        return AESGCM(_opened(self._wrapping, wrapped, _bound(account, str(day))))


def seal(key: AESGCM, id: str, account: str, request: bytes, answer: bytes) -> bytes:
    text = len(request).to_bytes(_LENGTH) + request + answer
    return _sealed(key, zstandard.compress(text), _bound(account, id))


def unseal(key: AESGCM, id: str, account: str, sealed: bytes) -> tuple[bytes, bytes]:
    """The request and the answer. Raises StorageError when the text is not this event's."""
    text = zstandard.decompress(_opened(key, sealed, _bound(account, id)))
    length = int.from_bytes(text[:_LENGTH])
    return text[_LENGTH : _LENGTH + length], text[_LENGTH + length :]


def _sealed(key: AESGCM, data: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + key.encrypt(nonce, data, bound)


def _opened(key: AESGCM, data: bytes, bound: bytes) -> bytes:
    try:
        return key.decrypt(data[:_NONCE], data[_NONCE:], bound)
    except InvalidTag:
        raise StorageError(
            "a kept text cannot be opened",
            "it was sealed under another secret, or changed since",
            "start with the secret that the store was used with before",
        ) from None


def _bound(*parts: str) -> bytes:
    return b"".join(len(part.encode()).to_bytes(_LENGTH) + part.encode() for part in parts)
