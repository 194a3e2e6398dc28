"""Written permissions from a TOML file into the ledger, signed, and back out of it."""

from __future__ import annotations

import base64
import difflib
import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.keys import public_bytes, read_signing_key, signed_by, was_ours
from stillhouse.ledger.permissions import grant, standings
from stillhouse.ledger.quarantine import withdrawn
from stillhouse.terms.asking import read_bounded
from stillhouse.terms.facts import Mode, Use
from stillhouse.terms.permissions import Permission, Scope, from_statement, statement, to_sign
from stillhouse.workspace import Workspace

WHAT = "permission"  # tells these leaves from declarations, which are of the same kind


def read_permission(path: Path) -> tuple[Permission, bytes]:
    """A permission from a TOML file, and the text of its document, whose path is taken from that folder.

    Raises UsageError for what is missing, unknown or of the wrong kind.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}", str(error), "see docs/gate.md for what it holds") from None
    document = path.parent / str(said.get("document", ""))
    text = read_bounded(document, "the document") if said.get("document") else b""
    return make_permission(said, document.name, text, str(path)), text


def make_permission(said: Mapping[str, Any], document: str, text: bytes, where: str) -> Permission:
    """Raises UsageError, naming `where`. Without an id one is made from what the permission says, so that the
    same words make the same permission."""
    scope = said.get("scope")
    if not isinstance(scope, dict):
        raise UsageError(f"{where}: [scope] is missing", "it says what is permitted", "see docs/gate.md")
    _known(said, {*_TEXTS, *_SWITCHES, "id", "document", "scope", "valid_from", "valid_to"}, where)
    _known(scope, {field.name for field in fields(Scope)}, f"{where}, [scope]")
    if not text.strip():
        raise UsageError(
            f"{where}: the document {document!r} is missing or empty",
            "a permission is a text that somebody gave; its SHA-256 is recorded",
            "save that text as a file and name it",
        )
    first = _day(said, "valid_from", where, needed=True)
    assert first is not None
    made = Permission(
        id=_text(said, "id", where, ""),
        grantor=_text(said, "grantor", where),
        grantee=_text(said, "grantee", where),
        signatory=_text(said, "signatory", where),
        approver=_text(said, "approver", where),
        document=document,
        document_sha256=hashlib.sha256(text).hexdigest(),
        scope=Scope(
            models=_texts(scope, "models", where, needed=True),
            uses=_texts(scope, "uses", where, get_args(Use), needed=True),
            volume=_volume(scope, where),
            competing=_switch(scope, "competing", where, False),
            students=_texts(scope, "students", where),
            modes=_texts(scope, "modes", where, get_args(Mode)),
            territory=_texts(scope, "territory", where),
            servers=_texts(scope, "servers", where),
        ),
        valid_from=first,
        valid_to=_day(said, "valid_to", where),
        revocable=_switch(said, "revocable", where, True),
        disclosure=_switch(said, "disclosure", where, False),
    )
    if made.valid_to is not None and made.valid_to < made.valid_from:
        raise UsageError(
            f"{where}: it ends before it begins", f"{made.valid_from} to {made.valid_to}", "swap the two days"
        )
    if made.id:
        return made
    return replace(made, id=hashlib.sha256(to_sign(statement(made))).hexdigest()[:16])


def record(
    permission: Permission,
    text: bytes,
    ledger: Ledger,
    countersigned: tuple[bytes, bytes] | None = None,
) -> int:
    """Sign a permission with the workspace's key and record it; returns its leaf.

    `countersigned` are the grantor's public key (PEM, Ed25519) and its signature over `to_sign`. Raises
    UsageError for a signature that does not hold, and for an id that is recorded already.
    """
    said = statement(permission)
    message = to_sign(said)
    if any(each.id == permission.id for each in recorded(ledger)):
        raise UsageError(
            f"a permission {permission.id} is recorded already",
            "an id stands for one permission",
            "give another id; `stillhouse terms revoke` ends the first one",
        )
    key = read_signing_key(ledger.workspace)
    signatures = [_signature("workspace", public_bytes(key), key.sign(message))]
    if countersigned is not None:
        public, signature = _public(countersigned[0]), countersigned[1]
        if not signed_by(public, signature, message):
            raise UsageError(
                "the grantor's signature does not hold",
                "it is not over these bytes, or not by this key",
                "have the bytes signed that `stillhouse terms authorise --to-sign FILE` writes",
            )
        signatures.append(_signature("grantor", public, signature))
    body = {"what": WHAT, "permission": said, "signatures": signatures}
    return grant(
        ledger,
        body,
        {"document": text},
        permission.scope.volume,
        permission.valid_from,
        permission.valid_to,
    )


def recorded(ledger: Ledger) -> list[Permission]:
    """Every permission of the ledger, with what was had under it and whether its signatures hold."""
    found, recalls = [], withdrawn(ledger)
    for index, stands in standings(ledger).items():
        body = ledger.leaf(index).body
        fault = _fault(body, ledger.workspace)
        permission = from_statement(body["permission"])
        recalled = recalls.get(index)
        revoked = None if stands.revoked == recalled else stands.revoked
        found.append(
            replace(permission, leaf=index, used=stands.used, revoked=revoked, recalled=recalled, fault=fault)
        )
    return found


def _fault(body: Mapping[str, Any], workspace: Workspace) -> str:
    """What is wrong with a recorded permission's signatures; empty where all hold."""
    message = to_sign(body["permission"])
    if not any(each["by"] == "workspace" for each in body["signatures"]):
        return "nobody signed its record"
    for each in body["signatures"]:
        public, signature = base64.b64decode(each["key"]), base64.b64decode(each["sig"])
        if each["by"] == "workspace" and not was_ours(public, workspace):
            return "its record was signed with a key that this workspace never had"
        if not signed_by(public, signature, message):
            return f"the signature of the {each['by']} does not hold"
    return ""


def _signature(by: str, public: bytes, signature: bytes) -> dict[str, str]:
    key, sig = (base64.b64encode(part).decode() for part in (public, signature))
    return {"by": by, "key": key, "sig": sig}


def _public(pem: bytes) -> bytes:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            "cannot use the grantor's key", str(error), "give an Ed25519 public key, PEM"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError("cannot use the grantor's key", "it is no Ed25519 key", "give such a one, as PEM")
    return public_bytes(key)


_TEXTS = ("grantor", "grantee", "signatory", "approver")
_SWITCHES = ("revocable", "disclosure")


def _known(said: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for name in said.keys() - set(known):
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.4)
        mend = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(sorted(known))}"
        raise UsageError(f"{where}: unknown key `{name}`", "a permission says no such thing", mend)


def _text(said: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = said.get(name, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise UsageError(f"{where}: `{name}` is missing", "it is not a text, or empty", f"say the {name}")
    return value.strip()


def _texts(
    said: Mapping[str, Any], name: str, where: str, choices: Sequence[str] = (), needed: bool = False
) -> tuple[Any, ...]:
    value = said.get(name, [])
    texts = isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value)
    if not texts or (needed and not value):
        raise UsageError(f"{where}: `{name}` is not usable", "it is a list of texts", f"say the {name}")
    for each in value:
        if choices and each not in choices:
            raise UsageError(
                f"{where}: `{name}` is not usable",
                f"{each!r} is none of them",
                f"valid: {', '.join(choices)}",
            )
    return tuple(value)


def _switch(said: Mapping[str, Any], name: str, where: str, default: bool) -> bool:
    value = said.get(name, default)
    if type(value) is not bool:
        raise UsageError(f"{where}: `{name}` is not usable", f"it is {value!r}", "say true or false")
    return value


def _volume(scope: Mapping[str, Any], where: str) -> int | None:
    value = scope.get("volume")
    if value is not None and (type(value) is not int or value < 1):
        raise UsageError(
            f"{where}: `volume` is not usable", f"it is {value!r}", "say how many exchanges, or leave it out"
        )
    return value


def _day(said: Mapping[str, Any], name: str, where: str, needed: bool = False) -> date | None:
    value = said.get(name)
    if value is None and not needed:
        return None
    try:
        day = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        day = None
    if type(day) is not date:
        raise UsageError(f"{where}: `{name}` is not usable", "it is no day", "write it as 2026-12-31")
    return day
