"""Numbers as people read them, with their units. What is not known reads `unknown`, never 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

UNKNOWN = "unknown"
_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure with the bounds of its interval; None where a part is not known."""

    value: float | None
    low: float | None = None
    high: float | None = None


def at(tree: Any, *path: str) -> Any:
    """The value at `path` in nested dicts, or None where a step is not there."""
    for step in path:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(step)
    return tree


def number(tree: Any, *path: str) -> float | None:
    """The finite number at `path`, or None."""
    value = at(tree, *path)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def measure(tree: Any, *path: str) -> Measure:
    """The figure at `path`: a dict of `value` (or, of a system, `score`), `low` and `high`."""
    value = at(tree, *path)
    main = number(value, "value")
    return Measure(
        number(value, "score") if main is None else main, number(value, "low"), number(value, "high")
    )


def percent(value: float | None, digits: int = 1) -> str:
    if value is None:
        return UNKNOWN
    points = 100 * value
    if 0 < abs(points) < 1:
        return f"{points:.2g}%"
    return f"{points:.{digits}f}%"


def interval(figure: Measure) -> str:
    """`91.2 to 95.0%`, or nothing where no interval is known."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{100 * figure.low:.1f} to {100 * figure.high:.1f}%"


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def plural(value: float | None, noun: str) -> str:
    return f"{count(value)} {noun if value == 1 else noun + 's'}"


def scaled(value: float | None, unit: str = "") -> str:
    """`12.4 GFLOP` or `5.6M`: three significant digits with an SI prefix."""
    if value is None:
        return UNKNOWN
    for size, prefix in _SI:
        if abs(value) >= size * 0.9995:
            return f"{_digits(value / size)}{' ' if unit else ''}{prefix}{unit}"
    return f"{_digits(value)} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def money(value: float | None) -> str:
    """US dollars; small sums keep two significant digits so that they do not read as nothing."""
    if value is None:
        return UNKNOWN
    return f"US$ {value:.2g}" if 0 < abs(value) < 0.01 else f"US$ {value:,.2f}"


def moment(text: Any) -> str:
    """An ISO 8601 time as `2026-11-21 01:40 UTC`; any other text unchanged."""
    if not isinstance(text, str) or not text:
        return UNKNOWN
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    if when.tzinfo is None:
        return when.strftime("%Y-%m-%d %H:%M")
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def score(value: float | None) -> str:
    """A score of one answer, from 0 to 1."""
    return "unscored" if value is None else f"{value:.2f}".removesuffix("0").removesuffix(".0")


def _digits(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
