"""Whether a teacher may be put to a use: a pure decision by the rows that apply, and what would change it.

Closed by default. What no row speaks of is refused; the strictest of several rows wins and their obligations
add up; a review is lifted by a person's declared reading, a refusal by a written permission alone. Nothing
here says that something is lawful: it says which text was read, on what day, and what was found in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from stillhouse.terms.facts import OPEN, Asked, Row, Use, Verdict
from stillhouse.terms.permissions import Permission, why_not
from stillhouse.terms.ruling import ALLOWED, Owed, Ruling, rule, strictest

# Access of rows that speak about whoever answers.
SERVERS = ("api", "router", "consumer_app")


@dataclass(frozen=True, slots=True)
class DeclaredTerms:
    """A named person's word that they read a text: `sha256` is empty when there was no text to read."""

    document: str
    sha256: str
    read_on: date
    declared_by: str
    scope: tuple[Use, ...]

    def says(self, use: Use) -> str:
        text = f"{self.document} (SHA-256 {self.sha256[:12]}...)"
        return f"{self.declared_by} declares that {text}, read on {self.read_on}, allows {use}"


@dataclass(frozen=True, slots=True)
class Reason:
    """What one row came to, and why. `verdict` is what is left of it after `lifted_by` lifted it."""

    row: str
    verdict: Verdict
    text: str
    version: str
    read_on: date | None
    read_by: str
    clause: str
    clause_ref: str
    source: str
    why: tuple[str, ...]
    lifted_by: Literal["", "declaration", "authorisation"] = ""

    def words(self) -> str:
        version = f", version {self.version}" if self.version.strip("- ") else ""
        read = f", read on {self.read_on or 'no known day'} by {self.read_by}" if self.read_by else ""
        return f"{self.text}{version}{read}: {'; '.join(self.why)}"

    def cited(self) -> str:
        """With the clause in our words, and where it is to be read."""
        clause = "" if not self.clause or any(self.clause in why for why in self.why) else f" ({self.clause})"
        at = " ".join(part for part in (self.source, self.clause_ref) if part.strip("- "))
        return self.words() + clause + (f" [{at}]" if at else "")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says. `basis` is who vouches for it, `permissions` the leaves of those used, and
    `lifts` what would change a verdict that does not allow the use."""

    verdict: Verdict
    reason: str
    reasons: tuple[Reason, ...] = ()
    obligations: tuple[Owed, ...] = ()
    lifts: tuple[str, ...] = ()
    basis: Literal["registry", "declaration", "authorisation", "none"] = "none"
    permissions: tuple[int, ...] = ()
    terms: str = ""
    read_on: date | None = None

    @property
    def allowed(self) -> bool:
        return self.verdict in ALLOWED


def decide(
    asked: Asked,
    rows: Sequence[Row],
    permissions: Sequence[Permission],
    declaration: DeclaredTerms | None,
    today: date,
    further: int = 1,
) -> Decision:
    """Whether this use of this teacher is allowed. Pure, and raises nothing.

    `rows` are all that apply, of every layer: router, host, the model's own licence, and what reaches through
    it. `further` is how many exchanges are still wanted under a permission; with 0 one that is used up stays
    in force for what it brought. `today` is the day in UTC.
    """
    refusals = [(each, why_not(each, asked, today, further)) for each in permissions]
    # One under which something is left goes before one that is used up
    in_force = sorted((each for each, why in refusals if not why), key=lambda each: each.used_up)
    about = [
        f"the permission {each.id} is not in force: {why}"
        for each, why in refusals
        if why and each.names(asked)
    ]
    gap = None if declaration is None else _gap(declaration, asked.use, today)
    declared = declaration if gap == "" else None
    if not rows:
        return _unknown(asked, in_force, about, declaration, gap)
    reasons: list[Reason] = []
    lifts: list[str] = []
    used: list[int] = []
    owed: list[Owed] = []
    for ruling in (rule(row, rows, asked) for row in rows):
        row, verdict = ruling.row, ruling.verdict
        why = tuple(finding.why for finding in ruling.findings)
        lifted_by: Literal["", "declaration", "authorisation"] = ""
        grant = next((each for each in in_force if each.speaks_for(row)), None)
        if verdict not in ALLOWED:
            if grant is not None and (row.liftable or verdict == "review"):
                used.append(grant.leaf)
                lifted_by = "authorisation"
                why = (*why, f"lifted by the permission {grant.id} of {grant.grantor}")
            elif declared is not None and verdict == "review":
                lifted_by, why = "declaration", (*why, declared.says(asked.use))
            else:
                lifts += _lifts(ruling, gap)
            if lifted_by:
                obliges = ruling.owed or ruling.begins == "allow_with_obligations"
                verdict = "allow_with_obligations" if obliges else "allow"
        owed += [each for each in ruling.owed if each not in owed]
        reasons.append(_reason(row, verdict, why, lifted_by))
    if asked.access not in OPEN and not any(row.access in SERVERS for row in rows):
        # The licence of the weights says nothing about whoever serves them, or how an import was come by.
        grant = next((each for each in in_force if each.covers_server(asked)), None)
        server = _server(asked, grant, declared, gap)
        reasons.append(server)
        used += [grant.leaf] if grant is not None else []
        if server.verdict == "refuse":
            lifts += [_READ_AND_DECLARE, _covering_server(asked)]
    final = strictest(reason.verdict for reason in reasons)
    if final == "allow" and owed:
        final = "allow_with_obligations"
    decisive = [reason for reason in reasons if reason.verdict == final] or reasons
    lifted = {reason.lifted_by for reason in reasons}
    return Decision(
        final,
        " | ".join(reason.words() for reason in decisive),
        tuple(reasons),
        tuple(owed),
        () if final in ALLOWED else tuple(dict.fromkeys([*lifts, *about])),
        "authorisation" if used else "declaration" if "declaration" in lifted else "registry",
        tuple(dict.fromkeys(used)),
        "; ".join(f"{row.licence.name}, {row.version}".rstrip(", ") for row in rows),
        min((row.read_on for row in rows if row.read_on), default=None),
    )


def _server(
    asked: Asked,
    grant: Permission | None,
    declared: DeclaredTerms | None,
    gap: str | None,
) -> Reason:
    """For a model whose licence is known, at a server whose terms are not."""
    where = asked.endpoint or "whoever gave the answers"
    verdict: Verdict = "allow"
    lifted_by: Literal["", "declaration", "authorisation"] = ""
    if grant is not None:
        lifted_by = "authorisation"
        why = f"the permission {grant.id} of {grant.grantor} covers answers of {asked.server}"
    elif declared is not None:
        lifted_by, why = "declaration", declared.says(asked.use)
    else:
        verdict, why = "refuse", gap or f"the terms of {where} are not known, and none are declared"
    text, by, on = f"the terms of {where}", "", None
    if lifted_by == "declaration" and declared is not None:
        by, on = declared.declared_by, declared.read_on
    return Reason("", verdict, text, "", on, by, "", "", "", (why,), lifted_by)


def _unknown(
    asked: Asked,
    in_force: Sequence[Permission],
    about: Sequence[str],
    declaration: DeclaredTerms | None,
    gap: str | None,
) -> Decision:
    """For a teacher of whom no row speaks: its own contract, or a text that the operator read, or no."""
    if asked.access not in OPEN:
        about = [*about, *(_uncovered(each, asked) for each in in_force if not each.covers_server(asked))]
        in_force = [each for each in in_force if each.covers_server(asked)]
    if in_force:
        grant = in_force[0]
        says = f"the permission {grant.id} of {grant.grantor} allows {asked.use}"
        terms = f"{grant.document} (SHA-256 {grant.document_sha256[:12]}...)"
        return Decision("allow", says, basis="authorisation", permissions=(grant.leaf,), terms=terms)
    if declaration is None:
        reason = f"no terms are known for {asked.model}, and none are declared"
        return Decision("refuse", reason, lifts=(_READ_AND_DECLARE, *about))
    terms = f"{declaration.document} (SHA-256 {declaration.sha256[:12]}...)" if declaration.sha256 else ""
    if gap:
        lifts = (_READ_AND_DECLARE, *about)
        return Decision(
            "refuse", gap, lifts=lifts, basis="declaration", terms=terms, read_on=declaration.read_on
        )
    return Decision(
        "allow", declaration.says(asked.use), basis="declaration", terms=terms, read_on=declaration.read_on
    )


def _gap(declaration: DeclaredTerms, use: Use, today: date) -> str:
    """Why a declaration does not cover a use; empty where it does."""
    if not declaration.sha256:
        return f"the declared document {declaration.document} is missing or empty"
    if not declaration.declared_by.strip():
        return "the declaration names nobody who made it"
    if declaration.read_on > today + timedelta(days=1):  # at UTC+14 tomorrow has begun
        return f"the declaration says that the terms were read on {declaration.read_on}, in the future"
    # Whoever may learn from answers may learn from prompts that were written for the same purpose.
    covered = {*declaration.scope} | ({"prompt_seed"} if "train_target" in declaration.scope else set())
    if use not in covered:
        scope = ", ".join(declaration.scope) or "nothing"
        return f"the declared scope is {scope}, which does not include {use}"
    return ""


def _reason(
    row: Row, verdict: Verdict, why: tuple[str, ...], lifted_by: Literal["", "declaration", "authorisation"]
) -> Reason:
    return Reason(
        row.key,
        verdict,
        row.licence.name,
        row.version,
        row.read_on,
        row.read_via,
        row.clause,
        row.clause_ref,
        row.source,
        why,
        lifted_by,
    )


_READ_AND_DECLARE = "read the teacher's terms; if they allow this use, declare so"


def _covering_server(asked: Asked) -> str:
    return f'a permission whose [scope] says servers = ["{asked.server}"]'


def _uncovered(grant: Permission, asked: Asked) -> str:
    return f"the permission {grant.id} does not name the server; it takes {_covering_server(asked)}"


def _lifts(ruling: Ruling, gap: str | None) -> list[str]:
    row, needed = ruling.row, [finding.lift for finding in ruling.findings if finding.lift]
    if ruling.verdict == "review":
        return [*needed, f"read {row.licence.name} ({row.source}); if it allows this use, declare so"] + (
            [f"the declaration does not: {gap}"] if gap else []
        )
    if row.liftable:
        named = row.lifted_by or f"a written permission of {row.vendor}"
        return [*needed, f"{named}, recorded with `stillhouse terms authorise`"]
    return needed or [f"nothing that is known: {row.licence.name} names no way to ask; take another teacher"]
