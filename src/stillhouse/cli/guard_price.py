"""`stillhouse guard price`: which rising prices a distiller feels and ordinary accounts do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import GUARD, Json
from stillhouse.errors import UsageError

if TYPE_CHECKING:
    from stillhouse.guard.config import Guard
    from stillhouse.guard.limits import Step
    from stillhouse.guard.price_tables import Counted
    from stillhouse.guard.pricing import Bounds, Effect, Month, Pricing


def register(app: typer.Typer) -> None:
    """Give the command to `stillhouse guard`."""

    @app.command("price")
    def price(
        curve: Annotated[
            Path, typer.Argument(metavar="CURVE", help="Share of the score kept by exchanges, JSON or CSV.")
        ],
        traffic: Annotated[
            Path, typer.Argument(metavar="TRAFFIC", help="What ordinary accounts used, JSON or CSV.")
        ],
        input_tokens: Annotated[
            int, typer.Option(min=1, help="Of one of the distiller's exchanges, its question.")
        ],
        output_tokens: Annotated[int, typer.Option(min=1, help="And its answer.")],
        kept: Annotated[float, typer.Option(help="The share that the distiller wants to keep.")] = 0.9,
        method: Annotated[str | None, typer.Option(help="Which curve, of several in the file.")] = None,
        name: Annotated[
            str | None, typer.Option("--price", metavar="NAME", help="Today's, of several in the settings.")
        ] = None,
        share: Annotated[float, typer.Option(help="Of account-months that may pay more.")] = 0.01,
        more: Annotated[float, typer.Option(help="By how much all others may pay more at most.")] = 0.05,
        lowest: Annotated[float, typer.Option(help="Lowest multiple of today's price.")] = 0.9,
        highest: Annotated[float, typer.Option(help="Highest multiple of today's price.")] = 10.0,
        config: Annotated[
            Path, typer.Option("--config", metavar="CONFIG", help="The settings, a TOML file.")
        ] = GUARD,
        as_json: Json = False,
    ) -> None:
        """Rising prices against a distiller: what they do to it and to ordinary accounts."""
        from stillhouse.cli import show
        from stillhouse.guard.price_tables import curve_of, months_of
        from stillhouse.guard.pricing import Bounds, Month, price_copies
        from stillhouse.guard.reading import read_config

        settings = read_config(config)
        name, today = _today(settings, name)
        learned = curve_of(_read(curve), method)
        counted = months_of(_rows(traffic), [one.name for one in settings.models if one.price == name])
        exchange = Month("", input_tokens, output_tokens)
        bounds = Bounds(share, more, lowest, highest)
        found = price_copies(learned, counted.months, today, exchange, kept, bounds)
        show.result(
            _object(found, counted, name, today, exchange, bounds),
            "\n".join(_lines(found, counted, name, today, exchange, bounds)),
            as_json,
        )


def _today(settings: Guard, name: str | None) -> tuple[str, Step]:
    """The name and the only step of the schedule."""
    from stillhouse.guard.prices import steps_of

    if name is None and len(settings.prices) == 1:
        (name,) = settings.prices
    if name is None or name not in settings.prices:
        raise UsageError(
            "today's price is not told" if name is None else f"there is no price {name!r}",
            f"the settings have {', '.join(settings.prices) or 'none'}",
            "name one of them with --price",
        )
    steps = steps_of(name, settings.prices[name])
    if len(steps) > 1:
        raise UsageError(
            f"the price {name!r} rises already",
            "rising prices are reckoned from one that is the same for every token",
            "name one of a single step, such as the price before it rose",
        )
    return name, steps[0]


def _read(file: Path) -> Any:
    """A JSON file as it is, any other as the rows of a CSV file with a header."""
    import csv
    import io
    import json

    from stillhouse.errors import storage

    try:
        with storage("read", file):
            text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json" or text.lstrip().startswith(("[", "{")):
            return json.loads(text)
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {file}", "it was named on the command line", "name another one"
        ) from None
    except ValueError as error:
        raise UsageError(f"{file} cannot be read", str(error), "give JSON, or CSV with a header") from None
    return list(csv.DictReader(io.StringIO(text)))


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = _read(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{file} holds no rows", "it is no table", "see docs/guard-prices.md")
    return rows


def _object(
    found: Pricing, counted: Counted, name: str, today: Step, exchange: Month, bounds: Bounds
) -> dict[str, Any]:
    """Prices in dollars for a million tokens, as in the settings."""
    from dataclasses import asdict

    from stillhouse.guard.pricing import assumptions, schedule_lines

    def row(effect: Effect) -> dict[str, Any]:
        steps = [{"over": s.over, "input": s.input / 1000, "output": s.output / 1000} for s in effect.steps]
        return asdict(effect) | {"steps": steps}

    return {
        "price": {"name": name, "input": today.input / 1000, "output": today.output / 1000},
        "account_months": len(counted.months),
        "empty": counted.empty,
        "rows_of_other_models": counted.others,
        "bounds": asdict(bounds),
        "kept": found.kept,
        "exchanges": found.exchanges,
        "copy": {"input_tokens": found.copy.input_tokens, "output_tokens": found.copy.output_tokens},
        "copy_dollars_today": found.dollars,
        "account_months_above_the_copy": found.above,
        "nothing_to_be_done_by_prices": found.held,
        "best": row(found.best),
        "tradeoff": [{"share": share, **row(effect)} for share, effect in found.tradeoff],
        "spread": [{"accounts": accounts, "copy": factor} for accounts, factor in found.spread],
        "levels": [
            {"kept": level, "exchanges": exchanges, "copy": factor}
            for level, exchanges, factor in found.levels
        ],
        "assumptions": assumptions(exchange, bounds),
        "settings": schedule_lines(name, found.best.steps),
    }


def _lines(
    found: Pricing, counted: Counted, name: str, today: Step, exchange: Month, bounds: Bounds
) -> list[str]:
    from stillhouse.guard.pricing import assumptions, schedule_lines

    lines = [
        f"today      {name}: US$ {today.input / 1000:g} in, {today.output / 1000:g} out, per million tokens",
        f"ordinary   {len(counted.months):,} account-months; {counted.empty:,} without tokens and "
        f"{counted.others:,} rows of other models are left out",
        f"the copy   keeps {found.kept:.1%} after {found.exchanges:,.0f} exchanges: {found.copy.tokens:,} "
        f"tokens, US$ {found.dollars:,.2f} today; {found.above:.1%} of ordinary account-months use more",
    ]
    if found.held:
        lines += [
            f"           so no rising price makes it dearer than {1 + bounds.more:g} times: some that may",
            "           not pay more use as much. Price is no defence here; see docs/guard-prices.md",
        ]
    head = f"may pay {bounds.more:.0%} more"
    lines += [
        "",
        f"{head:>16}  copy costs  do pay so  pay more at all   most  all together",
        *(
            f"{share:>16.1%}  {effect.copy:>9.2f}x  {effect.over:>9.2%}  {effect.dearer:>15.2%}  "
            f"{effect.most:>4.2f}x  {round(effect.together - 1, 4) + 0.0:>+12.2%}"
            for share, effect in found.tradeoff
        ),
        "",
        f"with {bounds.share:.1%}, where a copy is spread over several accounts or months:",
        "",
        "    accounts  " + "".join(f"{accounts:>8,}" for accounts, _ in found.spread),
        "  copy costs  " + "".join(f"{factor:>7.2f}x" for _, factor in found.spread),
        "",
        "        kept  " + "".join(f"{level:>8.1%}" for level, _, _ in found.levels),
        "   exchanges  " + "".join(f"{exchanges:>8,.0f}" for _, exchanges, _ in found.levels),
        "  copy costs  " + "".join(f"{factor:>7.2f}x" for _, _, factor in found.levels),
        "",
        schedule_lines(name, found.best.steps),
        "",
        "assumed:",
        *(f"- {one}" for one in assumptions(exchange, bounds)),
    ]
    return lines
