"""A signal, and the STIX 2.1 object that it travels as. docs/guard-signals.md describes every field.

Nothing in it is free text: sketches are keyed, numbers lie between 0 and 1, labels come from a list. So there
is no field for a price, a customer or a prompt.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import digest as hmac_digest
from math import isfinite
from typing import Any, Final

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillhouse.errors import LedgerError, UsageError
from stillhouse.guard.signals.sketch import EMPTY, FEWEST, SLOTS, Keyed, Sketch, filled, keyed
from stillhouse.ledger.keys import pre_authentication, public_bytes, signed_by
from stillhouse.ledger.leaves import canonical

TYPE = "x-distillation-signal"
EXTENSION = "extension-definition--6d0fd1f6-3f5c-5d49-9a3c-0b7b4e6c6a51"
PAYLOAD = "application/stix+json;version=2.1"  # what is signed, as DSSE names types
AMBER = "marking-definition--f88d31f6-486f-44da-b317-01333bde0b82"  # TLP:AMBER, as STIX 2.1 defines it

KINDS: Final = ("distillation",)
LABELS: Final = (
    "template prompt-source reasoning-elicitation rubric-grading release-pivot many-accounts tooling".split()
)
# What the guard measures of an account (`guard.evidence`), each from 0 to 1.
BEHAVIOUR: Final = (
    "single tidy length answer label logprobs choices room cold hot reasoning steps grades preamble new far "
    "repeat templated asks ratio harvest even clock followed".split()
)
MOST_MARKS = 16
MOST_DAYS = 180  # of validity
MOST_BYTES = 16 * 1024  # of one object
MOST_SIGNALS = 500  # in one file
MOST_FILE = MOST_BYTES * MOST_SIGNALS

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_MARK = re.compile(r"[0-9a-f]{16}")
_PRIVATE = re.compile(r"@|://|\d{1,3}(\.\d{1,3}){3}|(?:[0-9a-f]{0,4}:){2,}|sk-", re.IGNORECASE)
_SPACE = uuid.UUID("0c6c9c3e-86b5-5f7e-9c0d-6f0d6a1d7a11")
_FIELDS = frozenset(
    "type spec_version id created_by_ref created modified revoked labels confidence object_marking_refs "
    "extensions kind recipient valid_from valid_until template prompt_source behaviour tooling "
    "signature".split()
)


@dataclass(frozen=True, slots=True)
class Signal:
    """What a house knows itself; `id` is its own and never travels. `marks` are words that tell a tool."""

    id: str
    created: datetime
    valid_until: datetime
    confidence: int  # of 100
    labels: tuple[str, ...]
    template: Sketch | None = None
    prompt_source: Sketch | None = None
    behaviour: Mapping[str, float] | None = None
    marks: tuple[str, ...] = ()
    kind: str = "distillation"


@dataclass(frozen=True, slots=True)
class Received:
    """A signal as somebody else sent it, checked. `object` is what was signed, and the signature."""

    id: str
    sender: str
    modified: datetime
    valid_from: datetime
    valid_until: datetime
    revoked: bool
    confidence: int
    labels: tuple[str, ...]
    template: Keyed | None
    prompt_source: Keyed | None
    behaviour: Mapping[str, float]
    marks: frozenset[str]
    object: Mapping[str, Any]


def refuse_wrong(signal: Signal) -> None:
    """Raises UsageError for a signal that may not travel."""
    mend = "see docs/guard-signals.md for what a signal may hold"
    if not 0 <= signal.confidence <= 100:
        raise UsageError("no such confidence", f"{signal.confidence} is not from 0 to 100", mend)
    if signal.kind not in KINDS or not signal.labels or not set(signal.labels) <= set(LABELS):
        raise UsageError("no such label", f"labels are {', '.join(LABELS)}, at least one", mend)
    if not 0 < (signal.valid_until - signal.created).total_seconds() <= MOST_DAYS * 86_400:
        raise UsageError("this signal does not expire in time", f"at most {MOST_DAYS} days are allowed", mend)
    for sketch in (signal.template, signal.prompt_source):
        if sketch is not None and filled(sketch) < FEWEST:
            raise UsageError(
                "the text is too short for a signal",
                f"its sketch fills {filled(sketch)} of {SLOTS} slots, and {FEWEST} are the fewest",
                "give more of it: some 250 words, or many prompts",
            )
    if not _is_behaviour(signal.behaviour or {}):
        raise UsageError("no such behaviour", f"numbers from 0 to 1 of {', '.join(BEHAVIOUR)}", mend)
    if len(signal.marks) > MOST_MARKS:
        raise UsageError("too many marks", f"{len(signal.marks)} of {MOST_MARKS}", mend)
    for mark in signal.marks:
        if _PRIVATE.search(mark) or not 3 <= len(mark) <= 64:
            raise UsageError(
                f"the mark {mark!r} may not travel",
                "it looks like an address, a mailbox or a secret, or is not 3 to 64 characters long",
                "name the tool alone, such as its user agent without a version",
            )
    if signal.template is None and signal.prompt_source is None and not signal.marks:
        raise UsageError("an empty signal", "without sketch and marks nothing can match it", mend)


def name_of(typed: str) -> str:
    """A house's name. Raises UsageError."""
    if not _NAME.fullmatch(typed):
        raise UsageError(
            f"{typed!r} is no name of a provider", "1 to 63 of a-z, 0-9, dot and dash", "use its domain"
        )
    return typed


def identity_id(house: str) -> str:
    return f"identity--{uuid.uuid5(_SPACE, house)}"


def salt_of(secret: bytes, recipient: str) -> bytes:
    """The salt (32 bytes) of one recipient's copies. `secret` is the sender's, 32 bytes."""
    return hmac_digest(secret, b"stillhouse signal salt " + recipient.encode(), "sha256")


def copy_id(salt: bytes, own: str) -> str:
    """The id of a recipient's copy: another one for each, so that two recipients share none."""
    return f"{TYPE}--{uuid.UUID(bytes=hmac_digest(salt, own.encode(), 'sha256')[:16], version=4)}"


def mark_of(salt: bytes, mark: str) -> str:
    return hmac_digest(salt, b"mark " + " ".join(mark.casefold().split()).encode(), "sha256")[:8].hex()


def copy_of(
    signal: Signal,
    *,
    sender: str,
    recipient: str,
    salt: bytes,
    key: Ed25519PrivateKey,
    now: datetime,
    revoked: bool = False,
) -> dict[str, Any]:
    """The signed STIX object for one recipient. A revoked one holds no sketch, number or mark. Raises
    UsageError for a signal that may not travel."""
    refuse_wrong(signal)
    made: dict[str, Any] = {
        "type": TYPE,
        "spec_version": "2.1",
        "id": copy_id(salt, signal.id),
        "created_by_ref": identity_id(sender),
        "created": stamp(signal.created),
        "modified": stamp(now),
        "revoked": revoked,
        "labels": sorted(set(signal.labels)),
        "confidence": signal.confidence,
        "object_marking_refs": [AMBER],
        "extensions": {EXTENSION: {"extension_type": "new-sdo"}},
        "kind": signal.kind,
        "recipient": recipient,
        "valid_from": stamp(signal.created),
        "valid_until": stamp(signal.valid_until),
    }
    if not revoked:
        for name, sketch in (("template", signal.template), ("prompt_source", signal.prompt_source)):
            if sketch is not None:
                made[name] = list(keyed(salt, sketch))
        if signal.behaviour:
            made["behaviour"] = {name: float(value) for name, value in signal.behaviour.items()}
        if signal.marks:
            made["tooling"] = sorted({mark_of(salt, mark) for mark in signal.marks})
    signature = key.sign(pre_authentication(PAYLOAD, canonical(made)))
    signed = {"keyid": public_bytes(key).hex()[:16], "sig": base64.b64encode(signature).decode()}
    return {**made, "signature": signed}


def read_copy(found: Any, *, sender: str, public: bytes, recipient: str) -> Received:
    """One STIX object, checked in every field. Raises UsageError for what the sender did not sign for this
    recipient, and for any field that is unknown, missing or out of bounds."""
    if not isinstance(found, Mapping) or found.get("type") != TYPE:
        raise _no_signal(f"it is of type {str(_get(found, 'type'))[:40]!r}, not {TYPE!r}")
    signature = found.get("signature")
    body = {name: value for name, value in found.items() if name != "signature"}
    try:
        data = canonical(body)
        if not isinstance(signature, Mapping) or set(signature) != {"keyid", "sig"}:
            raise ValueError("no signature")
        sig = base64.b64decode(signature["sig"], validate=True)
    except (LedgerError, ValueError, TypeError):
        raise _no_signal("it bears no signature, or cannot be read") from None
    if len(data) > MOST_BYTES:
        raise _no_signal(f"it has {len(data):,} bytes, and {MOST_BYTES:,} are the most")
    if not signed_by(public, sig, pre_authentication(PAYLOAD, data)):
        raise UsageError(
            "a signal's signature does not hold",
            f"it was changed on its way, or {sender} did not sign it",
            f"ask {sender} for it again, and whether its key changed",
        )
    if unknown := set(found) - _FIELDS:
        raise _no_signal(f"unknown field {sorted(unknown)[0][:40]!r}")
    if missing := (_FIELDS - {"template", "prompt_source", "behaviour", "tooling"}) - set(found):
        raise _no_signal(f"field {sorted(missing)[0]!r} is missing")
    if body["recipient"] != recipient:
        raise UsageError(
            "a signal for somebody else",
            f"{sender} made this copy for {str(body['recipient'])[:63]}, not for {recipient}",
            f"ask {sender} for your own copy, and tell it of this one",
        )
    if (wrong := _wrong(body, sender)) is not None:
        raise _no_signal(f"field {wrong!r} is out of bounds")
    return Received(
        body["id"],
        sender,
        moment(body["modified"]),
        moment(body["valid_from"]),
        moment(body["valid_until"]),
        body["revoked"],
        body["confidence"],
        tuple(body["labels"]),
        tuple(body["template"]) if "template" in body else None,
        tuple(body["prompt_source"]) if "prompt_source" in body else None,
        body.get("behaviour", {}),
        frozenset(body.get("tooling", ())),
        dict(found),
    )


def bundle_of(copies: Sequence[Mapping[str, Any]], sender: str, now: datetime) -> dict[str, Any]:
    """A STIX 2.1 bundle of these, of the sender's identity and of the extension's definition."""
    house = identity(sender)
    objects = [house, identity("stillhouse"), definition(), *copies]
    return {"type": "bundle", "id": f"bundle--{uuid.uuid4()}", "objects": objects}


def identity(house: str) -> dict[str, Any]:
    return {
        "type": "identity",
        "spec_version": "2.1",
        "id": identity_id(house),
        "created": "2026-11-01T00:00:00.000Z",
        "modified": "2026-11-01T00:00:00.000Z",
        "name": house,
        "identity_class": "organization",
    }


def definition() -> dict[str, Any]:
    return {
        "type": "extension-definition",
        "spec_version": "2.1",
        "id": EXTENSION,
        "created_by_ref": identity_id("stillhouse"),
        "created": "2026-11-01T00:00:00.000Z",
        "modified": "2026-11-01T00:00:00.000Z",
        "name": "Signal of distillation",
        "schema": "docs/guard-signals.md",
        "version": "1.0.0",
        "extension_types": ["new-sdo"],
    }


def objects_in(data: bytes) -> list[Any]:
    """The signals of a bundle or of a TAXII envelope, unchecked. Raises UsageError for what is neither."""
    if len(data) > MOST_FILE:
        raise _no_signal(f"the file has {len(data):,} bytes, and {MOST_FILE:,} are the most")
    try:
        found = orjson.loads(data)
        objects = found["objects"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise _no_signal("the file is no STIX bundle") from None
    if not isinstance(objects, list):
        raise _no_signal("the file is no STIX bundle")
    beside = ("identity", "extension-definition")
    signals = [one for one in objects if _get(one, "type") not in beside]
    if not 0 < len(signals) <= MOST_SIGNALS:
        raise _no_signal(f"the file has {len(signals):,} signals, and 1 to {MOST_SIGNALS} are allowed")
    return signals


def stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def moment(said: str) -> datetime:
    """Raises ValueError for what `stamp` does not write."""
    if not _STAMP.fullmatch(said):
        raise ValueError(said)
    return datetime.fromisoformat(said)


def _wrong(body: Mapping[str, Any], sender: str) -> str | None:
    """The first field that holds what it may not."""
    fixed = {
        "spec_version": "2.1",
        "created_by_ref": identity_id(sender),
        "object_marking_refs": [AMBER],
        "extensions": {EXTENSION: {"extension_type": "new-sdo"}},
    }
    for name, value in fixed.items():
        if body[name] != value:
            return name
    if body["kind"] not in KINDS:
        return "kind"
    if not isinstance(body["id"], str) or not re.fullmatch(TYPE + "--[0-9a-f-]{36}", body["id"]):
        return "id"
    if not isinstance(body["revoked"], bool):
        return "revoked"
    if type(body["confidence"]) is not int or not 0 <= body["confidence"] <= 100:
        return "confidence"
    if (
        not isinstance(body["labels"], list)
        or not body["labels"]
        or any(x not in LABELS for x in body["labels"])
    ):
        return "labels"
    try:
        moment(body["created"])
        moment(body["modified"])
        days = (moment(body["valid_until"]) - moment(body["valid_from"])).total_seconds() / 86_400
    except (ValueError, TypeError):
        return "valid_until"
    if not 0 < days <= MOST_DAYS:
        return "valid_until"
    for name in ("template", "prompt_source"):
        if name in body and not _is_keyed(body[name]):
            return name
    if not _is_behaviour(body.get("behaviour", {})):
        return "behaviour"
    marks = body.get("tooling", [])
    if not isinstance(marks, list) or len(marks) > MOST_MARKS:
        return "tooling"
    if not all(isinstance(mark, str) and _MARK.fullmatch(mark) for mark in marks):
        return "tooling"
    return None


def _is_keyed(found: Any) -> bool:
    if not isinstance(found, list) or len(found) != SLOTS:
        return False
    return all(type(value) is int and EMPTY <= value < 2**16 for value in found) and filled(found) >= FEWEST


def _is_behaviour(found: Any) -> bool:
    if not isinstance(found, Mapping) or any(name not in BEHAVIOUR for name in found):
        return False
    return all(
        type(value) in (int, float) and isfinite(value) and 0 <= value <= 1 for value in found.values()
    )


def _get(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, Mapping) else None


def _no_signal(why: str) -> UsageError:
    return UsageError("this is no signal", why, "nothing was taken in; ask its sender for a sound copy")
