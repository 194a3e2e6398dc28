"""`stillhouse guard usage` and `invoice`: what accounts used, and what they owe for a month."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import GUARD, Config, Json
from stillhouse.errors import UsageError

if TYPE_CHECKING:
    from stillhouse.guard.config import Store
    from stillhouse.guard.events import Part, Usage
    from stillhouse.guard.invoices import Invoice

Csv = Annotated[bool, typer.Option("--csv", help="Print a table in CSV on stdout.")]


def usage(
    store: Store, account: str | None, first: date, last: date, organisation: str | None = None
) -> dict[Part, Usage]:
    """What was used on the days (UTC) from `first` to `last`, both included; of an account, or of all.

    Raises StorageError when the events cannot be read.
    """
    from contextlib import closing

    from stillhouse.gateway.store.events import Events
    from stillhouse.guard.events import number_of

    with closing(Events(store)) as events:
        return events.usage(number_of(first), number_of(last), account, organisation)


def invoice(store: Store, account: str, month: str) -> Invoice:
    """What an account owes for a month such as "2026-11". Raises UsageError for what is no month, and
    StorageError when the events cannot be read."""
    from stillhouse.guard.events import date_of
    from stillhouse.guard.invoices import days_of, invoice_of

    first, last = (date_of(day) for day in days_of(month))
    return invoice_of(usage(store, account, first, last), account, month)


def register(app: typer.Typer) -> None:
    """Give the commands to `stillhouse guard`."""

    @app.command("usage")
    def usage_command(
        account: Annotated[str | None, typer.Option(help="Only of this account.")] = None,
        organisation: Annotated[str | None, typer.Option(help="Only of this organisation.")] = None,
        since: Annotated[str, typer.Option("--from", metavar="DAY", help="As 2026-11-01 (UTC).")] = "",
        until: Annotated[
            str, typer.Option("--to", metavar="DAY", help="The last day; today where left out.")
        ] = "",
        config: Config = GUARD,
        as_csv: Csv = False,
        as_json: Json = False,
    ) -> None:
        """What was used, by day, account, key and model: since the month began where no day is given."""
        from stillhouse.guard import invoices

        today = datetime.now(UTC).date()
        first, last = _day(since, today.replace(day=1)), _day(until, today)
        found = usage(_store(config), account, first, last, organisation)
        _show(invoices.usage_rows(found), as_csv, as_json)

    @app.command("invoice")
    def invoice_command(
        account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="As `accounts list` shows it.")],
        month: Annotated[str, typer.Argument(metavar="MONTH", help="As 2026-11 (UTC).")],
        config: Config = GUARD,
        as_csv: Csv = False,
        as_json: Json = False,
    ) -> None:
        """What an account owes for a month: lines by model, schedule and step, exact to the billionth."""
        from stillhouse.guard import invoices

        found = invoice(_store(config), account, month)
        if as_json:
            from stillhouse.cli import show

            show.result(invoices.invoice_json(found), "", True)
        else:
            _show(invoices.invoice_rows(found), as_csv, False)


def _store(config: Path) -> Store:
    from stillhouse.guard.reading import read_config

    return read_config(config).store


def _show(rows: list[dict[str, Any]], as_csv: bool, as_json: bool) -> None:
    from stillhouse.cli import show
    from stillhouse.guard import invoices

    if as_csv:
        print(invoices.as_csv(rows), end="")
    else:
        show.result(rows, _table(rows), as_json)


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "nothing was used"
    cells = [list(rows[0])] + [
        ["-" if value is None else str(value) for value in row.values()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [not isinstance(value, str) for value in rows[0].values()]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _day(text: str, otherwise: date) -> date:
    try:
        return date.fromisoformat(text) if text else otherwise
    except ValueError:
        raise UsageError(
            f"{text!r} is not a day", "it must be written as 2026-11-01", "write it so"
        ) from None
