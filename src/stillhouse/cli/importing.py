"""`stillhouse import`: answers that were collected elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.options import Json


def import_answers(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL, CSV or Parquet with prompts and answers.")
    ],
    model: Annotated[str, typer.Option(help="The model that gave the answers.")],
    terms: Annotated[Path, typer.Option(help="File with the text of that model's terms.")],
    read_on: Annotated[str, typer.Option(help="The day on which you read them, YYYY-MM-DD.")],
    declared_by: Annotated[str, typer.Option(help="Who declares that they allow this use.")],
    about: Annotated[
        list[str] | None,
        typer.Option(help="What was read about, as the gate names it; for models of which it knows terms."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Column with the prompt.")] = "prompt",
    answer: Annotated[str, typer.Option(help="Column with the answer.")] = "answer",
    as_json: Json = False,
) -> None:
    """Bring answers that were collected elsewhere into the ledger, under declared terms."""
    from stillhouse.cli import show
    from stillhouse.collect.imported import declare, import_file
    from stillhouse.collect.prompts import name_broken
    from stillhouse.ledger import Ledger
    from stillhouse.workspace import open_workspace

    declaration = declare(terms, read_on, declared_by, about or ())
    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        done = import_file(file, model, declaration, ledger, prompt, answer)
    for line in name_broken(done.broken):
        show.say(f"left out   {line}")
    found = {
        "imported": done.imported,
        "known": done.known,
        "repeated": done.repeated,
        "broken": len(done.broken),
        "decision": done.decision,
    }
    counts = f"{done.known:,} were there, {done.repeated:,} repeated, {len(done.broken):,} left out"
    text = f"imported   {done.imported:,} answers of {model}; {counts}"
    show.result(found, text, as_json)
