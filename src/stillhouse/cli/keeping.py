"""The commands by which a ledger is kept: what leaves it, and what is set aside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import Json

if TYPE_CHECKING:
    from stillhouse.ledger.erasure import Erased
    from stillhouse.ledger.store import Ledger
    from stillhouse.ledger.subject import Found, Subject

_NAMED = 20  # leaves or files that a summary names


def erase(
    rows: Annotated[
        list[str] | None,
        typer.Argument(metavar="ROW", help="Leaves by their index, or samples by their id."),
    ] = None,
    containing: Annotated[
        str | None,
        typer.Option(help="Every content that holds this text, in this case; `-` reads it from stdin."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Every answer of this model.")] = None,
    account: Annotated[
        str | None,
        typer.Option(metavar="ID", help="All that was taken from this account of a guard's cascade."),
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Why; it is kept for good, so name no person in it. Needed with --yes.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Erase; without it only counts are shown.")] = False,
    as_json: Json = False,
) -> None:
    """Erase prompts and answers, and what was made from them, from everything in the workspace."""
    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.ledger import Ledger
    from stillhouse.ledger import erasure as erasing
    from stillhouse.ledger.subject import find
    from stillhouse.ledger.uses import note_uses
    from stillhouse.workspace import open_workspace

    if yes and not reason.strip():
        raise UsageError(
            "no reason is given", "the tombstone keeps it", 'add --reason "...", without personal data'
        )
    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        subject = _subject(ledger, rows or [], containing, teacher, account)
        if yes:
            done = erasing.erase(ledger, subject, reason.strip())
            show.result(_erased_object(done), _erased_text(done), as_json)
            return
        if (before := erasing.finish(ledger)) is not None:
            show.say(f"finished   what a stopped erasure began\n{_erased_text(before)}", as_json)
        found = find(ledger, subject)
        note_uses(ledger, found)
    text = f'{_found_text(found)}\nnext       nothing was erased: add --yes --reason "..."'
    show.result(_found_object(found), text, as_json)


def recall(
    decision: Annotated[int | None, typer.Option(metavar="LEAF", help="A decision of the gate.")] = None,
    authorisation: Annotated[
        int | None, typer.Option(metavar="LEAF", help="This authorisation, and every decision on it.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Every decision about this model.")] = None,
    reason: Annotated[str, typer.Option(help="Why; it is kept for good, so name no person in it.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="Undo it.")] = False,
    as_json: Json = False,
) -> None:
    """Set aside every answer that a decision covered: curating drops it, and who used it is named."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.ledger import Ledger
    from stillhouse.ledger.quarantine import By, decisions_of
    from stillhouse.ledger.quarantine import recall as set_aside
    from stillhouse.workspace import open_workspace

    ways: dict[By, int | str | None]
    ways = {"decision": decision, "authorisation": authorisation, "teacher": teacher}
    given = [(by, which) for by, which in ways.items() if which is not None]
    if len(given) != 1 or not reason.strip():
        raise UsageError(
            "say what is recalled, in one way, and why",
            "by a decision, an authorisation or a teacher; the reason is kept in the ledger",
            "stillhouse ledger recall --decision LEAF --reason ...",
        )
    by, which = given[0]
    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        done = set_aside(ledger, decisions_of(ledger, by, which), reason.strip(), lift, authorisation)
    word = "lifted" if lift else "recalled"
    lines = [
        f"{word:<10} {done.exchanges:,} answers of decisions {_named(done.decisions)}",
        f"leaf       {_named(done.leaves)}",
        f"rows       {done.rows:,} were made from them",
        *(f"run        {run}" for run in done.runs),
        *_uses_lines(done.students, done.releases),
    ]
    if done.runs:
        lines.append("next       stillhouse run RECIPE makes the samples of these runs anew")
    show.result({"lifted": lift, **asdict(done)}, "\n".join(lines), as_json)


LEDGER: dict[str, Callable[..., Any]] = {"erase": erase, "recall": recall}


def _subject(
    ledger: Ledger, rows: list[str], containing: str | None, teacher: str | None, account: str | None
) -> Subject:
    from stillhouse.errors import UsageError
    from stillhouse.ledger.subject import Subject, sample_leaves

    text = sys.stdin.read().rstrip("\n") if containing == "-" else containing
    ways = bool(rows), text is not None, teacher is not None, account is not None
    if ways.count(True) != 1 or text == "":
        raise UsageError(
            "say what is to be erased, in one way",
            "by rows, a text that it contains, the teacher that gave it, or the account that it came from",
            "stillhouse ledger erase ROW..., or --containing TEXT, --teacher MODEL, or --account ID",
        )
    leaves: list[int] = []
    for row in rows:
        leaves += [int(row)] if row.isdecimal() else sample_leaves(ledger.workspace, row)
    return Subject(text, tuple(leaves), teacher, account)


def _found_object(found: Found) -> dict[str, Any]:
    return {
        "erased": False,
        "asked": found.asked,
        "leaves": sorted(found.leaves),
        "prompts": {run: len(names) for run, names in found.prompts.items() if names},
        "students": found.students,
        "releases": found.releases,
        "cannot": [f"leaf {index}, in its own bytes" for index in found.bodies],
    }


def _found_text(found: Found) -> str:
    asked = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.asked.items())) or "none"
    prompts = sum(map(len, found.prompts.values()))
    lines = [
        f"leaves     {asked}",
        f"chain      {len(found.leaves):,} leaves in all, with what was made from them; {prompts:,} prompts",
        *_uses_lines(found.students, found.releases),
    ]
    return "\n".join(
        [*lines, *(f"cannot     leaf {index}, in its own bytes" for index in found.bodies[:_NAMED])]
    )


def _erased_object(done: Erased) -> dict[str, Any]:
    return {
        "erased": True,
        "tombstones": done.tombstones,
        "leaves": done.leaves,
        "rows": {str(path): count for path, count in done.rows.items()},
        "shards": done.shards,
        "files": list(map(str, done.files)),
        "students": done.students,
        "releases": done.releases,
        "left": done.left,
        "wal_emptied": done.compacted,
        "out_of_reach": done.out_of_reach,
    }


def _erased_text(done: Erased) -> str:
    lines = [
        f"erased     {len(done.leaves):,} leaves' contents and salts; tombstones {_named(done.tombstones)}",
        *(f"rows       {count:,} of {path}" for path, count in done.rows.items()),
        *(
            f"shard      {old[:16]}... became {new[:16] + '...' if new else 'none'}"
            for old, new in done.shards.items()
        ),
        *(f"file       {path}" for path in done.files),
        *_uses_lines(done.students, done.releases),
        *(f"left       {what}" for what in done.left),
    ]
    if not done.compacted:
        lines.append("WAL        another process reads the ledger; it is emptied when that one has finished")
    return "\n".join([*lines, "not reached: " + "; ".join(done.out_of_reach)])


def _uses_lines(students: list[dict[str, Any]], releases: list[dict[str, Any]]) -> list[str]:
    trained = [f"student    leaf {one['leaf']}, run {one['run']}" for one in students]
    return trained + [f"release    leaf {one['leaf']}, {one['name']} of run {one['run']}" for one in releases]


def _named(leaves: list[int]) -> str:
    more = f" and {len(leaves) - _NAMED:,} more" if len(leaves) > _NAMED else ""
    return (", ".join(map(str, leaves[:_NAMED])) or "none") + more
