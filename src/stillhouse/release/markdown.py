"""Markdown from values that nobody vouches for: names of models, words of a licence, notes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NOT_RECORDED = "not recorded"
_MARKED = re.compile(r"([\\`*\[\]<>|#~&$]|(?<!\w)_|_(?!\w))")
_TICKS = re.compile(r"`+")


def text(value: object) -> str:
    """On one line, and without effect on what stands around it. None is not recorded."""
    if value is None:
        return NOT_RECORDED
    return _MARKED.sub(r"\\\1", _line(value))


def code(value: object) -> str:
    """As `text`, in the type of code: between more backticks than it holds in a row."""
    if value is None:
        return NOT_RECORDED
    line = _line(value).replace("|", "\u2223")  # a bar ends a table's cell even within code
    ticks = "`" * (1 + max((len(run) for run in _TICKS.findall(line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def percent(value: float | None) -> str:
    return NOT_RECORDED if value is None else f"{100 * value:.1f} %"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not measured"
    if low is None or high is None:
        return f"{percent(value)} (interval unknown)"
    return f"{percent(value)} ({percent(low)} to {percent(high)})"


def _line(value: object) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
