"""`stillhouse audit lineage`: was a model taught by another, made from it, or trained on a ledger's rows?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import Json

if TYPE_CHECKING:
    from stillhouse.audit.lineage import Material, Settings


def add_to(app: typer.Typer) -> None:
    app.command("lineage")(audit_lineage)


def audit_lineage(
    suspect: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Its answers (JSONL), or its checkpoint (a folder).")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(metavar="PATH", help="The same of the teacher.")] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A model that may explain it; again for each, or a folder of all."),
    ] = None,
    related: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Stated relations: a JSON object of tags by name.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows that the suspect may have been trained on.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Like rows that were kept out by chance.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The suspect before it was trained on them.")
    ] = None,
    watermark: Annotated[
        Path | None, typer.Option(metavar="KEY", help="The key that marked the teacher's answers.")
    ] = None,
    served: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answers that it marked, as `guard answers` writes them."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model that was marked, for its tokenizer: as `serve` takes it.")
    ] = None,
    level: Annotated[float, typer.Option(help="The share of false accusations that is allowed.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Draws the shuffles of tests that have any.")] = 0,
    evidence: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the signed evidence there, and a page beside it."),
    ] = None,
    repeat: Annotated[
        Path | None, typer.Option(metavar="EVIDENCE", help="Make the test of an evidence file again.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The maker's public key (PEM), as you had it before; with --repeat.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test by answers, marks, weights or losses whether a model was taught by another, or on given rows."""
    from stillhouse.audit.lineage import Settings, find, material
    from stillhouse.cli.watermarks import tokenizer_of

    if repeat is not None:
        _repeat(repeat, key, as_json)
        return
    given = [
        material(role, path)
        for role, path in (
            ("suspect", suspect),
            ("teacher", teacher),
            ("rows", rows),
            ("held-out", held_out),
            ("base", base),
            ("key", watermark),
            ("served", served),
            ("tokenizer", None if model is None else tokenizer_of(model)),
        )
        if path is not None
    ]
    given += [material("control", path) for each in control or () for path in _controls(each, given)]
    settings = Settings(level, seed, None if related is None else _tags(related, given))
    found = find(given, settings)
    from stillhouse.audit.lineage.evidence import figures
    from stillhouse.cli import show

    written = () if evidence is None else _write(evidence, found, given, settings)
    record = figures(found) | {"evidence": [str(path) for path in written]}
    show.result(record, _text(record), as_json)


def _controls(path: Path, given: list[Material]) -> list[Path]:
    """A checkpoint as it is; of a folder of answers every file but those of suspect and teacher."""
    from stillhouse.audit.lineage import answer_files

    if path.is_dir() and not (path / "config.json").exists():
        taken = {each.path.resolve() for each in given}
        return [file for file in answer_files(path) if file.resolve() not in taken]
    return [path]


def _tags(file: Path, given: list[Material]) -> dict[str, list[str]]:
    """The tags of those that are given. Raises UsageError for a file that holds something else."""
    import json

    from stillhouse.errors import UsageError

    try:
        said = json.loads(file.read_bytes())
        return {each.name: [str(tag) for tag in said[each.name]] for each in given if each.name in said}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"cannot read {file}",
            str(error),
            'give a JSON object such as {"a model": ["its maker", "its base"]}',
        ) from None


def _write(file: Path, found: Any, given: list[Material], settings: Settings) -> tuple[Path, Path]:
    from dataclasses import asdict
    from datetime import UTC, datetime
    from importlib.metadata import version

    from stillhouse.audit.lineage import body, seal
    from stillhouse.ledger.keys import read_signing_key
    from stillhouse.report.lineage import page
    from stillhouse.workspace import open_workspace, write_atomic

    key = read_signing_key(open_workspace(Path.cwd()))
    software = {name: version(name) for name in ("stillhouse", "numpy")}
    made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    whole = body(found, given, asdict(settings), software, made)
    sealed = seal(whole, key)
    write_atomic(file, sealed)
    shown = file.with_suffix(".html")
    write_atomic(shown, page(whole, sealed).encode())
    return file, shown


def _repeat(file: Path, key: Path | None, as_json: bool) -> None:
    from stillhouse.audit.lineage import repeat
    from stillhouse.cli import show
    from stillhouse.ledger.keys import read_public_pem

    done = repeat(file, None if key is None else read_public_pem(key))
    by = "signed by the key given" if key is not None else "signed; give --key to know by whom"
    lines = [_text(done.finding), f"evidence   {by}"]
    lines += [f"differs    {line}" for line in done.differences]
    lines += [] if done.differences else ["repeated   the same figures"]
    record = done.finding | {"differences": list(done.differences)}
    show.result(record, "\n".join(lines), as_json)
    if done.differences:
        raise typer.Exit(1)


def _text(found: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    lines = [f"question   {found['question']}", f"verdict    {found['verdict']}: {found['why']}", ""]
    lines.append(f"{'test':<24} {'p':>9} {'adjusted':>9} {'effect':>8}  interval, control")
    for test in found["tests"]:
        effect = test["effect"]
        ends = "" if effect["low"] is None else f"{number(effect['low'])} to {number(effect['high'])}"
        beside = ", ".join(part for part in (ends, test["control"], test["note"]) if part)
        figures = f"{number(test['p']):>9} {number(test['adjusted']):>9} {number(effect['value']):>8}"
        lines.append(f"{test['name']:<24} {figures}  {beside}")
    lines += ["", found["correction"], *(f"limit      {limit}" for limit in found["limits"])]
    lines += [f"written    {path}" for path in found.get("evidence", ())]
    return "\n".join(lines)
