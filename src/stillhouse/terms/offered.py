"""What a server says of its own terms to machines, at `WELL_KNOWN`, and what the gate makes of it.

The document that was fetched is kept as a terms snapshot, and the newest of a server speaks for it: as a row
of the layer "host", beside all others. So it can make the gate stricter about any model, and allow in its own
name alone: whose weights it serves, and under what licence, is not its to say. docs/guard-terms.md has the
format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import urlsplit

from stillhouse.ledger import Leaf, Ledger
from stillhouse.terms.facts import OPEN, Asked, Licence, Need, Row
from stillhouse.terms.permissions import OFFERED
from stillhouse.terms.snapshots import clauses_digest

WELL_KNOWN = "/.well-known/ai-terms.json"
SCHEMA = "ai-terms/1"
LARGEST = 64 << 10  # bytes of a document
WORDS = ("forbidden", "with_permission", "allowed")
Word = Literal["forbidden", "with_permission", "allowed"]


@dataclass(frozen=True, slots=True)
class Offer:
    """The provider's word on what its answers may train: other models, and models that compete with its own.
    `text`, `version` and `sha256` are of the terms that people read, `contact` is whom to ask."""

    training: Word
    competing: Word
    version: str
    text: str
    sha256: str
    contact: str


def read(data: bytes) -> Offer:
    """Raises ValueError, with what is wrong, for what is no such document. Unknown fields are passed over."""
    if len(data) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST >> 10} KiB")
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(said, dict):
        raise ValueError("it is no JSON object")
    if said.get("schema") != SCHEMA:
        raise ValueError(f"its `schema` is not {SCHEMA}")
    answers, terms = said.get("answers"), said.get("terms")
    if not isinstance(answers, dict) or not isinstance(terms, dict):
        raise ValueError("it lacks `answers` or `terms`")
    return Offer(
        _word(answers, "train_other_models"),
        _word(answers, "train_competing_models"),
        _line(terms, "version"),
        _line(terms, "url"),
        _line(terms, "sha256"),
        _line(said, "contact"),
    )


def origin_of(endpoint: str) -> str:
    """Scheme, host and port of a server; empty for what is no URL."""
    try:
        parts = urlsplit(endpoint)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}" if host else ""


def keep(ledger: Ledger, origin: str, data: bytes | None, today: date) -> int | None:
    """Record what a server said today, None for nothing at all; returns the leaf, or None where there is
    nothing to record. Silence is recorded only of a server that spoke before."""
    before = _newest(ledger, origin)
    if data is None and (before is None or before.body["state"] == "absent"):
        return None
    body: dict[str, Any] = {
        "row": _key(origin),
        "document": origin + WELL_KNOWN,
        "sha256": sha256(data or b"").hexdigest(),
        "clauses_sha256": clauses_digest((data or b"").decode("utf-8", "replace")),
        "bytes": len(data or b""),
        "read_on": today.isoformat(),
        "read_by": "stillhouse",
        "method": "fetched from the server",
        **_understood(data),
    }
    if before is not None and before.body == body:
        return before.index
    return ledger.append("terms_snapshot", body, {} if data is None else {"document": data})


@dataclass(frozen=True, slots=True)
class Heard:
    """`leaf` is the snapshot, `row` what the server said, None where `fault` says why that is unknown."""

    leaf: int
    row: Row | None
    fault: str


def heard(ledger: Ledger, asked: Asked) -> Heard | None:
    """The newest word of the server that is asked; None where it gave none. Weights at a server of one's own
    have no other server's terms."""
    origin = origin_of(asked.endpoint)
    if not origin or asked.access in OPEN:
        return None
    leaf = _newest(ledger, origin)
    if leaf is None or leaf.body["state"] == "absent":
        return None
    if leaf.body["state"] == "malformed":
        fault = f"{leaf.body['document']} tells nothing that can be relied on: {leaf.body['fault']}"
        return Heard(leaf.index, None, fault)
    document = ledger.contents(leaf.index).get("document")
    contact = "" if document is None else read(document).contact
    return Heard(leaf.index, _row(asked, leaf, contact), "")


def _row(asked: Asked, leaf: Leaf, contact: str) -> Row:
    said: Mapping[str, Any] = leaf.body["offer"]
    training, competing = said["training"], said["competing"]
    origin = origin_of(asked.endpoint)
    host = urlsplit(origin).hostname or ""
    wanted = {training} if asked.student.competes is False else {training, competing}
    asking = "with_permission" in wanted and "forbidden" not in wanted
    clause = (
        f"answers may train another model: {training.replace('_', ' ')}; "
        f"one that competes: {competing.replace('_', ' ')}"
    )
    permission = f"a permission of whoever runs {host}, whose grantor or `servers` name it"
    permission += f" (ask {contact})" if contact else ""
    licence = Need(
        "model_licence", "review", "the server speaks for itself; whose weights it serves is not known"
    )
    return Row(
        key=_key(origin),
        vendor=host,
        covers=f"all answers of {host}",
        access="api",
        models=(),
        licence=Licence(f"the terms of {host}"),
        trains_others="yes" if training == "allowed" else "no",
        trains_competing="yes" if competing == "allowed" else "no",
        verdict="allow" if training == "allowed" else "refuse",
        liftable=asking,
        clause=clause,
        clause_ref="answers",
        version=said["version"],
        source=leaf.body["document"],
        source_seen=True,
        read_via="stillhouse",
        read_on=date.fromisoformat(leaf.body["read_on"]),
        evidence="primary",
        confidence="high",
        lifted_by=permission if asking else "",
        conditions=(licence,),
    )


def _understood(data: bytes | None) -> dict[str, Any]:
    """What the gate decides by, which stays when the document is erased; whom to ask stands there alone."""
    if data is None:
        return {"state": "absent"}
    try:
        offer = read(data)
    except ValueError as error:
        return {"state": "malformed", "fault": str(error)}
    names = ("training", "competing", "version", "text", "sha256")
    return {"state": "read", "offer": {name: getattr(offer, name) for name in names}}


def _newest(ledger: Ledger, origin: str) -> Leaf | None:
    leaves = [leaf for leaf in ledger.leaves("terms_snapshot") if leaf.body.get("row") == _key(origin)]
    return leaves[-1] if leaves else None


def _key(origin: str) -> str:
    return f"{OFFERED}{origin}"


def _word(holder: Mapping[str, Any], name: str) -> Word:
    said = holder.get(name)
    for word in WORDS:
        if said == word:
            return word  # type: ignore[return-value]
    raise ValueError(f"its `{name}` is none of {', '.join(WORDS)}")


def _line(holder: Mapping[str, Any], name: str) -> str:
    """A line that can be shown to a person; empty where there is none."""
    said = holder.get(name, "")
    if not isinstance(said, str) or len(said) > 200 or not said.isprintable():
        raise ValueError(f"its `{name}` is no line of at most 200 characters")
    return said
