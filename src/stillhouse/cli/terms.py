"""`stillhouse terms`: what is known of teachers' terms, and the texts that were read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stillhouse.terms.facts import Row
    from stillhouse.terms.registry import Match, Registry
    from stillhouse.workspace import Workspace

terms_app = typer.Typer(rich_markup_mode=None, help="Look at what teachers' terms say, and keep their texts.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ACCESSES = ("shipped", "weights", "api", "router", "consumer_app")


@terms_app.command("list")
def terms_list(
    vendor: Annotated[str, typer.Option(help="Only vendors with this in their name.")] = "",
    as_json: Json = False,
) -> None:
    """Print every row of the table: whose terms, for which access, and the verdict for a general student."""
    from stillhouse.cli import show
    from stillhouse.terms.registry import record

    registry = _registry()
    rows = [row for row in registry.rows() if vendor.lower() in row.vendor.lower()]
    found = {
        "as_of": registry.as_of.isoformat(),
        "digest": registry.digest,
        "own": list(registry.own),
        "rows": [record(row) for row in rows],
    }
    lines = [_list_line(row, row.key in registry.own) for row in rows]
    lines.append(f"{len(rows)} of {len(registry.rows())} rows, as of {registry.as_of}; {registry.digest}")
    show.result(found, "\n".join(lines), as_json)


@terms_app.command("show")
def terms_show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's id, as one asks for it.")],
    access: Annotated[
        str | None, typer.Option(help=f"How it is come by: {', '.join(ACCESSES)}; any of them without this.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="The server's address, where one is asked.")] = "",
    as_json: Json = False,
) -> None:
    """Print the rows that speak about a model: what each says, on what evidence, and what is owed."""
    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.terms.facts import STRICTEST
    from stillhouse.terms.registry import record

    if access is not None and access not in ACCESSES:
        raise UsageError(
            f"no access {access!r}", "it is how a model is come by", f"one of {', '.join(ACCESSES)}"
        )
    registry = _registry()
    matches = _matches(registry, model, access, endpoint)
    strictest = max((match.row.verdict for match in matches), key=STRICTEST.index, default="refuse")
    found = {
        "model": model,
        "access": access,
        "endpoint": endpoint,
        "as_of": registry.as_of.isoformat(),
        "digest": registry.digest,
        "verdict": strictest,
        "rows": [
            {"layer": match.layer, "by": match.by, "through": match.through, "own": _own(match, registry)}
            | record(match.row)
            for match in matches
        ],
    }
    if not matches:
        text = (
            f"{model}\nno row speaks about it, so it is refused: nothing is known of its terms.\n"
            "If you have read them, add a row (docs/terms.md)."
        )
    else:
        parts = [_match_text(match, registry) for match in matches]
        more = "; the strictest counts" if len(matches) > 1 else ""
        text = "\n\n".join([f"{model}\nverdict    {strictest}{more}", *parts])
    show.result(found, text, as_json)


@terms_app.command("snapshot")
def terms_snapshot(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A file with the text, as you read it.")],
    row: Annotated[str, typer.Option(help="The key of the row that it is about.")],
    read_on: Annotated[str, typer.Option(help="The day on which you read it, YYYY-MM-DD.")],
    read_by: Annotated[str, typer.Option(help="Who read it.")],
    as_json: Json = False,
) -> None:
    """Keep a text of terms in the ledger, with its digest, so that a later text can be held against it."""
    from stillhouse.cli import show
    from stillhouse.errors import UsageError, storage
    from stillhouse.ledger import Ledger
    from stillhouse.terms.snapshots import clauses_digest, keep, snapshots
    from stillhouse.workspace import open_workspace

    if "://" in source:
        raise UsageError(
            f"{source} is an address",
            "stillhouse fetches no terms: what counts is the text that a person read",
            "open the page, save its text as a file, and give that file",
        )
    known_row(_registry(), row)
    day = _day(read_on)
    if not read_by.strip():
        raise UsageError("nobody is named", "--read-by is empty", "name who read the text")
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"no file at {source}", "it does not exist", "save the text of the terms there")
    with storage("read", path):
        text = path.read_bytes()
    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        leaf = keep(ledger, row, path.name, text, day, read_by.strip())
        kept = snapshots(ledger, row)
    digest = clauses_digest(text.decode("utf-8-sig", errors="replace"))
    earlier = [one for one in kept if one.leaf < leaf]
    changed = bool(earlier) and earlier[-1].clauses_sha256 != digest
    found = {"leaf": leaf, "row": row, "clauses_sha256": digest, "changed": changed, "kept": len(kept)}
    news = f"; it differs from leaf {earlier[-1].leaf}: see `stillhouse terms diff {row}`" if changed else ""
    show.result(found, f"kept       leaf {leaf}, text {len(kept)} of {row}{news}", as_json)


@terms_app.command("diff")
def terms_diff(
    row: Annotated[str | None, typer.Argument(metavar="ROW", help="The key of a row.")] = None,
    before: Annotated[int | None, typer.Option("--from", help="The leaf of the earlier text.")] = None,
    after: Annotated[int | None, typer.Option("--to", help="The leaf of the later text.")] = None,
    as_json: Json = False,
) -> None:
    """Print what changed between two kept texts of a row (the newest two), white space aside; without a row,
    in what the workspace's own rows differ from the package's."""
    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.ledger import Ledger
    from stillhouse.terms.snapshots import difference, snapshots
    from stillhouse.workspace import open_workspace

    registry = _registry()
    if row is None:
        if before is not None or after is not None:
            raise UsageError("no row given", "--from and --to are texts of one", "stillhouse terms diff ROW")
        changes, lines = _own_rows(registry)
        show.result({"own": changes}, "\n".join(lines), as_json)
        return
    known_row(registry, row)
    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        kept = {one.leaf: one for one in snapshots(ledger, row)}
    leaves = sorted(kept)
    if len(leaves) > 1:
        before, after = leaves[-2] if before is None else before, leaves[-1] if after is None else after
    if before not in kept or after not in kept:
        raise UsageError(
            f"no two texts of {row} to compare",
            f"its texts are leaves: {', '.join(map(str, leaves)) or 'none'}",
            f"keep one with `stillhouse terms snapshot FILE --row {row} ...`",
        )
    one, other = kept[before], kept[after]
    lines = difference(one, other)
    found = {
        "row": row,
        "from": one.leaf,
        "to": other.leaf,
        "changed": bool(lines),
        "bytes_differ": one.sha256 != other.sha256,
        "diff": lines,
    }
    same = "the texts are the same" if one.sha256 == other.sha256 else "nothing changed but white space"
    show.result(found, "\n".join(lines) or f"{same}: leaves {one.leaf} and {other.leaf}", as_json)


def known_row(registry: Registry, key: str) -> Row:
    """The row of this key. Raises UsageError, with the nearest key, where there is none."""
    from difflib import get_close_matches

    from stillhouse.errors import UsageError

    row = registry.row(key)
    if row is None:
        near = get_close_matches(key, [one.key for one in registry.rows()], n=1)
        mend = f"did you mean {near[0]}?" if near else "see `stillhouse terms list`"
        raise UsageError(f"no row {key!r}", "neither the package nor the workspace has it", mend)
    return row


def _registry() -> Registry:
    """The package's table, with the rows of the workspace where there is one."""
    from stillhouse.terms.registry import load
    from stillhouse.workspace import find_workspace

    workspace: Workspace | None = find_workspace(Path.cwd())
    return load(None if workspace is None else workspace.terms)


def _day(text: str) -> Any:
    from datetime import UTC, date, datetime, timedelta

    from stillhouse.errors import UsageError

    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"{text!r} is not a date",
            "a day is written YYYY-MM-DD",
            "give the day on which you read the text",
        ) from None
    # Nowhere on earth is it later than at UTC+14.
    if day > (datetime.now(UTC) + timedelta(hours=14)).date():
        raise UsageError(
            f"{day} lies in the future", "a text is read before it is kept", "give the day of reading"
        )
    return day


def _matches(registry: Registry, model: str, access: Any, endpoint: str) -> list[Match]:
    from stillhouse.terms.registry import LAYERS

    ways = ACCESSES if access is None else (access,)
    found: dict[str, Match] = {}
    for way in ways:
        for match in registry.matches(model, way, endpoint):  # type: ignore[arg-type]
            found.setdefault(match.row.key, match)
    return sorted(found.values(), key=lambda match: LAYERS.index(match.layer))


def _own(match: Match, registry: Registry) -> bool:
    return match.row.key in registry.own


def _list_line(row: Row, own: bool) -> str:
    read = str(row.read_on) if row.read_on else "-"
    mark = " (this workspace's)" if own else ""
    return (
        f"{row.key:<28}{row.access:<13}{row.verdict:<23}{read:<11} {row.evidence:<19}{row.confidence:<7}"
        f" {row.licence.name}{mark}"
    )


def _match_text(match: Match, registry: Registry) -> str:
    from stillhouse.terms import wording

    row = match.row
    seen = "" if row.source_seen else " (address not seen: check it before use)"
    fits = f", as {match.by}" if match.by else ""
    own = ", from this workspace" if _own(match, registry) else ""
    lines = [
        f"{row.key}: {wording.layer_words(match)}{fits}{own}",
        f"  covers     {row.covers} ({row.vendor}; {row.access})",
        f"  verdict    {row.verdict}: {wording.finding(row, registry.as_of)}",
        f"  says       {row.clause} [{row.clause_ref}]",
        f"  training   other models: {row.trains_others}; competing ones: {row.trains_competing}",
    ]
    lines += [f"  case       {wording.case_words(case)}" for case in row.cases]
    lines += [f"  condition  {wording.condition_words(one)}" for one in row.conditions]
    lines += [f"  owed       {wording.obligation_words(one)}" for one in row.obligations]
    lines += ["  claims     a student is itself under this licence"] if row.claims_student else []
    lines += [f"  through    {', '.join(row.upstream)}"] if row.upstream else []
    lifting = wording.lifting(row)
    lines += [f"  lifted by  {lifting}"] if lifting else []
    lines += [
        f"  text       {row.licence.name}, version: {row.version}; {row.source}{seen}",
        f"  read       {row.read_on or 'no text of a known day'}; by way of {row.read_via}",
        f"  evidence   {row.evidence}: {wording.EVIDENCE[row.evidence]}; confidence {row.confidence}",
    ]
    lines += [f"  note       {row.notes}"] if row.notes else []
    return "\n".join(lines)


def _own_rows(registry: Registry) -> tuple[list[dict[str, Any]], list[str]]:
    """For each row of the workspace, the fields in which it differs from the package's of the same key."""
    import json

    from stillhouse.terms.registry import record, shipped

    changes, lines = [], []
    for key in registry.own:
        row, theirs = registry.row(key), shipped().row(key)
        assert row is not None
        mine, before = record(row), {} if theirs is None else record(theirs)
        fields = {
            name: [before.get(name), value] for name, value in mine.items() if before.get(name) != value
        }
        changes.append({"key": key, "added": theirs is None, "fields": fields})
        lines.append(f"{key}: " + ("added" if theirs is None else "stands for the package's row"))
        if theirs is not None:
            for name, (old, new) in fields.items():
                lines += [f"  {name}", f"    - {json.dumps(old)}", f"    + {json.dumps(new)}"]
    return changes, lines or ["this workspace has no rows of its own"]
