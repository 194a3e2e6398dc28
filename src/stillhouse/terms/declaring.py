"""Declarations: as a recipe has them, with the text that somebody read, and as leaves, each of them once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from stillhouse.ledger import LeafKind, Ledger
from stillhouse.ledger.quarantine import quarantined, reading_of, recalled_readings
from stillhouse.recipe import Declaration
from stillhouse.terms.asking import read_bounded
from stillhouse.terms.deciding import DeclaredTerms


def record_declaration(
    teacher: Mapping[str, str], declared: DeclaredTerms, text: bytes, ledger: Ledger
) -> tuple[int, int]:
    """The leaves of the text and of the declaration."""
    read_on = declared.read_on.isoformat()
    snapshot = once(
        ledger,
        "terms_snapshot",
        {
            "document": declared.document,
            "sha256": declared.sha256,
            "bytes": len(text),
            "read_on": read_on,
            "read_by": declared.declared_by,
            "method": "file named by the operator",
        },
        {"document": text},
    )
    authorisation = once(
        ledger,
        "authorisation",
        {**_said(teacher, declared), "terms_snapshot": snapshot},
    )
    return snapshot, authorisation


def _said(teacher: Mapping[str, str], declared: DeclaredTerms) -> dict[str, Any]:
    return {
        "teacher": dict(teacher),
        "declared_by": declared.declared_by,
        "scope": list(declared.scope),
        "about": list(declared.about),
        "read_on": declared.read_on.isoformat(),
        "document_sha256": declared.sha256,
    }


def once(
    ledger: Ledger, kind: LeafKind, body: Mapping[str, Any], contents: Mapping[str, bytes] | None = None
) -> int:
    """The leaf of this kind and body, added unless the log has it; decisions bear their day, and so recur."""
    there = recorded_as(ledger, kind, body)
    return ledger.append(kind, body, contents) if there is None else there


def recorded_as(ledger: Ledger, kind: LeafKind, body: Mapping[str, Any]) -> int | None:
    found = [leaf.index for leaf in ledger.leaves(kind) if leaf.body == body]
    recalled = quarantined(ledger) if found and kind == "decision" else ()
    return next((index for index in found if index not in recalled), None)


def read_declaration(
    declaration: Declaration, teacher: Mapping[str, str], ledger: Ledger
) -> tuple[DeclaredTerms, bytes]:
    """A declaration and its text; none when the file is missing, which the gate refuses. UsageError when it
    is unreadable."""
    text = read_bounded(Path(declaration.document), "the terms")
    declared = DeclaredTerms(
        document=Path(declaration.document).name,
        sha256=sha256(text).hexdigest() if text.strip() else "",
        read_on=declaration.read_on,
        declared_by=declaration.declared_by,
        scope=tuple(sorted(set(declaration.scope))),
        about=tuple(sorted(set(declaration.about))),
    )
    reading = reading_of(_said(teacher, declared))
    if reading is not None:
        declared = replace(declared, recalled=recalled_readings(ledger).get(reading))
    return declared, text
