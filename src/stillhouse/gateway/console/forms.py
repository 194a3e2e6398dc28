"""The fields of each form, and the order that is read from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import ValidationError

from stillhouse.gateway.console.shown import field_name
from stillhouse.gateway.store.rows import Holder, Kind
from stillhouse.guard.accounts import Account, Key, Organisation
from stillhouse.guard.config import Guard, Limits, Tier


@dataclass(frozen=True, slots=True)
class Field:
    """`kind` is text, number, money, date, select or tick; `rest` is what holds where it stays empty."""

    name: str
    label: str
    kind: str = "text"
    value: str = ""
    hint: str = ""
    rest: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    needed: bool = False

    def with_value(self, value: str) -> Field:
        return replace(self, value=value)


class Wrong(Exception):
    """A field holds what cannot be read."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name
        self.why = why


def fields_of(
    kind: Kind, verb: str, holder: Holder | None, config: Guard, organisation: str = ""
) -> list[Field]:
    """Of the form, filled with what holds now. `organisation` is that of a new account."""
    match kind, verb:
        case "account", "new":
            return [
                Field("name", "Name", needed=True),
                Field("organisation", "Organisation", value=organisation, hint="Its id; empty: none."),
                _tier(config, "default"),
                *_limits({}, config.tiers.get("default")),
                Field("budget", "Budget", "money", hint="US dollars a month; empty: the tier’s."),
                Field("consent", "It agreed that its texts may be kept", "tick"),
            ]
        case "organisation", "new":
            return [Field("name", "Name", needed=True), *_limits({}, None)]
        case "account", "change":
            assert isinstance(holder, Account)
            tier = config.tiers.get(holder.tier)
            rest = "" if tier is None or tier.budget is None else f"{tier.budget:,.2f}"
            budget = "" if holder.budget is None else f"{holder.budget:.15g}"
            return [
                Field("name", "Name", value=holder.name, needed=True),
                _tier(config, holder.tier),
                *_limits(holder.limits, tier),
                Field("budget", "Budget", "money", budget, "US dollars a month (UTC).", rest),
                Field(
                    "consent", "It agreed that its texts may be kept", "tick", "yes" if holder.consent else ""
                ),
            ]
        case "organisation", "change":
            assert isinstance(holder, Organisation)
            return [Field("name", "Name", value=holder.name, needed=True), *_limits(holder.limits, None)]
        case "account", "key":
            return [
                Field("name", "Name", hint="What it is for."),
                Field(
                    "models", "Models", hint="Names or patterns with spaces between; empty: as the account."
                ),
                Field("expires", "Expires", "date", hint="At the beginning of that day (UTC); empty: never."),
            ]
        case "key", "change":
            assert isinstance(holder, Key)
            ends = "" if holder.expires is None else f"{datetime.fromtimestamp(holder.expires, UTC):%Y-%m-%d}"
            return [
                Field("name", "Name", value=holder.name),
                Field(
                    "models",
                    "Models",
                    value=" ".join(holder.models),
                    hint="Names or patterns with spaces between; empty: as the account.",
                ),
                Field(
                    "expires", "Expires", "date", ends, "At the beginning of that day (UTC); empty: never."
                ),
                *_limits(holder.limits, None),
            ]
        case "account", "pay":
            return [
                Field("amount", "Amount", "money", hint="US dollars; below 0 it is paid back.", needed=True),
                Field(
                    "reference", "Reference", hint="Of the transfer or the invoice: counts once.", needed=True
                ),
            ]
        case "account", "accept" | "training":
            version = config.terms.version if config.terms is not None else ""
            return [Field("version", "Version", value=version, needed=True)]
        case "key", "rotate":
            return [
                Field("grace_hours", "The old secret works for", "number", "24", "Hours; 0: it ends at once.")
            ]
    return []


def order_of(verb: str, given: Mapping[str, str], holder: Holder | None, config: Guard) -> dict[str, Any]:
    """The order’s fields; of a change only those that differ from what holds. Raises Wrong."""
    tree: dict[str, Any] = {}
    for name, text in given.items():
        if name in Limits.model_fields:
            if text:
                tree.setdefault("limits", {})[name] = _whole(name, text)
            else:
                tree.setdefault("limits", {})
        elif name == "budget":
            tree["budget"] = float(_decimal(name, text)) if text else None
        elif name == "amount":
            tree["amount"] = _decimal(name, text)
        elif name == "consent":
            tree["consent"] = text == "yes"
        elif name == "models":
            tree["models"] = text.replace(",", " ").split()
        elif name == "expires":
            tree["expires"] = _day(name, text) if text else None
        elif name == "grace_hours":
            tree["grace_seconds"] = float(_decimal(name, text)) * 3600.0
        elif name == "organisation":
            tree["organisation"] = text or None
        else:
            tree[name] = text
    if verb != "change" or holder is None:
        return tree
    if isinstance(holder, Key) and holder.expires is not None and tree.get("expires") is not None:
        # The form knows the day only.
        same = tree["expires"] == holder.expires // 86_400 * 86_400
        tree["expires"] = holder.expires if same else tree["expires"]
    return {name: value for name, value in tree.items() if _comparable(getattr(holder, name)) != value}


def faults(error: ValidationError | Wrong, fields: Sequence[Field]) -> list[str]:
    """What is wrong with a form, for people; without what was given."""
    labels = {field.name: field.label for field in fields} | {"reason": "Reason", "sure": "Sure"}
    if isinstance(error, Wrong):
        return [f"{labels.get(error.name, error.name)}: {error.why}."]
    told = []
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        name = next((str(part) for part in reversed(each["loc"]) if isinstance(part, str)), "")
        said = (
            "say why: it is recorded"
            if name == "reason" and each["type"] == "string_too_short"
            else each["msg"]
        )
        if each["type"] == "string_pattern_mismatch":
            said = "has a character that cannot stand there"
        told.append(f"{labels.get(name, field_name(name))}: {said[:1].lower()}{said[1:]}.")
    return list(dict.fromkeys(told))


def _tier(config: Guard, now: str) -> Field:
    names = [*config.tiers] if now in config.tiers else [now, *config.tiers]
    return Field("tier", "Tier", "select", now, choices=tuple((name, name) for name in names))


def _limits(own: Mapping[str, int], tier: Tier | None) -> list[Field]:
    fields = []
    for name in Limits.model_fields:
        rest = getattr(tier.limits, name) if tier is not None else None
        value = str(own[name]) if name in own else ""
        said = "no limit" if rest is None else f"{rest:,}"
        fields.append(Field(name, field_name(name).capitalize(), "number", value, rest=said))
    return fields


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _whole(name: str, text: str) -> int:
    digits = text.replace(",", "").replace(" ", "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 15):
        raise Wrong(name, "give a whole number above 0, or nothing")
    return int(digits)


def _decimal(name: str, text: str) -> Decimal:
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        raise Wrong(name, "give a number such as 12.50") from None
    if not number.is_finite():
        raise Wrong(name, "give a number such as 12.50")
    return number


def _day(name: str, text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise Wrong(name, "give a day such as 2026-12-31") from None
