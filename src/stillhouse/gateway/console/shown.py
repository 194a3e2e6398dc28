"""How things are written on the pages, and the templates themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stillhouse.gateway.store.rows import Change
from stillhouse.guard.config import Limits
from stillhouse.guard.limits import Limit

NANO = 1_000_000_000
NONE = "none"
_FILLERS = "\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe0f"  # printable by name only
_MARKS = re.compile(r"([\u0300-\u036f]{3})[\u0300-\u036f]+")  # more on one letter cover the lines around
_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))

MEASURES = {
    "requests": "requests",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "concurrent": "in flight",
    "money": "spent",
}
WINDOWS = {"minute": "a minute", "day": "a day", "month": "this month", "ever": ""}
ENDINGS = {
    "whole": "answered",
    "client_left": "client left",
    "upstream_cut": "cut by the upstream",
    "refused": "refused",
    "failed": "failed",
}


def plain(text: str) -> str:
    """The text with everything that is not seen, or that turns the direction of what is, spelt out."""
    if text.isascii() and text.isprintable():
        return text
    seen = "".join(
        letter if letter.isprintable() and letter not in _FILLERS else f"[U+{ord(letter):04X}]"
        for letter in text
    )
    return _MARKS.sub(r"\1…", seen)


def finished(value: Any) -> Any:
    """What every value goes through on its way into a page, before it is escaped."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def money(billionths: int) -> str:
    dollars = billionths / NANO
    sign, size = ("−" if dollars < 0 else ""), abs(dollars)
    if 0 < size < 0.01:
        return f"{sign}${size:.2g}" if size >= 0.0001 else f"{sign}<$0.0001"
    return f"{sign}${size:,.2f}"


def dollars(amount: float) -> str:
    return money(round(amount * NANO))


def count(number: float) -> str:
    return f"{number:,.0f}"


def compact(number: float) -> str:
    """Three digits and a unit: 1.25M."""
    for size, unit in _UNITS:
        if abs(number) >= size:
            return (
                f"{number / size:.3g}{unit}" if abs(number) < 1000 * size else f"{number / size:,.0f}{unit}"
            )
    return f"{number:,.0f}" if number == int(number) else f"{number:.3g}"


def share(part: float, whole: float) -> str:
    """A percentage; no figure where there was nothing."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 10 and part else f"{percent:.0f}%"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"


def stamp(at: float, form: str = "%Y-%m-%d %H:%M:%S") -> Markup:
    when = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        when.isoformat(timespec="seconds"), when.strftime(form)
    )


def ago(at: float | None, now: float) -> Markup:
    if at is None:
        return Markup('<span class="unknown">never</span>')
    age = max(0.0, now - at)
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if age >= size:
            said = f"{age / size:.0f} {unit} ago"
            break
    else:
        said = f"{age:.0f} s ago"
    when = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{0}" title="{1} UTC">{2}</time>').format(
        when.isoformat(timespec="seconds"), when.strftime("%Y-%m-%d %H:%M:%S"), said
    )


def limit_name(limit: Limit) -> str:
    if limit.measure == "money":
        return "spent this month" if limit.window == "month" else "spent of what was paid in"
    return f"{MEASURES[limit.measure]} {WINDOWS[limit.window]}".strip()


def amount(measure: str, number: int) -> str:
    return money(number) if measure == "money" else count(number)


def field_name(name: str) -> str:
    if name in Limits.model_fields:
        return (
            "requests in flight" if name == "concurrent" else name.replace("_per_", " a ").replace("_", " ")
        )
    return name.replace("_", " ")


def value_of(name: str, value: Any) -> str:
    """A value of the log of changes, for people."""
    match value:
        case None | "" | [] | () | {}:
            return NONE
        case bool():
            return "yes" if value else "no"
        case Mapping():
            return ", ".join(f"{field_name(key)} {value_of(key, each)}" for key, each in value.items())
        case list() | tuple():
            return ", ".join(map(str, value))
        case int() | float() if name == "paid":
            return money(int(value))
        case int() | float() if name == "budget":
            return dollars(value)
        case int() | float() if name in ("expires", "revoked", "earlier_ends"):
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M} UTC"
        case int() | float():
            return f"{value:,}"
    return str(value)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What changed: its name, what it was and what it is."""
    rows: list[tuple[str, str, str]] = []
    for name, new in after.items():
        old = before.get(name)
        if name == "limits" and isinstance(new, Mapping):
            was = old if isinstance(old, Mapping) else {}
            keys = [key for key in Limits.model_fields if was.get(key) != new.get(key)]
            rows += [
                (field_name(key), value_of(key, was.get(key)), value_of(key, new.get(key))) for key in keys
            ]
        elif old != new:
            rows.append((field_name(name), value_of(name, old), value_of(name, new)))
    return rows


def changed(change: Change) -> list[tuple[str, str, str]]:
    """For the log; `why` repeats the reason."""
    after = {name: value for name, value in change.after.items() if name != "why"}
    rows = differences(change.before, after)
    return [row for row in rows if row[2] != NONE] if change.what == "add" else rows


def subject_url(subject: str) -> str:
    kind, _, id = subject.partition(":")
    return f"/admin/{kind}s/{id}"


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("stillhouse.gateway.console"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finished,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "money": money,
        "dollars": dollars,
        "count": count,
        "compact": compact,
        "stamp": stamp,
        "plain": plain,
        "seconds": seconds,
    }
    made.globals |= {
        "ago": ago,
        "share": share,
        "limit_name": limit_name,
        "amount": amount,
        "changed": changed,
        "subject_url": subject_url,
        "ENDINGS": ENDINGS,
    }
    return made
