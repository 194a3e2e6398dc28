"""The gate: no request leaves before it has decided, and every decision, refusals too, is a leaf.

Minimal so far, and closed by default: shipped teachers are allowed, any other teacher is refused unless
the operator declared which terms were read, when, by whom and for which use. It never says that something
is lawful; it says what text was named, by whom it was read and what they declared about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from stillhouse.errors import GateRefused, UsageError
from stillhouse.ledger import LeafKind, Ledger
from stillhouse.recipe import Declaration, Teacher
from stillhouse.terms.registry import TeacherFacts, Use, registry_digest, teacher_facts

POLICY = "minimal-1"
_LARGEST_DOCUMENT = 16 * 2**20


@dataclass(frozen=True, slots=True)
class DeclaredTerms:
    """An operator's declaration, its document read: `sha256` is empty when there was no text to read."""

    document: str
    sha256: str
    read_on: date
    declared_by: str
    scope: tuple[Use, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says: `terms` names the text that it rests on, `basis` who vouches for that."""

    verdict: Literal["allow", "refuse"]
    reason: str
    terms: str = ""
    read_on: date | None = None
    basis: Literal["registry", "declaration", "none"] = "none"


def decide(teacher: TeacherFacts, use: Use, declaration: DeclaredTerms | None, today: date) -> Decision:
    """Whether this teacher may be put to this use. Pure; what is not known is refused."""
    if use in teacher.uses:
        return Decision("allow", f"{teacher.terms}: allows {use}", teacher.terms, None, "registry")
    if declaration is None:
        return Decision("refuse", f"no terms are known for {teacher.model}, and none are declared")
    terms = f"{declaration.document} (SHA-256 {declaration.sha256[:12]}...)" if declaration.sha256 else ""
    refusal = ""
    if not declaration.sha256:
        refusal = f"the declared document {declaration.document} is missing or empty"
    elif not declaration.declared_by.strip():
        refusal = "the declaration names nobody who made it"
    elif declaration.read_on > today:
        refusal = (
            f"the declaration says that the terms were read on {declaration.read_on}, which is in the future"
        )
    elif use not in declaration.scope:
        scope = ", ".join(declaration.scope) or "nothing"
        refusal = f"the declared scope is {scope}, which does not include {use}"
    if refusal:
        return Decision("refuse", refusal, terms, declaration.read_on, "declaration")
    reason = f"{declaration.declared_by} declares that {terms}, read on {declaration.read_on}, allows {use}"
    return Decision("allow", reason, terms, declaration.read_on, "declaration")


def admit(teacher: Teacher, use: Use, ledger: Ledger, now: datetime) -> int:
    """Decide about a recipe's teacher and record it; returns the decision's leaf, which exchanges name.

    Of imported answers only the importer knows who gave them, so no shipped teacher's name allows their use.
    Records the declared document (as erasable content) and the authorisation once for each distinct
    declaration; an equal decision of the same UTC day is used again. Raises GateRefused, after recording
    the refusal.
    """
    if teacher.imported:
        facts = TeacherFacts(teacher.model, "import")
    else:
        facts = teacher_facts(teacher.model, teacher.endpoint, teacher.revision)
    return _admit(facts, use, teacher.terms, ledger, now, _recipe_lines(now))


def admit_import(teacher_name: str, declaration: Declaration | None, ledger: Ledger, now: datetime) -> int:
    """As `admit`, for answers that were collected elsewhere and are to be training targets.

    The name is the importer's claim, so a shipped teacher's name needs a declaration like any other.
    """
    facts = TeacherFacts(teacher_name, "import")
    return _admit(facts, "train_target", declaration, ledger, now, _import_lines(now))


def _recipe_lines(now: datetime) -> str:
    return (
        "[teacher.terms]\n"
        'document = "terms.txt"          # the text that you read, saved as a file\n'
        f"read_on = {now.astimezone(UTC).date()}\n"
        'declared_by = "NAME, ROLE"'
    )


def _import_lines(now: datetime) -> str:
    return (
        "stillhouse import ... --terms terms.txt"
        f' --read-on {now.astimezone(UTC).date()} --declared-by "NAME, ROLE"\n'
        "where terms.txt holds the text that you read"
    )


def _admit(
    facts: TeacherFacts, use: Use, declaration: Declaration | None, ledger: Ledger, now: datetime, lines: str
) -> int:
    text = _read_document(declaration) if declaration else b""
    declared = _declared(declaration, text) if declaration else None
    # A date lies in the future only when it does so everywhere: the operator may live at UTC+14.
    decision = decide(facts, use, declared, (now.astimezone(UTC) + timedelta(hours=14)).date())
    body: dict[str, Any] = {
        "on": now.astimezone(UTC).date().isoformat(),
        "teacher": {"model": facts.model, "access": facts.access, "endpoint": facts.endpoint}
        | {"revision": facts.revision},
        "use": use,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "terms": decision.terms,
        "read_on": decision.read_on.isoformat() if decision.read_on else None,
        "basis": decision.basis,
        "policy": POLICY,
        "registry_sha256": registry_digest(),
    }
    if declared and declared.sha256 and decision.basis == "declaration":
        body |= _record_declaration(facts, declared, text, ledger)
    leaf = _once(ledger, "decision", body)
    if decision.verdict == "refuse":
        raise _refused(facts, use, decision, lines)
    return leaf


def _record_declaration(
    facts: TeacherFacts, declared: DeclaredTerms, text: bytes, ledger: Ledger
) -> dict[str, int]:
    read_on = declared.read_on.isoformat()
    snapshot = _once(
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
    authorisation = _once(
        ledger,
        "authorisation",
        {
            "teacher": {"model": facts.model, "access": facts.access, "endpoint": facts.endpoint}
            | {"revision": facts.revision},
            "declared_by": declared.declared_by,
            "scope": list(declared.scope),
            "read_on": read_on,
            "document_sha256": declared.sha256,
            "terms_snapshot": snapshot,
        },
    )
    return {"terms_snapshot": snapshot, "authorisation": authorisation}


def _once(
    ledger: Ledger, kind: LeafKind, body: Mapping[str, Any], contents: Mapping[str, bytes] | None = None
) -> int:
    """The leaf of this kind and body, added unless the log has it; decisions bear their day, and so recur."""
    for leaf in ledger.leaves(kind):
        if leaf.body == body:
            return leaf.index
    return ledger.append(kind, body, contents)


def _declared(declaration: Declaration, text: bytes) -> DeclaredTerms:
    return DeclaredTerms(
        document=Path(declaration.document).name,
        sha256=sha256(text).hexdigest() if text.strip() else "",
        read_on=declaration.read_on,
        declared_by=declaration.declared_by,
        scope=tuple(sorted(set(declaration.scope))),
    )


def _read_document(declaration: Declaration) -> bytes:
    """Its bytes; none when the file is missing, which the gate refuses. UsageError when unreadable."""
    path = Path(declaration.document)
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_DOCUMENT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise UsageError(
            f"cannot read the terms {path}", str(error), "give a readable file with their text"
        ) from None
    if len(text) > _LARGEST_DOCUMENT:
        raise UsageError(
            f"the terms {path} are too long",
            f"more than {_LARGEST_DOCUMENT // 2**20} MiB",
            "give the text of the terms alone",
        )
    return text


def _refused(facts: TeacherFacts, use: Use, decision: Decision, lines: str) -> GateRefused:
    where = f" at {facts.endpoint}" if facts.endpoint else ""
    return GateRefused(
        f"the teacher {facts.model}{where} may not be used as {use}",
        decision.reason,
        f"read the teacher's terms; if they allow this use, declare so:\n{lines}",
    )
