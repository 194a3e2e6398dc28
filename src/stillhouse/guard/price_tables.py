"""What prices are reckoned from, out of tables that others write: learning curves, usage by account."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.errors import UsageError
from stillhouse.guard.pricing import Learned, Month

_MEASURED = re.compile(r"(?:(.+): )?share kept with ([\d,]+) exchanges")  # a row of benchmarks/queries.py


class Counted(NamedTuple):
    """The account-months with tokens; how many had none, and how many rows were of other models."""

    months: tuple[Month, ...]
    empty: int
    others: int


def curve_of(found: Any, method: str | None) -> tuple[Learned, ...]:
    """A learning curve, by exchanges. Where one number of exchanges was measured more than once, the mean.

    From rows with `exchanges` and `kept`, and `method` where there are several; from the result of
    `benchmarks/queries.py`; from a run's `evaluation.json` with a curve. Raises UsageError for what holds no
    curve, and for several where `method` names none.
    """
    points = _points(found)
    methods = list(dict.fromkeys(name for name, _ in points))
    if len(methods) > 1 if method is None else method not in methods:
        raise UsageError(
            "the learning curve is not told" if method is None else f"there is no learning curve {method!r}",
            f"the file has {', '.join(map(repr, methods)) or 'none'}",
            "name one of them with --method",
        )
    by_number: dict[float, list[float]] = {}
    for name, point in points:
        if method is None or name == method:
            by_number.setdefault(point.exchanges, []).append(point.kept)
    curve = tuple(Learned(number, sum(kept) / len(kept)) for number, kept in sorted(by_number.items()))
    if not curve:
        raise UsageError(
            "there is no learning curve", "no row has `exchanges` and `kept`", "see docs/guard-prices.md"
        )
    return curve


def months_of(rows: Iterable[Mapping[str, Any]], models: Collection[str]) -> Counted:
    """Sums by account and month of rows with `account`, `input_tokens`, `output_tokens` and `month` or
    `date`, as `stillhouse guard usage` prints them. A row that names a model counts if it is one of `models`.

    Raises UsageError that names the row which cannot be read.
    """
    sums: dict[tuple[str, str], list[int]] = {}
    others = 0
    for at, row in enumerate(rows, 1):
        if row.get("model") and row["model"] not in models:
            others += 1
            continue
        try:
            when = str(row["month"] if row.get("month") else row["date"])[:7]
            used = [int(row["input_tokens"]), int(row["output_tokens"])]
            who = str(row["account"])
            if min(used) < 0:
                raise ValueError("tokens below 0")
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"row {at} of the traffic cannot be read",
                f"{type(error).__name__}: {error}",
                "it needs account, month or date, input_tokens and output_tokens: see docs/guard-prices.md",
            ) from None
        sum_ = sums.setdefault((who, when), [0, 0])
        sum_[0] += used[0]
        sum_[1] += used[1]
    months = tuple(Month(who, *used) for (who, _), used in sums.items() if any(used))
    return Counted(months, len(sums) - len(months), others)


def _points(found: Any) -> list[tuple[str, Learned]]:
    if isinstance(found, Mapping) and isinstance(found.get("further"), Mapping):
        return _of_evaluation(found)
    rows = found.get("rows") if isinstance(found, Mapping) else found
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise UsageError(
            "there is no learning curve", "the file is not a table of rows", "see docs/guard-prices.md"
        )
    points = []
    for at, row in enumerate(rows, 1):
        measured = _MEASURED.fullmatch(str(row.get("what", "")))
        if measured:
            points.append(_point(at, measured[1] or "", measured[2].replace(",", ""), row.get("value")))
        elif "what" not in row:
            points.append(_point(at, str(row.get("method") or ""), row.get("exchanges"), row.get("kept")))
    return points


def _of_evaluation(found: Mapping[str, Any]) -> list[tuple[str, Learned]]:
    """A sample takes one exchange, or more where some were thrown away: then it costs more than this."""
    teacher, rows = found.get("teacher"), found["further"].get("curve")
    score = teacher.get("score") if isinstance(teacher, Mapping) else None
    if not isinstance(score, float | int) or not score:
        raise UsageError("the evaluation has no teacher's score", "shares are of it", "evaluate it again")
    rows = rows if isinstance(rows, list) else []
    scored = [row for row in rows if isinstance(row, Mapping) and isinstance(row.get("score"), float | int)]
    return [_point(at, "", row.get("samples"), row["score"] / score) for at, row in enumerate(scored, 1)]


def _point(at: int, method: str, exchanges: Any, kept: Any) -> tuple[str, Learned]:
    try:
        point = Learned(float(exchanges), float(kept))
        if not (1 <= point.exchanges < math.inf and 0 <= point.kept <= 1.5):
            raise ValueError(f"{point.exchanges:g} exchanges keep {point.kept:g}")
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"row {at} of the learning curve cannot be read",
            str(error),
            "it needs `exchanges`, at least 1, and `kept`, a share such as 0.95",
        ) from None
    return method, point
