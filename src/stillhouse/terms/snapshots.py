"""Texts of terms as they were read, kept in the ledger, and what changed from one to the next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from difflib import unified_diff
from hashlib import sha256

from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger

_END = re.compile(r"(?<=[.;:!?])\s+")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One text of a row's terms. `clauses_sha256` is that of its clauses: pages change around them all the
    time. `text` is None where it was erased."""

    leaf: int
    row: str
    document: str
    sha256: str
    clauses_sha256: str
    read_on: date
    read_by: str
    text: str | None


def clauses(text: str) -> tuple[str, ...]:
    """The text as one clause a line, however its lines were broken and its spaces set."""
    return tuple(_END.split(" ".join(text.split())))


def clauses_digest(text: str) -> str:
    """SHA-256 (hex) of the text without regard to its white space."""
    return sha256("\n".join(clauses(text)).encode()).hexdigest()


def keep(ledger: Ledger, row: str, document: str, text: bytes, read_on: date, read_by: str) -> int:
    """The leaf that records this text, the text itself as content that can be erased; added unless the log
    has the same. Raises UsageError for an empty text."""
    plain = text.decode("utf-8-sig", errors="replace")
    if not plain.strip():
        raise UsageError(f"{document} is empty", "there is no text to keep", "save the text of the terms")
    body = {
        "row": row,
        "document": document,
        "sha256": sha256(text).hexdigest(),
        "clauses_sha256": clauses_digest(plain),
        "bytes": len(text),
        "read_on": read_on.isoformat(),
        "read_by": read_by,
        "method": "file named by the operator",
    }
    for leaf in ledger.leaves("terms_snapshot"):
        if leaf.body == body:
            return leaf.index
    return ledger.append("terms_snapshot", body, {"document": text})


def snapshots(ledger: Ledger, row: str) -> list[Snapshot]:
    """What was kept for a row, in the order of the log; the text of a declaration names no row."""
    found = []
    for leaf in ledger.leaves("terms_snapshot"):
        if leaf.body.get("row") != row:
            continue
        content = ledger.contents(leaf.index).get("document")
        found.append(
            Snapshot(
                leaf.index,
                row,
                leaf.body["document"],
                leaf.body["sha256"],
                leaf.body["clauses_sha256"],
                date.fromisoformat(leaf.body["read_on"]),
                leaf.body["read_by"],
                None if content is None else content.decode("utf-8-sig", errors="replace"),
            )
        )
    return found


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """A unified diff by clause; empty where nothing but white space changed. Raises UsageError where one of
    the texts was erased and they are not known to be the same."""
    if before.clauses_sha256 == after.clauses_sha256:
        return []
    for one in (before, after):
        if one.text is None:
            raise UsageError(
                f"the text of leaf {one.leaf} was erased",
                "the digests differ, so something changed, but not what",
                "compare with another snapshot, or read both texts again",
            )
    old, new = (f"leaf {one.leaf}, {one.document}, read on {one.read_on}" for one in (before, after))
    lines = clauses(before.text or ""), clauses(after.text or "")
    return list(unified_diff(*lines, fromfile=old, tofile=new, lineterm="", n=1))
