"""Whether a teacher may be put to a use: a pure decision by the rows that apply, and what would change it.

Closed by default. What no row speaks of is refused; the strictest of several rows wins and their obligations
add up; a review is lifted by a person's declared reading, a refusal by a written permission alone. Nothing
here says that something is lawful: it says which text was read, on what day, and what was found in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from types import MappingProxyType
from typing import Literal, NamedTuple

from stillhouse.terms.facts import OPEN, Asked, Row, Use, Verdict, host_of
from stillhouse.terms.permissions import OFFERED, Permission, fits, why_not
from stillhouse.terms.ruling import ALLOWED, Owed, Ruling, rule, strictest
from stillhouse.text import host_name

# Access of rows that speak about whoever answers.
SERVERS = ("api", "router", "consumer_app")


Lifter = Literal["", "declaration", "authorisation"]


@dataclass(frozen=True, slots=True)
class DeclaredTerms:
    """A named person's word that they read a text: `sha256` is empty when there was no text to read.

    `about` names what was read about: a row's key for its text, KEY/CONDITION for one of its conditions, a
    server's host, `import`, a model. Empty, it is about a teacher of whom no row of the table speaks, and
    about nothing else.
    `recalled` is the leaf that says so, where it was.
    """

    document: str
    sha256: str
    read_on: date
    declared_by: str
    scope: tuple[Use, ...]
    about: tuple[str, ...] = ()
    recalled: int | None = None

    def says(self, use: Use, about: str = "") -> str:
        text = f"{self.document} (SHA-256 {self.sha256[:12]}...)"
        of = f", as to {about}" if about else ""
        return f"{self.declared_by} declares that {text}, read on {self.read_on}, allows {use}{of}"


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
    lifted_by: Lifter = ""

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
    `lifts` what would change a verdict that does not allow the use. `declared` are the declarations that it
    rests on, `to_declare` is what one would have to be about."""

    verdict: Verdict
    reason: str
    reasons: tuple[Reason, ...] = ()
    obligations: tuple[Owed, ...] = ()
    lifts: tuple[str, ...] = ()
    basis: Literal["registry", "declaration", "authorisation", "none"] = "none"
    permissions: tuple[int, ...] = ()
    terms: str = ""
    read_on: date | None = None
    declared: tuple[DeclaredTerms, ...] = ()
    to_declare: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.verdict in ALLOWED


class _Lift(NamedTuple):
    """`read` are the declarations that it takes, by what each is about."""

    by: Lifter
    why: tuple[str, ...]
    permissions: tuple[int, ...] = ()
    read: Mapping[str, DeclaredTerms] = MappingProxyType({})


def decide(
    asked: Asked,
    rows: Sequence[Row],
    permissions: Sequence[Permission],
    declarations: Sequence[DeclaredTerms],
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
    if not rows:
        return _unknown(asked, in_force, about, declarations, today)
    gaps = [(each, gap_in(each, asked.use, today)) for each in declarations]
    declared = {topic: each for each, gap in reversed(gaps) if not gap for topic in each.about}
    if all(row.key.startswith(OFFERED) for row in rows):  # of the model itself no row speaks
        for each, gap in gaps:
            if not gap and not each.about:
                declared.setdefault(asked.model, each)
    reasons: list[Reason] = []
    lifts: list[str] = []
    used: list[int] = []
    read: dict[str, DeclaredTerms] = {}
    unread: list[str] = []
    owed: list[Owed] = []
    for ruling in (rule(row, rows, asked) for row in rows):
        verdict, why = ruling.verdict, tuple(finding.why for finding in ruling.findings)
        lift = None if verdict in ALLOWED else _lifted(ruling, in_force, declared, asked)
        if lift is not None:
            used += lift.permissions
            read |= lift.read
            why = (*why, *lift.why)
            obliges = ruling.owed or ruling.begins == "allow_with_obligations"
            verdict = "allow_with_obligations" if obliges else "allow"
        elif verdict not in ALLOWED:
            missing = [topic for topic in ruling.topics(asked) if topic not in declared]
            unread += missing
            lifts += _lifts(ruling, missing, asked)
        owed += [each for each in ruling.owed if each not in owed]
        reasons.append(_reason(ruling.row, verdict, why, lift.by if lift else ""))
    if asked.access not in OPEN and not any(_is_of_server(row, asked) for row in rows):
        # The licence of the weights says nothing about whoever serves them, or how an import was come by; nor
        # do a vendor's terms, known by the model's name alone, of a stranger that passes its answers on.
        grant = next((each for each in in_force if each.covers_server(asked)), None)
        text = declared.get(asked.server)
        server = _server(asked, grant, text)
        reasons.append(server)
        used += [grant.leaf] if grant is not None else []
        read |= {asked.server: text} if grant is None and text is not None else {}
        if server.verdict == "refuse":
            unread.append(asked.server)
            lifts += [_about_server(asked), _covering_server(asked)]
    final = strictest(reason.verdict for reason in reasons)
    if final == "allow" and owed:
        final = "allow_with_obligations"
    decisive = [reason for reason in reasons if reason.verdict == final] or reasons
    lifts += [f"the declaration of {each.document} does not count: {gap}" for each, gap in gaps if gap]
    if unread:
        lifts += [_says_about(each) for each, gap in gaps if not gap and each not in read.values()]
    return Decision(
        final,
        " | ".join(reason.words() for reason in decisive),
        tuple(reasons),
        tuple(owed),
        () if final in ALLOWED else tuple(dict.fromkeys([*lifts, *about])),
        "authorisation" if used else "declaration" if read else "registry",
        tuple(dict.fromkeys(used)),
        "; ".join(f"{row.licence.name}, {row.version}".rstrip(", ") for row in rows),
        min((row.read_on for row in rows if row.read_on), default=None),
        tuple(dict.fromkeys(read.values())),
        () if final in ALLOWED else tuple(dict.fromkeys(unread)),
    )


def _lifted(
    ruling: Ruling, in_force: Sequence[Permission], declared: Mapping[str, DeclaredTerms], asked: Asked
) -> _Lift | None:
    """What lifts a row's review or refusal; None where nothing does. Whose model it is that is passed on here
    no word of whoever passes it on can tell: that takes a person's reading beside a permission."""
    row, behind = ruling.row, ruling.behind
    if any(finding.verdict == "refuse" for finding in behind):
        return None
    others = strictest(finding.verdict for finding in ruling.findings if finding not in behind)
    grant = next((each for each in in_force if each.speaks_for(row)), None)
    permitted = grant is not None and others not in ALLOWED and (row.liftable or others == "review")
    if others == "refuse" and not permitted:
        return None
    topics = ruling.topics(asked, permitted)
    if not declared.keys() >= {*topics}:
        return None
    read = {topic: declared[topic] for topic in topics}
    said = tuple(each.says(asked.use, topic) for topic, each in read.items())
    if grant is None or not permitted:
        return _Lift("declaration", said, read=read)
    why = f"lifted by the permission {grant.id} of {grant.grantor}"
    return _Lift("authorisation", (why, *said), permissions=(grant.leaf,), read=read)


def _is_of_server(row: Row, asked: Asked) -> bool:
    """Whether a row has the terms of whoever answers. Without hosts it speaks for any that offers the model;
    of answers that were brought nobody can tell."""
    anywhere = not row.hosts or not asked.endpoint
    here = anywhere or fits(host_of(asked.endpoint), map(host_name, row.hosts))
    return row.access in SERVERS and here


def _server(
    asked: Asked,
    grant: Permission | None,
    declared: DeclaredTerms | None,
) -> Reason:
    """For a model whose licence is known, at a server whose terms are not."""
    where = asked.endpoint or "whoever gave the answers"
    verdict: Verdict = "allow"
    lifted_by: Lifter = ""
    if grant is not None:
        lifted_by = "authorisation"
        why = f"the permission {grant.id} of {grant.grantor} covers answers of {asked.server}"
    elif declared is not None:
        lifted_by, why = "declaration", declared.says(asked.use, asked.server)
    else:
        verdict, why = "refuse", f"the terms of {where} are not known, and none are declared"
    text, by, on = f"the terms of {where}", "", None
    if lifted_by == "declaration" and declared is not None:
        by, on = declared.declared_by, declared.read_on
    return Reason("", verdict, text, "", on, by, "", "", "", (why,), lifted_by)


def _unknown(
    asked: Asked,
    in_force: Sequence[Permission],
    about: Sequence[str],
    declarations: Sequence[DeclaredTerms],
    today: date,
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
    gaps = [(each, gap_in(each, asked.use, today) or elsewhere(each, asked)) for each in declarations]
    for each, gap in gaps:
        if not gap:
            return Decision(
                "allow",
                each.says(asked.use),
                basis="declaration",
                terms=f"{each.document} (SHA-256 {each.sha256[:12]}...)",
                read_on=each.read_on,
                declared=(each,),
            )
    reason = f"no terms are known for {asked.model}, and none are declared"
    if gaps:
        reason = "; ".join(gap for _, gap in gaps)
    return Decision("refuse", reason, lifts=(_READ_AND_DECLARE, *about))


def elsewhere(declaration: DeclaredTerms, asked: Asked) -> str:
    """What a declaration is about where that is not the teacher asked for; empty where it is."""
    here = (asked.model,) if asked.access in OPEN else (asked.model, asked.server)
    if not declaration.about or {*declaration.about} & {*here}:
        return ""
    return f"{_says_about(declaration)}, and not about {' at '.join(here)}"


def gap_in(declaration: DeclaredTerms, use: Use, today: date) -> str:
    """Why a declaration does not cover a use; empty where it does."""
    if not declaration.sha256:
        return f"the declared document {declaration.document} is missing or empty"
    if declaration.recalled is not None:
        recalled = f"the declaration of {declaration.document} was recalled (leaf {declaration.recalled})"
        return f"{recalled}; `stillhouse ledger recall --lift` undoes that"
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


def _reason(row: Row, verdict: Verdict, why: tuple[str, ...], lifted_by: Lifter) -> Reason:
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


def _about_server(asked: Asked) -> str:
    where = "how these answers were had" if asked.server == "import" else f"the terms of {asked.server}"
    return f'read {where}; if they allow this use, declare so, with about = ["{asked.server}"]'


def _says_about(declaration: DeclaredTerms) -> str:
    what = ", ".join(declaration.about) or "a teacher of whom no row speaks (it says no `about`)"
    return f"the declaration of {declaration.document} is about {what}"


def _lifts(ruling: Ruling, unread: Sequence[str], asked: Asked) -> list[str]:
    row, told = ruling.row, ruling.row.key.startswith(OFFERED)
    lifts = [each.lift for each in ruling.findings if each.lift and not (told and each in ruling.behind)]
    texts = [topic for topic in unread if topic != asked.model]
    if told and asked.model in unread:
        which = f"say which published model {asked.model} is, [teacher] checkpoint"
        declares = f'declare so, with about = ["{asked.model}"]'
        lifts.append(f"{which}; or read its terms and, if they allow this use, {declares}")
    if texts:
        named = ", ".join(f'"{topic}"' for topic in texts)
        text = f"{row.licence.name} ({row.source})"
        lifts.append(f"read {text}; if it allows this use, declare so, with about = [{named}]")
    if ruling.verdict == "refuse" and row.liftable:
        named = row.lifted_by or f"a written permission of {row.vendor}"
        lifts.append(f"{named}, recorded with `stillhouse terms authorise`")
    nothing = f"nothing that is known: {row.licence.name} names no way to ask; take another teacher"
    return lifts or [row.lifted_by or nothing]
