"""Whether a teacher may be put to a use: a pure decision by the rows that apply, and what would change it.

Closed by default. What no row speaks of is refused; the strictest of several rows wins and their obligations
add up; a review is lifted by a person's declared reading, a refusal by a written permission alone. Nothing
here says that something is lawful: it says which text was read, on what day, and what was found in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from stillhouse.terms.facts import (
    STRICTEST,
    Asked,
    Case,
    Condition,
    Feature,
    Need,
    Obligation,
    Row,
    Scale,
    Territory,
    Use,
    Verdict,
)
from stillhouse.terms.permissions import Permission, why_not

# Uses from which something comes to be learned: what is rewarded, kept or asked shapes the student as well.
TRAINS: frozenset[Use] = frozenset({"train_target", "reward", "filter", "prompt_seed"})
ALLOWED: tuple[Verdict, ...] = ("allow", "allow_with_obligations")
WHERE = ".stillhouse/operator.toml"
# Access by way of somebody, and the rows that speak about such.
UNSEEN = ("api", "router", "consumer_app", "import")
SERVERS = ("api", "router", "consumer_app")
EU = frozenset("AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK".split())
_SAME_PLACE = {"UK": "GB", "EL": "GR"}


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


class Owed(NamedTuple):
    """An obligation, and the key of the row that it comes from."""

    row: str
    obligation: Obligation


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


class _Finding(NamedTuple):
    verdict: Verdict
    why: str
    lift: str = ""


class _Ruling(NamedTuple):
    """What a row comes to before anything lifts it."""

    row: Row
    verdict: Verdict
    findings: tuple[_Finding, ...]
    owed: tuple[Owed, ...]


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
    for ruling in (_rule(row, rows, asked) for row in rows):
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
                verdict = "allow_with_obligations" if ruling.owed else "allow"
        owed += [each for each in ruling.owed if each not in owed]
        reasons.append(_reason(row, verdict, why, lifted_by))
    if asked.access in UNSEEN and not any(row.access in SERVERS for row in rows):
        # The licence of the weights says nothing about whoever serves them, or how an import was come by.
        server = _server(asked, in_force, declared, gap)
        reasons.append(server)
        used += [in_force[0].leaf] if server.lifted_by == "authorisation" else []
        if server.verdict == "refuse":
            lifts.append(_READ_AND_DECLARE)
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


def strictest(verdicts: Iterable[Verdict]) -> Verdict:
    """The strictest of them; `allow` of none."""
    return max(verdicts, key=STRICTEST.index, default="allow")


def _server(
    asked: Asked,
    in_force: Sequence[Permission],
    declared: DeclaredTerms | None,
    gap: str | None,
) -> Reason:
    """For a model whose licence is known, at a server whose terms are not."""
    where = asked.endpoint or "whoever gave the answers"
    verdict: Verdict = "allow"
    lifted_by: Literal["", "declaration", "authorisation"] = ""
    if in_force:
        lifted_by, why = (
            "authorisation",
            f"the permission {in_force[0].id} of {in_force[0].grantor} covers it",
        )
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


def _lifts(ruling: _Ruling, gap: str | None) -> list[str]:
    row, needed = ruling.row, [finding.lift for finding in ruling.findings if finding.lift]
    if ruling.verdict == "review":
        return [*needed, f"read {row.licence.name} ({row.source}); if it allows this use, declare so"] + (
            [f"the declaration does not: {gap}"] if gap else []
        )
    if row.liftable:
        named = row.lifted_by or f"a written permission of {row.vendor}"
        return [*needed, f"{named}, recorded with `stillhouse terms authorise`"]
    return needed or [f"nothing that is known: {row.licence.name} names no way to ask; take another teacher"]


def _rule(row: Row, rows: Sequence[Row], asked: Asked) -> _Ruling:
    findings, owed = [_begin(row, asked)], []
    if asked.use in TRAINS:
        owed += [Owed(row.key, each) for each in row.obligations if _falls_due(each, asked)]
    for condition in row.conditions:
        found, more = _tightens(condition, row, rows, asked)
        findings += found
        if more is not None and asked.use in TRAINS and _falls_due(more, asked):
            owed.append(Owed(row.key, more))
    if strictest(finding.verdict for finding in findings) in ALLOWED:
        if row.confidence != "high":
            findings.append(
                _Finding(
                    "review", f"how this text was read leaves {row.confidence} confidence ({row.evidence})"
                )
            )
        if "weights" in (row.access, asked.access) and not _has_licence(row, asked):
            findings.append(
                _Finding(
                    "review",
                    "no LICENSE text was read that came with the weights and is this one",
                    "name the file that came with the weights: [teacher] licence",
                )
            )
    verdict = strictest(finding.verdict for finding in findings)
    # What allows is of no interest where something else does not
    said = findings if verdict in ALLOWED else [each for each in findings if each.verdict not in ALLOWED]
    return _Ruling(row, verdict, tuple(said), tuple(owed))


def _begin(row: Row, asked: Asked) -> _Finding:
    """What the row says before its conditions: the strictest case that holds, else its own verdict."""
    holding = [case for case in row.cases if _holds(case, asked)]
    if holding:
        case = max(holding, key=lambda case: STRICTEST.index(case.verdict))
        return _Finding(case.verdict, case.why)
    restricted = row.clause or f"{row.covers}: what may be made of its answers is not known"
    if asked.use not in TRAINS:
        return _measured(row, asked, restricted)
    if asked.student.competes is False and row.verdict == "refuse" and row.trains_competing == "no":
        # The refusal is about competing models, and somebody said that this one does not compete.
        if row.trains_others == "yes":
            allowed: Verdict = "allow_with_obligations" if row.obligations else "allow"
            return _Finding(allowed, f"declared not to compete with {row.vendor}; {restricted}")
        if row.trains_others == "conditional":
            return _Finding("review", f"declared not to compete with {row.vendor}; {restricted}")
    forbidden = row.trains_others in ("no", "unknown") or (
        asked.student.competes is not False and row.trains_competing in ("no", "unknown")
    )
    verdict: Verdict = "refuse" if forbidden else row.verdict
    return _Finding(verdict, _no_restriction(row) if verdict in ALLOWED else restricted)


def _measured(row: Row, asked: Asked, restricted: str) -> _Finding:
    """For a use that trains nothing. A ban on training is then no ban, but neither is silence a permission:
    for a student that competes, what measures it may be part of developing it, and a person reads the text.
    """
    if row.verdict != "refuse":
        return _Finding(row.verdict, _no_restriction(row) if row.verdict in ALLOWED else restricted)
    unread = row.evidence in ("memory", "none") or row.confidence == "low" or row.trains_others == "unknown"
    if unread or row.access == "consumer_app":
        return _Finding("refuse", restricted)
    said = f"it restricts training, and nothing is trained on what comes back: {restricted}"
    return _Finding("allow" if asked.student.competes is False else "review", said)


def _no_restriction(row: Row) -> str:
    on = f"read on {row.read_on}" if row.read_on else "not read on any known day"
    return (
        f"no restriction of this use found in {row.licence.name}, {on}, by {row.read_via or 'nobody known'}"
    )


def _holds(case: Case, asked: Asked) -> bool:
    student = asked.student
    return (
        (not case.uses or asked.use in case.uses)
        and (not case.tasks or student.task in case.tasks)
        and (not case.modes or student.mode in case.modes)
        and (not case.bases or _matches(student.base, case.bases))
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.casefold(), pattern.casefold()) for pattern in patterns)


def _falls_due(owed: Obligation, asked: Asked) -> bool:
    inside = bool(asked.student.base) and asked.student.base.casefold() == asked.model.casefold()
    return asked.student.mode in owed.modes and (inside or not owed.redistributes)


def _has_licence(row: Row, asked: Asked) -> bool:
    by_name = bool(asked.licence_spdx) and asked.licence_spdx == row.licence.spdx
    return by_name or (bool(asked.licence_sha256) and asked.licence_sha256 in row.licence.sha256)


def _tightens(
    condition: Condition, row: Row, rows: Sequence[Row], asked: Asked
) -> tuple[list[_Finding], Obligation | None]:
    if isinstance(condition, Scale):
        return _scale(condition, asked)
    if isinstance(condition, Territory):
        return _territory(condition, asked), None
    if isinstance(condition, Feature):
        on = {name.casefold() for name in asked.features} & {name.casefold() for name in condition.features}
        said = f"{condition.why} (switched on: {', '.join(sorted(on))})"
        return [_Finding(condition.verdict, said)] if on else [], None
    return _need(condition, row, rows, asked), None


def _scale(scale: Scale, asked: Asked) -> tuple[list[_Finding], Obligation | None]:
    if scale.modes and asked.student.mode not in scale.modes:
        return [], None
    figure: int | None = getattr(asked.operator, scale.figure)
    sells = asked.operator.sells_access_to_models if scale.hosting_models else True
    if sells is False or (figure is not None and figure <= scale.above):
        return [], None
    missing = [
        *([scale.figure] if figure is None else []),
        *(["sells_access_to_models"] if sells is None else []),
    ]
    if missing:
        return [_unsaid(f"`{name}` in {WHERE}", scale.why) for name in missing], scale.owed
    return ([] if scale.verdict is None else [_Finding(scale.verdict, scale.why)]), scale.owed


def _territory(limit: Territory, asked: Asked) -> list[_Finding]:
    if limit.modality == "multimodal" and not asked.multimodal:
        return []
    if asked.operator.territory is None:
        return [_unsaid(f"`territory` in {WHERE}", limit.why)]
    excluded = set().union(*(places(name) for name in limit.excluded))
    return [_Finding("refuse", limit.why)] if places(asked.operator.territory) & excluded else []


def places(name: str) -> frozenset[str]:
    """The countries that a code stands for: all of the union for EU, else itself."""
    code = name.strip().upper()
    return EU | {"EU"} if code == "EU" else frozenset({_SAME_PLACE.get(code, code)})


def _need(need: Need, row: Row, rows: Sequence[Row], asked: Asked) -> list[_Finding]:
    otherwise = [_Finding(need.verdict, need.why)]
    said: bool | None
    match need.need:
        case "non_commercial":
            said = None if asked.operator.commercial is None else not asked.operator.commercial
            where = f"`commercial` in {WHERE}"
        case "paid_tier":
            said, where = asked.paid, "[teacher] paid"
        case "pinned_provider":
            said, where = asked.provider_pinned, "[teacher] upstream"
        case "no_prompt_logging":
            said = None if asked.prompt_logging is None else not asked.prompt_logging
            where = "[teacher] prompt_logging"
        case "not_by_program":
            return otherwise
        case "licence_text":
            lift = "name the file that came with the weights: [teacher] licence"
            return [] if _has_licence(row, asked) else [_Finding(need.verdict, need.why, lift)]
        case "model_licence":
            known = any(other.key != row.key and other.access not in ("router", "any") for other in rows)
            return [] if known else otherwise
    if said is None:
        return [_unsaid(where, need.why)]
    return [] if said else otherwise


def _unsaid(where: str, why: str) -> _Finding:
    return _Finding("refuse", f"nobody said {where}, on which this depends: {why}", f"say {where}")
