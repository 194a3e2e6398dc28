"""`stillhouse watermark`: keys that mark what is served, and whether a text bears one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import Json

if TYPE_CHECKING:
    from stillhouse.watermark import Evidence, Key, Part
    from stillhouse.watermark.hashing import Ids

    Encode = Callable[[str], tuple[Ids, list[tuple[int, int]]]]

watermark_app = typer.Typer(rich_markup_mode=None, help="Mark what is served, and find the marks.")
_DECOYS = 19
_SAID = 1e-3  # at or below it the summary calls a text marked
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
    from stillhouse.workspace import open_workspace

    key, path = make(open_workspace(Path.cwd()), read_scheme({"name": scheme}), datetime.now(UTC))
    text = f"key        {key.id}, {scheme}: {path}\nnext       stillhouse serve MODEL --watermark {path}"
    show.result({**_key_row(key), "file": str(path)}, text, as_json)


@watermark_app.command("keys")
def keys(as_json: Json = False) -> None:
    """Name the workspace's keys, the newest first; secrets are not shown."""
    from stillhouse.cli import show
    from stillhouse.watermark import workspace_keys
    from stillhouse.workspace import open_workspace

    found = workspace_keys(open_workspace(Path.cwd()))
    lines = [
        f"{key.id:<10} {key.scheme.name:<10} made {key.created:%Y-%m-%d}{'' if at else ', in force'}"
        for at, key in enumerate(found)
    ]
    text = "\n".join(lines) or "no keys\nnext       stillhouse watermark rotate"
    show.result({"keys": [_key_row(key) for key in found]}, text, as_json)


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
    from stillhouse.watermark import among_keys, chosen, decoy_keys, evidence, parts, read_key, workspace_keys
    from stillhouse.workspace import open_workspace

    tried = chosen(
        [read_key(path) for path in key] if key else workspace_keys(open_workspace(Path.cwd())), account or ()
    )
    if not tried:
        raise UsageError("no watermark key", "the workspace has none", "name its file with --key")
    texts, broken = _texts(file, column)
    encode = _tokenizer(model) if any(one.scheme.name != "selection" for one in tried) else None
    read: dict[bool, list[tuple[Ids, list[tuple[int, int]]]]] = {}

    def ids(of: Key) -> list[tuple[Ids, list[tuple[int, int]]]]:
        by_words = of.scheme.name == "selection"
        if by_words not in read:
            read[by_words] = [(_words if by_words or encode is None else encode)(text) for text in texts]
        return read[by_words]

    found = among_keys(tried, [[one for one, _ in ids(of)] for of in tried])
    best = found[0][0]
    of_best = [one for one, _ in ids(best)]
    decoys = [evidence(one.scheme, one.sip, of_best) for one in decoy_keys(best, _DECOYS)]
    places: list[tuple[Part, tuple[int, int]]] = []
    if window and len(texts) == 1:
        where = ids(best)[0][1]
        for part in parts(best.scheme, best.sip, of_best[0], window):
            if part.end > part.start:
                places.append((part, (where[part.start][0], where[part.end - 1][1])))
    result = {
        "texts": len(texts),
        "broken_rows": broken,
        "keys": [{**_key_row(one), **_evidence_row(said), "adjusted_p": p} for one, said, p in found],
        "decoys": {"count": len(decoys), "smallest_p": min(one.p for one in decoys)},
        "windows": [
            {"from": at[0], "to": at[1], **_evidence_row(part.evidence), "adjusted_p": part.adjusted}
            for part, at in places
        ],
    }
    show.result(result, "\n".join(_summary(found, decoys, places, len(texts), broken)), as_json)


def _summary(
    found: list[tuple[Key, Evidence, float]],
    decoys: list[Evidence],
    places: list[tuple[Part, tuple[int, int]]],
    texts: int,
    broken: int,
) -> list[str]:
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
    marked = [(part, at) for part, at in places if part.adjusted <= _SAID]
    lines += [
        f"where      characters {at[0]:,} to {at[1]:,}: p = {_shown(part.adjusted)}"
        for part, at in marked[:_PLACES]
    ]
    if len(marked) > _PLACES:
        lines.append(f"where      and {len(marked) - _PLACES:,} stretches more")
    key, _, p = found[0]
    verdict = "no evidence of a mark; that is no evidence that there was none"
    if p <= _SAID:
        rarely = "" if p < 1e-12 else f": without it a text scores so high for one key in {1 / p:,.0f}"
        verdict = f"marked with {key.id}{rarely}"
    return [*lines, f"verdict    {verdict}"]


def _shown(p: float) -> str:
    return "< 1e-300" if p < 1e-300 else f"{p:.3g}"


def _key_row(key: Key) -> dict[str, Any]:
    from stillhouse.watermark.schemes import described

    return {
        "id": key.id,
        "scheme": described(key.scheme),
        "created": key.created.isoformat(timespec="seconds"),
        "account": key.account,
    }


def _evidence_row(said: Evidence) -> dict[str, Any]:
    return {
        "tokens": said.tokens,
        "scored": said.scored,
        "mean": said.mean,
        "expected": said.expected,
        "p": said.p,
        "ln_p": said.log_p,
    }


def _texts(file: Path, column: str) -> tuple[list[str], int]:
    """The texts of a file, and how many rows hold none."""
    import json

    from stillhouse.errors import UsageError

    try:
        whole = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}", str(error), "name a text file, in UTF-8") from error
    if file.suffix != ".jsonl":
        return [whole], 0
    texts, broken = [], 0
    for line in filter(str.strip, whole.split("\n")):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        text = row.get(column) if isinstance(row, dict) else None
        if isinstance(text, str):
            texts.append(text)
        else:
            broken += 1
    if not texts:
        raise UsageError(
            f"no text in {file}", f"no row has one in {column!r}", "name the column with --column"
        )
    return texts, broken


def _tokenizer(model: str) -> Encode:
    """Text to ids, with each id's place in the text; without torch."""
    import numpy as np

    from stillhouse.errors import UsageError
    from stillhouse.models import source_folder

    path = Path(source_folder(model)) / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"no tokenizer of {model}",
            f"{path} is missing",
            "give the folder of the model that was served, or embedded:NAME",
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))

    def encode(text: str) -> tuple[Ids, list[tuple[int, int]]]:
        done = tokenizer.encode(text, add_special_tokens=False)
        return np.array(done.ids, dtype=np.int64), done.offsets

    return encode


def _words(text: str) -> tuple[Ids, list[tuple[int, int]]]:
    from stillhouse.text import placed_words
    from stillhouse.watermark import word_ids

    return word_ids(text), list(placed_words(text))
