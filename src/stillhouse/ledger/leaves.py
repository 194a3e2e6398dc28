"""A leaf: RFC 8785 canonical JSON under 64 KiB, with commitments in place of any text.

    {"body": {...}, "commitments": {NAME: HEX}, "kind": KIND, "time": "2026-11-21T09:30:00.000000Z", "v": 1}

A commitment is HMAC-SHA256 with a random salt of 32 bytes as the key and the content's bytes as the
message. Salt and content lie apart and can be erased together; what stays cannot be guessed from then on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import digest as hmac_digest
from typing import Any, Literal, NamedTuple, get_args

import orjson
import rfc8785

from stillhouse.errors import LedgerError
from stillhouse.ledger.merkle import leaf_hash

LeafKind = Literal[
    "terms_snapshot",
    "authorisation",
    "decision",
    "exchange",
    "import",
    "transform",
    "row",
    "train_run",
    "evaluation",
    "release",
    "tombstone",
    "correction",
    "served",
    "signal",
    "standing",
    "cascade",
]
KINDS: frozenset[str] = frozenset(get_args(LeafKind))
KEYED = frozenset({"exchange", "import"})
LIMIT = 65_535
SALT_BYTES = 32

_SAFE = 2**53 - 1
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A stored leaf: `data` is the canonical JSON, `hash` the RFC 6962 leaf hash over it."""

    index: int
    kind: str
    time: str
    body: dict[str, Any]
    data: bytes
    hash: bytes


class NewLeaf(NamedTuple):
    """A leaf that is ready to be stored; `contents` are (name, salt, bytes)."""

    kind: str
    time: str
    data: bytes
    hash: bytes
    key: bytes | None
    contents: tuple[tuple[str, bytes, bytes], ...]


def canonical(value: Any) -> bytes:
    """RFC 8785 canonical JSON.

    Raises LedgerError for what JSON cannot hold: NaN, infinities, numbers that are written as integers
    beyond 2**53 - 1, lone surrogates, keys that are not strings.
    """
    try:
        # For plain values orjson's sorted output is the canonical form, 10 times faster.
        if _plain(value):
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        data = rfc8785.dumps(value)
        # A float such as 2.0**53 is written as an integer that may not be read back.
        rfc8785.dumps(orjson.loads(data))
        return data
    except (rfc8785.CanonicalizationError, orjson.JSONEncodeError, RecursionError, UnicodeError) as error:
        raise LedgerError(
            "a record cannot be written to the ledger",
            f"it has no canonical JSON form: {error}",
            "this is a defect of stillhouse; please report it with the command that you ran",
        ) from error


def new_leaf(
    kind: LeafKind, body: Mapping[str, Any], contents: Mapping[str, bytes], time: datetime
) -> NewLeaf:
    """Raises LedgerError for an unknown kind, a body without canonical form, or a leaf of 64 KiB or more."""
    if kind not in KINDS:
        raise LedgerError(
            f"no leaf kind {kind!r}", f"kinds are {', '.join(sorted(KINDS))}", "use one of them"
        )
    random = os.urandom(SALT_BYTES * len(contents))
    salts = (random[at : at + SALT_BYTES] for at in range(0, len(random), SALT_BYTES))
    salted = tuple((name, salt, data) for (name, data), salt in zip(contents.items(), salts, strict=True))
    stamp = utc_stamp(time)
    data = canonical(
        {
            "body": dict(body),
            "commitments": {name: commitment(salt, content) for name, salt, content in salted},
            "kind": kind,
            "time": stamp,
            "v": 1,
        }
    )
    if len(data) > LIMIT:
        raise LedgerError(
            f"a leaf of kind {kind} is too long",
            f"it has {len(data):,} bytes and the log takes at most {LIMIT:,}",
            "put the long part into the leaf's contents",
        )
    return NewLeaf(kind, stamp, data, leaf_hash(data), _key_of(kind, body), salted)


def read_leaf(index: int, kind: str, time: str, data: bytes, digest: bytes) -> Leaf:
    """Raises LedgerError when the stored bytes are not a leaf."""
    try:
        body = orjson.loads(data)["body"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise LedgerError(
            f"leaf {index} of the ledger is damaged",
            "its bytes are not a leaf's canonical JSON",
            "see what else is wrong with `stillhouse ledger verify`, and restore the ledger from a backup",
        ) from None
    return Leaf(index, kind, time, body, data, digest)


def commitment(salt: bytes, content: bytes) -> str:
    return hmac_digest(salt, content, "sha256").hex()


def utc_stamp(time: datetime) -> str:
    there = time if time.tzinfo is UTC else time.astimezone(UTC)
    return there.isoformat(timespec="microseconds")[:26] + "Z"


def key_bytes(key: str) -> bytes:
    """Raises LedgerError unless key is 64 lower-case hex digits."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise LedgerError(f"{key!r} is not an exchange key", "a key is 64 hex digits", "use `exchange_key`")
    return bytes.fromhex(key)


def _key_of(kind: str, body: Mapping[str, Any]) -> bytes | None:
    """An exchange or import that carries a key is found by it."""
    return key_bytes(body["key"]) if kind in KEYED and "key" in body else None


def _plain(value: Any) -> bool:
    """Exact built-in types, ASCII keys, and numbers that every writer of JSON writes alike."""
    # A list that grows while it is gone through: this runs for every leaf written or verified and for every
    # question, and is three times as fast as calling itself.
    todo = [value]
    for item in todo:
        kind = type(item)
        if kind is str or item is None or kind is bool:
            continue
        if kind is dict:
            for key in item:
                if type(key) is not str or not key.isascii():
                    return False
            todo += item.values()
        elif kind is list or kind is tuple:
            todo += item
        elif kind is int:
            if not -_SAFE <= item <= _SAFE:
                return False
        elif kind is not float or not 1e-4 < abs(item) < 1e15 or item.is_integer():
            return False
    return True
