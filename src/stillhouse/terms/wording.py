"""Rows of terms in words. They tell what a text says and who read it, never that a use is lawful."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from stillhouse.terms.facts import Case, Condition, Feature, Mode, Need, Obligation, Row, Scale, Territory
from stillhouse.terms.registry import Match

EVIDENCE = {
    "primary": "the text itself was read",
    "primary_mirror": "the full text was read in a dated mirror",
    "primary_older": "an older text was read, the present one is known second-hand",
    "secondary_verbatim": "its clauses were quoted word for word by independent readers",
    "secondary": "second-hand",
    "memory": "general knowledge, unchecked",
    "none": "the text was not obtained",
}
READ = ("primary", "primary_mirror", "primary_older")  # evidence with a text that was read
SOFTER = {"allow_with_obligations": "allowed with obligations", "allow": "allowed"}

_LAYER = {
    "router": "the router's terms",
    "host": "terms of the server that is asked",
    "vendor": "terms of the model's maker",
    "model": "licence of the model",
}
_MODES: dict[Mode, str] = {
    "internal": "kept in the house",
    "hosted": "offered as a service",
    "weights": "given out",
}
_FIGURES = {
    "monthly_users": ("", "users a month"),
    "monthly_revenue_usd": ("USD ", "of revenue a month"),
    "yearly_revenue_usd": ("USD ", "of revenue a year"),
}
_NEEDS = {
    "non_commercial": "unless the use is not commercial",
    "paid_tier": "unless access is paid for",
    "not_by_program": "where a program collects",
    "pinned_provider": "unless one provider is pinned",
    "no_prompt_logging": "unless prompt logging is off",
    "licence_text": "unless the checkpoint's own LICENSE was read and is this one",
    "model_licence": "unless the terms of the model behind it are known",
}
_OWED = {
    "name_prefix": "its name begins with",
    "no_mark": "its name does not hold",
    "credit": "users see",
    "notice": "NOTICE holds",
    "licence_copy": "a copy goes with it of",
    "inherits": "it is itself under",
    "use_policy": "those who get it are bound by",
    "label_ai": "output is labelled as made by a machine",
    "check_output": "output is checked before it is published",
    "keep_signals": "marks of provenance stay",
    "notify": "told beforehand:",
    "note": "a line of attribution:",
}


def layer_words(match: Match) -> str:
    return f"terms that come through {match.through}" if match.through else _LAYER[match.layer]


def finding(row: Row, as_of: date) -> str:
    """What was found, for a general student that is given away, and in which text of which day."""
    if row.evidence in READ:
        day = f"as it stood on {row.read_on}" if row.read_on else f"in a copy without a day, known on {as_of}"
        text = f"{row.licence.name}, read {day}"
    else:
        text = f"{row.licence.name}, {EVIDENCE[row.evidence]}, known on {as_of}"
    if row.verdict == "allow":
        return f"no restriction found in {text}"
    if row.verdict == "allow_with_obligations":
        return f"nothing but obligations found in {text}"
    if row.verdict == "review":
        return f"a person has to look: {text}"
    if row.trains_others == "unknown":
        return f"what it says of training is not known: {text}"
    return f"training restricted by {text}"


def lifting(row: Row) -> str:
    """What would lift a refusal; empty where the row does not refuse."""
    if row.verdict != "refuse":
        return ""
    if row.lifted_by:
        return f"{row.lifted_by}, recorded as an authorisation"
    if row.liftable:
        return "a written permission, recorded as an authorisation"
    return "nothing that is known: no permission is provided for"


def case_words(case: Case) -> str:
    where = [
        _among("used as", case.uses),
        _among("student is", case.tasks),
        _among("student is", [_MODES[mode] for mode in case.modes]),
        _among("student begins with", case.bases),
    ]
    verdict = SOFTER.get(case.verdict, case.verdict)
    return f"{verdict} where {' and '.join(part for part in where if part) or 'anything holds'}: {case.why}"


def condition_words(condition: Condition) -> str:
    if isinstance(condition, Need):
        return f"{condition.verdict} {_NEEDS[condition.need]}: {condition.why}"
    if isinstance(condition, Feature):
        return f"{condition.verdict} for answers with {' or '.join(condition.features)}: {condition.why}"
    if isinstance(condition, Territory):
        what = "multimodal models, " if condition.modality == "multimodal" else ""
        return f"refuse for {what}an operator in {', '.join(condition.excluded)}: {condition.why}"
    return _scale_words(condition)


def obligation_words(owed: Obligation) -> str:
    texts = " or ".join(f'"{text}"' for text in owed.texts)
    words = " ".join(part for part in (_OWED[owed.kind], texts) if part)
    if owed.redistributes:
        words += ", where the teacher's own weights are in it"
    return f"{words} ({owed.where})" if owed.where else words


def _scale_words(scale: Scale) -> str:
    before, after = _FIGURES[scale.figure]
    owed = f"owed: {obligation_words(scale.owed)}" if scale.owed else ""
    then = " and ".join(part for part in (scale.verdict or "", owed) if part)
    only = [_among("student is", [_MODES[mode] for mode in scale.modes])]
    only.append("the operator sells access to models" if scale.hosting_models else "")
    where = " and ".join(part for part in only if part)
    return f"above {before}{scale.above:,} {after}{f', where {where}' if where else ''}: {then}: {scale.why}"


def _among(what: str, choices: Iterable[str]) -> str:
    words = " or ".join(choices)
    return f"{what} {words}" if words else ""
