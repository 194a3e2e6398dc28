"""`stillhouse watermark`: keys that mark what is served, and whether a text bears one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.cli.options import Json

if TYPE_CHECKING:
    from stillhouse.watermark import Evidence, Key
    from stillhouse.watermark.hashing import Ids

    Encode = Callable[[str], tuple[Ids, list[tuple[int, int]]]]
    Alone = tuple[dict[str, int], Evidence, float]  # where a part lies, what it says, and its p-value

watermark_app = typer.Typer(rich_markup_mode=None, help="Mark what is served, and find the marks.")
_PLACES = 20  # stretches that the summary names


@watermark_app.command("rotate")
def rotate(
    scheme: Annotated[
        str, typer.Option(help="gumbel, tournament, kgw or selection: see docs/watermark.md.")
    ] = "gumbel",
    as_json: Json = False,
) -> None:
    """Make a key; it is in force from now on. Earlier ones stay, to find what they marked."""
    from datetime import UTC, datetime

    from stillhouse.cli import show
    from stillhouse.watermark import rotate as make
    from stillhouse.watermark.schemes import read_scheme
    from stillhouse.watermark.telling import key_row
    from stillhouse.workspace import open_workspace

    key, path = make(open_workspace(Path.cwd()), read_scheme({"name": scheme}), datetime.now(UTC))
    use = f"stillhouse serve MODEL --watermark {path}"
    if scheme == "selection":
        use = f'[models.watermark] key = "{path}" in guard.toml'
    text = f"key        {key.id}, {scheme}: {path}\nnext       {use}"
    show.result({**key_row(key), "file": str(path)}, text, as_json)


@watermark_app.command("keys")
def keys(
    account: Annotated[
        list[str] | None, typer.Option(help="The keys that are derived for this account instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Name the workspace's keys, the newest first; secrets are not shown."""
    from stillhouse.cli import show
    from stillhouse.watermark import account_key, workspace_keys
    from stillhouse.watermark.telling import key_row
    from stillhouse.workspace import open_workspace

    own = workspace_keys(open_workspace(Path.cwd()))
    found = [account_key(key, name) for name in account for key in own] if account else own
    lines = [
        f"{key.id:<10} {key.scheme.name:<10} made {key.created:%Y-%m-%d}"
        f"{f', of {key.account}' if key.account else ''}{'' if at % len(own) else ', in force'}"
        for at, key in enumerate(found)
    ]
    text = "\n".join(lines) or "no keys\nnext       stillhouse watermark rotate"
    show.result({"keys": [key_row(key) for key in found]}, text, as_json)


@watermark_app.command("detect")
def detect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text, or JSONL with one in each row.")],
    model: Annotated[
        str, typer.Option(help="The model that was served, for its tokenizer: as `serve` takes it.")
    ] = "embedded:desk",
    key: Annotated[
        list[Path] | None, typer.Option(metavar="KEY", help="A key's file; else all of the workspace.")
    ] = None,
    account: Annotated[
        list[str] | None, typer.Option(help="Also try the key that is derived for this account.")
    ] = None,
    column: Annotated[str, typer.Option(help="Where a row of JSONL has its text.")] = "text",
    window: Annotated[
        int, typer.Option(min=0, help="Tokens of a stretch that is tested alone; 0: none.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Test whether a text bears a mark of one of the keys. Exit code 0 either way."""
    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.watermark import chosen, read_key, workspace_keys
    from stillhouse.watermark.telling import evidence_row, rows, tried
    from stillhouse.workspace import open_workspace

    wanted = chosen(
        [read_key(path) for path in key] if key else workspace_keys(open_workspace(Path.cwd())), account or ()
    )
    if not wanted:
        raise UsageError("no watermark key", "the workspace has none", "name its file with --key")
    texts, broken = _texts(file, column)
    if window and len(texts) > 1:
        raise UsageError(
            "--window is given for several texts", f"{file} has {len(texts):,}", "give one text in a file"
        )
    by_tokens = _tokenizer(model) if any(one.scheme.name != "selection" for one in wanted) else _words
    ways = {one.scheme.name: _words if one.scheme.name == "selection" else by_tokens for one in wanted}
    read = {way: [way(text) for _, text in texts] for way in ways.values()}
    ids = {name: [one for one, _ in read[way]] for name, way in ways.items()}
    found, decoys = tried(wanted, ids)
    best = found[0][0]
    if window:
        alone = _windows(best, *read[ways[best.scheme.name]][0], window)
    else:
        alone = _rows(best, [line for line, _ in texts], ids[best.scheme.name]) if len(texts) > 1 else []
    alone = [(place, said, min(1.0, p * len(wanted))) for place, said, p in alone]
    result = {
        "texts": len(texts),
        "broken_rows": broken,
        **rows(found, decoys),
        "alone": [{**place, **evidence_row(said), "adjusted_p": p} for place, said, p in alone],
    }
    show.result(result, "\n".join(_summary(found, decoys, alone, len(texts), broken)), as_json)


def _windows(key: Key, ids: Ids, where: list[tuple[int, int]], size: int) -> list[Alone]:
    """Each stretch of the text by itself, named by its characters."""
    from stillhouse.watermark import parts

    return [
        ({"from": where[part.start][0], "to": where[part.end - 1][1]}, part.evidence, part.adjusted)
        for part in parts(key.scheme, key.sip, ids, size)
        if part.end > part.start
    ]


def _rows(key: Key, lines: list[int], texts: list[Ids]) -> list[Alone]:
    """Each text by itself, named by its line; p-values bear that there are so many."""
    from stillhouse.stats import holm
    from stillhouse.watermark import evidence

    found = [evidence(key.scheme, key.sip, [ids]) for ids in texts]
    adjusted = holm([said.p for said in found])
    return [
        ({"line": line}, said, 1.0 if p is None else p)
        for line, said, p in zip(lines, found, adjusted, strict=True)
    ]


def _summary(
    found: list[tuple[Key, Evidence, float]],
    decoys: list[Evidence],
    alone: list[Alone],
    texts: int,
    broken: int,
) -> list[str]:
    from stillhouse.watermark.telling import SAID, verdict

    lines = [f"texts      {texts:,}" + (f"; {broken:,} rows could not be read" if broken else "")]
    for key, said, p in found:
        name = f"{key.id} ({key.scheme.name}{', ' + key.account if key.account else ''})"
        mean = "nothing to score" if said.mean is None else f"mean score {said.mean:.4g}"
        lines.append(
            f"key        {name}: {said.scored:,} of {said.tokens:,} tokens scored, {mean} against "
            f"{said.expected:.4g}; p = {_shown(p)}"
        )
    smallest = min(one.p for one in decoys)
    lines.append(f"decoys     {len(decoys)} keys that marked nothing: smallest p {_shown(smallest)}")
    marked = [(place, p) for place, _, p in alone if p <= SAID]
    if alone:
        lines.append(f"alone      {len(marked):,} of {len(alone):,} parts are marked each by itself")
    for place, p in marked[:_PLACES]:
        named = (
            f"line {place['line']:,}" if "line" in place else "characters {from:,} to {to:,}".format(**place)
        )
        lines.append(f"where      {named}: p = {_shown(p)}")
    if len(marked) > _PLACES:
        lines.append(f"where      and {len(marked) - _PLACES:,} more")
    return [*lines, f"verdict    {verdict(found)}"]


def _shown(p: float) -> str:
    return "< 1e-300" if p < 1e-300 else f"{p:.3g}"


def _texts(file: Path, column: str) -> tuple[list[tuple[int, str]], int]:
    """The texts of a file, each with its line, and how many rows hold none."""
    import json

    from stillhouse.errors import UsageError

    try:
        whole = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}", str(error), "name a text file, in UTF-8") from error
    if file.suffix != ".jsonl":
        return [(1, whole)], 0
    texts, broken = [], 0
    for at, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        text = row.get(column) if isinstance(row, dict) else None
        if isinstance(text, str):
            texts.append((at, text))
        else:
            broken += 1
    if not texts:
        raise UsageError(
            f"no text in {file}", f"no row has one in {column!r}", "name the column with --column"
        )
    return texts, broken


def tokenizer_of(model: str) -> Path:
    """Raises UsageError where it is missing."""
    from stillhouse.errors import UsageError
    from stillhouse.models import source_folder

    path = Path(source_folder(model)) / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"no tokenizer of {model}",
            f"{path} is missing",
            "give the folder of the model that was served, or embedded:NAME",
        )
    return path


def _tokenizer(model: str) -> Encode:
    """Text to ids, with each id's place in the text; without torch."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_of(model)))

    def encode(text: str) -> tuple[Ids, list[tuple[int, int]]]:
        done = tokenizer.encode(text, add_special_tokens=False)
        return np.array(done.ids, dtype=np.int64), done.offsets

    return encode


def _words(text: str) -> tuple[Ids, list[tuple[int, int]]]:
    from stillhouse.text import placed_words
    from stillhouse.watermark import word_ids

    return word_ids(text), list(placed_words(text))
