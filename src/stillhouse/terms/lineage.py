"""A teacher's own teachers: known where it is a release of stillhouse whose signed record says who they were.

A student of a student learned from both teachers, so the terms of each are weighed as if it taught here. What
the record says is its maker's word under its maker's key; where the signature or a digest does not hold,
nothing is known, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from stillhouse.errors import LedgerError
from stillhouse.ledger.checkpoint import signer_of
from stillhouse.ledger.keys import public_of_pem, was_ours
from stillhouse.ledger.manifest import NAME, Manifest, read_manifest, sha256_of
from stillhouse.terms.deciding import Decision, DeclaredTerms, Lifter, Reason, decide, gap_in
from stillhouse.terms.facts import Access, Asked, Row, Verdict
from stillhouse.terms.permissions import Permission
from stillhouse.terms.registry import Registry
from stillhouse.terms.ruling import ALLOWED, strictest
from stillhouse.workspace import Workspace

PROOFS = "provenance"
TEACHERS = f"{PROOFS}/teachers.json"
KEY = f"{PROOFS}/public-key.pem"
TOPIC = "lineage"  # what a declaration is about that speaks for teachers of whom nothing is known
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True, slots=True)
class Past:
    """One that taught the teacher, or taught one that did. `decided` are the leaves, in the log of whoever
    made the teacher, of the decisions that allowed that, with all further up; empty where one did not."""

    model: str
    revision: str
    access: Access
    host: str
    decided: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """`ours` says whether this workspace's key signed the record, `unknown` why nothing is known."""

    release: str
    manifest_sha256: str
    signed_by: str
    ours: bool
    unknown: str = ""
    teachers: tuple[Past, ...] = ()
    said: tuple[Mapping[str, Any], ...] = ()

    def record(self) -> dict[str, Any]:
        """As decisions and `teachers.json` have it."""
        return {
            "release": self.release,
            "manifestSha256": self.manifest_sha256,
            "signedBy": self.signed_by,
            "unknown": self.unknown,
            "teachers": [dict(each) for each in self.said],
        }


def read_lineage(folder: Path, workspace: Workspace) -> Lineage | None:
    """What a model's folder says of who taught it; None for one that is no release."""
    if not (folder / TEACHERS).is_file() and not ((folder / NAME).is_file() and (folder / PROOFS).is_dir()):
        return None
    try:
        note, public = (folder / NAME).read_bytes(), public_of_pem((folder / KEY).read_bytes())
        manifest = read_manifest(note)
        fault = _fault(folder, manifest, public)
        entries: Any = json.loads((folder / TEACHERS).read_bytes())
        teachers = tuple(_all(entries))
        said = tuple(map(_shortly, entries))
    except (OSError, LedgerError) as error:
        return Lineage(folder.name, "", "", False, f"its record cannot be read: {error}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Lineage(folder.name, "", "", False, f"its record is not in its form ({type(error).__name__})")
    fault = fault or next(_gaps(entries), "") or ("" if teachers else "it names no teacher")
    digest, ours = sha256(note).hexdigest(), was_ours(public, workspace)
    if fault:
        return Lineage(manifest.release, digest, "", False, fault)
    return Lineage(manifest.release, digest, public.hex(), ours, "", teachers, said)


def weigh(
    decision: Decision,
    asked: Asked,
    lineage: Lineage,
    table: Registry,
    permissions: Sequence[Permission],
    declarations: Sequence[DeclaredTerms],
    today: date,
    recalled: Collection[int],
) -> tuple[Decision, list[Row]]:
    """The decision about a teacher together with those about its own teachers, and the rows of these. The
    strictest counts, and obligations add up; `recalled` are the decisions of this log that are."""
    named = [each for each in declarations if each.about]  # one about the teacher is not about its teachers
    if lineage.unknown:
        return _joined(decision, [_of_unknown(asked, lineage, named, today)]), []
    made: list[Decision] = []
    found: list[Row] = []
    for past in dict.fromkeys(lineage.teachers):
        theirs = _asked(asked, past)
        rows = table.matching(theirs)
        one = decide(theirs, rows, permissions, named, today, further=0)
        if not rows and not one.allowed:
            one = _by_record(one, theirs, lineage, past, recalled)
        made.append(_about(one, past, lineage))
        found += rows
    return _joined(decision, made), found


def _of_unknown(
    asked: Asked, lineage: Lineage, declarations: Sequence[DeclaredTerms], today: date
) -> Decision:
    unknown = f"who taught {lineage.release} is unknown: {lineage.unknown}"
    for each in declarations:
        if TOPIC in each.about and not gap_in(each, asked.use, today):
            said = f"{unknown}; {each.says(asked.use, TOPIC)}"
            return Decision("allow", said, basis="declaration", read_on=each.read_on, declared=(each,))
    lift = f'find out who did; if their terms allow this use, declare so, with about = ["{TOPIC}"]'
    return Decision("review", unknown, lifts=(lift,), to_declare=(TOPIC,))


def _by_record(
    decision: Decision, asked: Asked, lineage: Lineage, past: Past, recalled: Collection[int]
) -> Decision:
    """For one of whom no row speaks: what this workspace decided when it taught holds; what others say they
    decided is for a person to look at."""
    if lineage.ours and past.decided and not {*past.decided} & {*recalled}:
        leaves = ", ".join(map(str, past.decided))
        return Decision("allow", f"its teaching was allowed by the decisions in leaves {leaves}")
    about = f'about = ["{past.model}"]'
    lift = f"read the terms of {past.model}; if they allow this use, declare so, with {about}"
    verdict: Verdict = "review" if past.decided and not lineage.ours else "refuse"
    recorded = "; its maker's record says that it was allowed" if past.decided else ""
    reason = f"{decision.reason}{recorded}"
    return replace(decision, verdict=verdict, reason=reason, lifts=(lift,), to_declare=(past.model,))


def _asked(asked: Asked, past: Past) -> Asked:
    """The same use of one that taught the teacher; what is known of the teacher alone is left out."""
    endpoint = f"https://{past.host}" if past.host else ""
    return Asked(past.model, past.revision, past.access, endpoint, asked.use, asked.student, asked.operator)


def _about(decision: Decision, past: Past, lineage: Lineage) -> Decision:
    by = "this workspace's" if lineage.ours else f"the key {lineage.signed_by[:8]}...'s"
    whose = f"{past.model}, which taught {lineage.release} by {by} word"
    reasons = tuple(replace(reason, text=f"{reason.text} ({whose})") for reason in _reasons(decision))
    return replace(decision, reasons=reasons)


def _reasons(decision: Decision) -> tuple[Reason, ...]:
    if decision.reasons:
        return decision.reasons
    lifted: Lifter = "declaration" if decision.declared else "authorisation" if decision.permissions else ""
    text = decision.terms or "terms that no row has"
    return (
        Reason("", decision.verdict, text, "", decision.read_on, "", "", "", "", (decision.reason,), lifted),
    )


def _joined(decision: Decision, others: Sequence[Decision]) -> Decision:
    every = [decision, *others]
    final = strictest(each.verdict for each in every)
    reasons = [reason for each in every for reason in _reasons(each)]
    decisive = [reason for reason in reasons if reason.verdict == final] or reasons
    permissions = dict.fromkeys(leaf for each in every for leaf in each.permissions)
    declared = dict.fromkeys(text for each in every for text in each.declared)
    return replace(
        decision,
        verdict=final,
        reason=" | ".join(reason.words() for reason in decisive),
        reasons=tuple(reasons),
        obligations=tuple(dict.fromkeys(owed for each in every for owed in each.obligations)),
        lifts=tuple(dict.fromkeys(lift for each in every for lift in each.lifts)),
        basis="authorisation" if permissions else "declaration" if declared else decision.basis,
        permissions=tuple(permissions),
        terms="; ".join(dict.fromkeys(each.terms for each in every if each.terms)),
        declared=tuple(declared),
        to_declare=tuple(dict.fromkeys(topic for each in every for topic in each.to_declare)),
    )


def _fault(folder: Path, manifest: Manifest, public: bytes) -> str:
    """What of the record does not hold: its signature, itself, or the weights that it is about."""
    if signer_of(manifest.note, [public]) is None:
        return f"{NAME} is not signed by the key beside it"
    weights = [path.name for path in sorted(folder.iterdir()) if path.suffix in _WEIGHTS]
    for name in (TEACHERS, KEY, "config.json", *weights):
        if name not in manifest.files:
            return f"{name} is not in {NAME}"
    for name, digest in manifest.files.items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"{name} is no file of the release"
        needed = name in (TEACHERS, KEY, "config.json") or path.suffix in _WEIGHTS
        if path.is_file() and _digest(path) != digest:
            return f"{name} was changed"
        if needed and not path.is_file():
            return f"{name} is missing"
    return ""


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_at(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest_at(path: Path, size: int, changed_ns: int) -> str:
    """Of a file that is as long and as old as before: each use asks for it, and weights are large."""
    return sha256_of(path)


def _all(entries: Sequence[Mapping[str, Any]]) -> Iterator[Past]:
    """Those of `teachers.json`, and those who taught them in turn."""
    for entry in entries:
        decisions = entry["decisions"]
        allowed = bool(decisions) and all(each["verdict"] in ALLOWED for each in decisions)
        yield from _past(entry, tuple(sorted(each["leaf"] for each in decisions)) if allowed else ())


def _past(entry: Mapping[str, Any], decided: tuple[int, ...]) -> Iterator[Past]:
    access: Access = entry["access"] if entry["access"] in get_args(Access) else "import"
    if access == "shipped" and not entry["model"].startswith("embedded:"):
        access = "import"
    yield Past(str(entry["model"]), entry["revision"] or "", access, entry["host"] or "", decided)
    for further in (entry.get("upstream") or {}).get("teachers", ()):
        yield from _past(further, decided)


def _shortly(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One of `teachers.json`, as a release of its student passes it on."""
    (past, *_) = _all([entry])
    short = {"model": past.model, "revision": past.revision, "access": past.access, "host": past.host}
    return {**short, "upstream": entry.get("upstream")}


def _gaps(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where one further up is unknown."""
    for entry in entries:
        further = entry.get("upstream") or {}
        if further.get("unknown"):
            yield f"who taught its teacher {entry['model']} is unknown: {further['unknown']}"
        yield from _gaps(further.get("teachers", ()))
