"""What an account used, and what it owes for a month: lines whose sum is the sum of what its requests cost.

A line is for a model, a schedule and the step whose prices its requests were charged at, so that tokens
times price is its amount to the billionth of a dollar. Requests that crossed from one step into the next have
a line without a price.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.guard.events import MIXED, Part, Usage, date_of, number_of

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a cell begins that a spreadsheet works out


@dataclass(frozen=True, slots=True)
class Line:
    """`input_price` and `output_price` are billionths of a dollar for a token, None for requests that no
    single step explains; `amount` is in billionths of a dollar."""

    model: str
    schedule: str
    input_price: int | None
    output_price: int | None
    requests: int
    input_tokens: int
    output_tokens: int
    amount: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """`month` is "2026-11"; `lines` are those that cost something, or used tokens."""

    account: str
    month: str
    lines: tuple[Line, ...]

    @property
    def total(self) -> int:
        """Billionths of a dollar."""
        return sum(line.amount for line in self.lines)


def days_of(month: str) -> tuple[int, int]:
    """First and last day of a month, counted from 1970-01-01. Raises UsageError for what is no month."""
    found = _MONTH.fullmatch(month)
    if found is None or found[1] == "0000":
        raise UsageError(f"{month!r} is not a month", "it must be written as 2026-11", "write it so")
    first = date(int(found[1]), int(found[2]), 1)
    after = (first + timedelta(days=31)).replace(day=1)
    return number_of(first), number_of(after) - 1


def invoice_of(usage: Mapping[Part, Usage], account: str, month: str) -> Invoice:
    """The invoice of an account for a month (UTC), from usage that may hold that of others too."""
    first, last = days_of(month)
    sums: dict[tuple[str, str, int, int], Usage] = {}
    for part, used in usage.items():
        if part.account == account and first <= part.day <= last:
            what = part[4:]
            sums[what] = sums.get(what, Usage()).plus(used)
    return Invoice(
        account,
        month,
        tuple(
            Line(
                model,
                schedule,
                None if before == MIXED else before,
                None if after == MIXED else after,
                used.requests - used.refused,
                used.input_tokens,
                used.output_tokens,
                used.cost,
            )
            for (model, schedule, before, after), used in sorted(sums.items())
            if used.cost or used.input_tokens or used.output_tokens
        ),
    )


def invoice_rows(invoice: Invoice) -> list[dict[str, Any]]:
    """The lines for a table, amounts in dollars, and their total last."""
    rows = [
        asdict(line)
        | {
            "input_price": None if line.input_price is None else per_million(line.input_price),
            "output_price": None if line.output_price is None else per_million(line.output_price),
            "amount": dollars(line.amount),
        }
        for line in invoice.lines
    ]
    total = {name: sum(getattr(line, name) for line in invoice.lines) for name in _SUMMED}
    empty = {"schedule": "", "input_price": None, "output_price": None}
    return [*rows, {"model": "total", **empty, **total, "amount": dollars(invoice.total)}]


_SUMMED = ("requests", "input_tokens", "output_tokens")


def invoice_json(invoice: Invoice) -> dict[str, Any]:
    """Amounts as whole billionths and as dollars in words of digits, which no reader rounds."""
    return {
        "account": invoice.account,
        "month": invoice.month,
        "currency": "USD",
        "lines": [
            {**asdict(line), "amount": line.amount, "dollars": dollars(line.amount)} for line in invoice.lines
        ],
        "total": invoice.total,
        "dollars": dollars(invoice.total),
    }


def usage_rows(usage: Mapping[Part, Usage]) -> list[dict[str, Any]]:
    """Usage for a table, by day, organisation, account, key and model; prices summed over."""
    sums: dict[tuple[int, str, str, str, str], Usage] = {}
    for part, used in usage.items():
        sums[part[:5]] = sums.get(part[:5], Usage()).plus(used)
    names = Part._fields[1:5]
    return [
        {
            "date": date_of(day).isoformat(),
            **dict(zip(names, who, strict=True)),
            **used._asdict(),
            "cost": dollars(used.cost),
        }
        for (day, *who), used in sorted(sums.items())
    ]


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """RFC 4180. A text that a spreadsheet would work out as a formula gets an apostrophe before it."""
    rows = list(rows)
    out = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def dollars(billionths: int) -> str:
    """Exact, with as many digits as it needs and at least two."""
    sign = "-" if billionths < 0 else ""
    whole, rest = divmod(abs(billionths), 10**9)
    digits = f"{rest:09}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{digits}"


def per_million(price: int) -> str:
    """A price in billionths for a token, as dollars for a million."""
    return dollars(price * 10**6)


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
