"""What one row comes to before anything lifts it: cases, conditions, what is owed, how it was read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

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
    offers_others,
)
from stillhouse.terms.permissions import OFFERED, fits

# Uses from which something comes to be learned: what is rewarded, kept or asked shapes the student as well.
TRAINS: frozenset[Use] = frozenset({"train_target", "reward", "filter", "prompt_seed"})
ALLOWED: tuple[Verdict, ...] = ("allow", "allow_with_obligations")
WHERE = ".stillhouse/operator.toml"
EU = frozenset("AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK".split())
_SAME_PLACE = {"UK": "GB", "EL": "GR"}


class Owed(NamedTuple):
    """An obligation, and the key of the row that it comes from."""

    row: str
    obligation: Obligation


class Finding(NamedTuple):
    """`condition` names which of the row it comes from; empty for the text itself and how it was read."""

    verdict: Verdict
    why: str
    lift: str = ""
    condition: str = ""


class Ruling(NamedTuple):
    """`begins` is what the row says before its conditions."""

    row: Row
    begins: Verdict
    verdict: Verdict
    findings: tuple[Finding, ...]
    owed: tuple[Owed, ...]

    @property
    def behind(self) -> tuple[Finding, ...]:
        """What is found because it is not known whose model it is that is passed on here."""
        return tuple(one for one in self.findings if one.condition == "model_licence")

    def topics(self, asked: Asked, permitted: bool = False) -> tuple[str, ...]:
        """What a person has to read about, as declarations name it, where that helps: all that is in review,
        or, where a permission lifts the rest, what such a one says nothing of. Where a server spoke for
        itself alone that is the model, by its own name."""
        key, told = self.row.key, self.row.key.startswith(OFFERED)
        if self.verdict == "review" and not permitted:
            read = self.findings
        else:
            read = self.behind if permitted or self.row.liftable else ()
        named = (asked.model if told and one in self.behind else f"{key}/{one.condition}" for one in read)
        return tuple(dict.fromkeys(name.rstrip("/") for name in named))


def strictest(verdicts: Iterable[Verdict]) -> Verdict:
    """The strictest of them; `allow` of none."""
    return max(verdicts, key=STRICTEST.index, default="allow")


def rule(row: Row, rows: Sequence[Row], asked: Asked) -> Ruling:
    """`rows` are all that apply, the row itself among them."""
    findings, owed = [_begin(row, asked)], []
    if asked.use in TRAINS:
        owed += [Owed(row.key, each) for each in row.obligations if _falls_due(each, asked)]
    for condition in row.conditions:
        found, more = _tightens(condition, row, rows, asked)
        findings += found
        if more is not None and asked.use in TRAINS and _falls_due(more, asked):
            owed.append(Owed(row.key, more))
    if strictest(finding.verdict for finding in findings) != "refuse":
        if row.confidence != "high":
            findings.append(
                Finding(
                    "review", f"how this text was read leaves {row.confidence} confidence ({row.evidence})"
                )
            )
        if "weights" in (row.access, asked.access) and not _has_licence(row, asked):
            findings.append(
                Finding(
                    "review",
                    "no LICENSE text was read that came with the weights and is this one",
                    "name the file that came with the weights: [teacher] licence",
                    "licence_text",
                )
            )
    verdict = strictest(finding.verdict for finding in findings)
    # What allows is of no interest where something else does not
    said = findings if verdict in ALLOWED else [each for each in findings if each.verdict not in ALLOWED]
    return Ruling(row, findings[0].verdict, verdict, tuple(said), tuple(owed))


def _begin(row: Row, asked: Asked) -> Finding:
    """What the row says before its conditions: the strictest case that holds, else its own verdict."""
    holding = [case for case in row.cases if _holds(case, asked)]
    if holding:
        case = max(holding, key=lambda case: STRICTEST.index(case.verdict))
        return Finding(case.verdict, case.why)
    restricted = row.clause or f"{row.covers}: what may be made of its answers is not known"
    if asked.use not in TRAINS:
        return _measured(row, asked, restricted)
    if asked.student.competes is False and row.verdict == "refuse" and row.trains_competing == "no":
        # The refusal is about competing models, and somebody said that this one does not compete.
        if row.trains_others == "yes":
            allowed: Verdict = "allow_with_obligations" if row.obligations else "allow"
            return Finding(allowed, f"declared not to compete with {row.vendor}; {restricted}")
        if row.trains_others == "conditional":
            return Finding("review", f"declared not to compete with {row.vendor}; {restricted}")
    forbidden = row.trains_others in ("no", "unknown") or (
        asked.student.competes is not False and row.trains_competing in ("no", "unknown")
    )
    verdict: Verdict = "refuse" if forbidden else row.verdict
    return Finding(verdict, _no_restriction(row) if verdict in ALLOWED else restricted)


def _measured(row: Row, asked: Asked, restricted: str) -> Finding:
    """For a use that trains nothing. A ban on training is then no ban, but neither is silence a permission:
    for a student that competes, what measures it may be part of developing it, and a person reads the text.
    """
    if row.verdict != "refuse":
        return Finding(row.verdict, _no_restriction(row) if row.verdict in ALLOWED else restricted)
    unread = row.evidence in ("memory", "none") or row.confidence == "low" or row.trains_others == "unknown"
    if unread or row.access == "consumer_app":
        return Finding("refuse", restricted)
    said = f"it restricts training, and nothing is trained on what comes back: {restricted}"
    return Finding("allow" if asked.student.competes is False else "review", said)


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
        and (not case.bases or fits(student.base, case.bases))
    )


def _falls_due(owed: Obligation, asked: Asked) -> bool:
    inside = bool(asked.student.base) and asked.student.base.casefold() == asked.model.casefold()
    return asked.student.mode in owed.modes and (inside or not owed.redistributes)


def _has_licence(row: Row, asked: Asked) -> bool:
    by_name = bool(asked.licence_spdx) and asked.licence_spdx == row.licence.spdx
    return by_name or (bool(asked.licence_sha256) and asked.licence_sha256 in row.licence.sha256)


def _tightens(
    condition: Condition, row: Row, rows: Sequence[Row], asked: Asked
) -> tuple[list[Finding], Obligation | None]:
    if isinstance(condition, Scale):
        return _scale(condition, asked)
    if isinstance(condition, Territory):
        return _territory(condition, asked), None
    if isinstance(condition, Feature):
        on = {name.casefold() for name in asked.features} & {name.casefold() for name in condition.features}
        found = [
            Finding(condition.verdict, f"{condition.why} (switched on: {name})", condition=name)
            for name in sorted(on)
        ]
        return found, None
    return _need(condition, row, rows, asked), None


def _scale(scale: Scale, asked: Asked) -> tuple[list[Finding], Obligation | None]:
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
    if scale.verdict is None:
        return [], scale.owed
    return [Finding(scale.verdict, scale.why, condition=scale.figure)], scale.owed


def _territory(limit: Territory, asked: Asked) -> list[Finding]:
    if limit.modality == "multimodal" and not asked.multimodal:
        return []
    if asked.operator.territory is None:
        return [_unsaid(f"`territory` in {WHERE}", limit.why)]
    excluded = set().union(*(places(name) for name in limit.excluded))
    return [Finding("refuse", limit.why)] if places(asked.operator.territory) & excluded else []


def places(name: str) -> frozenset[str]:
    """The countries that a code stands for: all of the union for EU, else itself."""
    code = name.strip().upper()
    return EU | {"EU"} if code == "EU" else frozenset({_SAME_PLACE.get(code, code)})


def _need(need: Need, row: Row, rows: Sequence[Row], asked: Asked) -> list[Finding]:
    otherwise = [Finding(need.verdict, need.why, condition=need.need)]
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
            return [] if _has_licence(row, asked) else [Finding(need.verdict, need.why, lift, need.need)]
        case "model_licence":
            known = any(_speaks_of_models(other) for other in rows)
            lift = "say which published model it is: [teacher] checkpoint"
            return [] if known else [Finding(need.verdict, need.why, lift, need.need)]
    if said is None:
        return [_unsaid(where, need.why)]
    return [] if said else otherwise


def _speaks_of_models(row: Row) -> bool:
    """Whether it says what may be done with a model, and not with a server of whatever models there are: two
    that each wait for the model's own terms cannot stand in for these."""
    return row.access not in ("router", "any") and not offers_others(row)


def _unsaid(where: str, why: str) -> Finding:
    return Finding("refuse", f"nobody said {where}, on which this depends: {why}", f"say {where}")
