"""`stillhouse terms check, authorise, revoke, operator`: what the gate decides, and what changes that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stillhouse.terms import Decision

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Many = list[str] | None


def add_to(app: typer.Typer) -> None:
    """Add these commands to the group `terms`."""
    for command in (check, authorise, revoke, operator):
        app.command(command.__name__)(command)


def terms_lines(decided: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the gate decided about each use, from the bodies of its decisions; alike ones on one line."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for body in decided:
        key = body["teacher"]["model"], body["verdict"].replace("_", " "), body["reason"]
        alike.setdefault(key, []).append(body["use"])
    lines = [
        f"terms      {model} as {', '.join(uses)}: {verdict}; {reason}"
        for (model, verdict, reason), uses in alike.items()
    ]
    owed = {
        f"{each['kind']} ({each['row']})" + (f": {' or '.join(each['texts'])}" if each["texts"] else "")
        for body in decided
        for each in body.get("obligations", ())
    }
    left = {body["left_by"]: body["exchanges_left"] for body in decided if "exchanges_left" in body}
    lines += [f"           {count:,} exchanges left under leaf {leaf}" for leaf, count in left.items()]
    return lines + [f"owed       {each}" for each in sorted(owed)]


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.")],
    as_json: Json = False,
) -> None:
    """Print what the terms gate decides about each use of each teacher; asks and records nothing."""
    from datetime import UTC, datetime

    from stillhouse.cli import runs, show
    from stillhouse.ledger import Ledger
    from stillhouse.terms import consider, consider_base, uses_of

    loaded, workspace = runs.load(recipe)
    found, lines, allowed = [], [], True
    with Ledger.open(workspace) as ledger:
        now = datetime.now(UTC)
        decided: list[tuple[str, str, Decision]] = [
            (teacher.model, use, consider(loaded, teacher, use, ledger, now))
            for teacher, use in uses_of(loaded)
        ]
        if (of_base := consider_base(loaded, ledger, now)) is not None:
            decided.append((loaded.student.init, "base", of_base))
        for model, use, decision in decided:
            allowed &= decision.allowed
            owed = [
                {"row": row, "kind": each.kind, "texts": list(each.texts)}
                for row, each in decision.obligations
            ]
            found.append(
                {
                    "teacher": model,
                    "use": use,
                    "verdict": decision.verdict,
                    "basis": decision.basis,
                    "reason": decision.reason,
                    "reasons": [
                        {
                            "row": reason.row,
                            "verdict": reason.verdict,
                            "text": reason.text,
                            "version": reason.version,
                            "read_on": reason.read_on,
                            "read_by": reason.read_by,
                            "clause": reason.clause,
                            "source": reason.source,
                            "why": list(reason.why),
                        }
                        for reason in decision.reasons
                    ],
                    "obligations": owed,
                    "lifts": list(decision.lifts),
                }
            )
            lines.append(f"{decision.verdict.replace('_', ' '):<10} {model} as {use}")
            lines += [f"           {reason.cited()}" for reason in decision.reasons] or [
                f"           {decision.reason}"
            ]
            for each in owed:
                texts = f": {' or '.join(each['texts'])}" if each["texts"] else ""
                lines.append(f"  owed     {each['kind']}{texts} ({each['row']})")
            lines += [f"  lifted   {lift}" for lift in decision.lifts]
    show.result({"decisions": found}, "\n".join(lines), as_json)
    if not allowed:
        raise typer.Exit(3)


def authorise(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A TOML file with the permission; see docs/gate.md."),
    ] = None,
    grantor: Annotated[str | None, typer.Option(help="Who permits it.")] = None,
    grantee: Annotated[str | None, typer.Option(help="Who is permitted.")] = None,
    signatory: Annotated[str | None, typer.Option(help="Who signed the document for the grantor.")] = None,
    approver: Annotated[str | None, typer.Option(help="Who answers for it in this house.")] = None,
    document: Annotated[Path | None, typer.Option(help="File with the text of the permission.")] = None,
    model: Annotated[
        Many, typer.Option(help="A model that it is for; patterns and several are fine.")
    ] = None,
    use: Annotated[Many, typer.Option(help="A use that it is for, such as train_target; several.")] = None,
    volume: Annotated[int | None, typer.Option(help="How many exchanges in all.")] = None,
    competing: Annotated[bool, typer.Option("--competing", help="Also for students that compete.")] = False,
    student: Annotated[Many, typer.Option(help="A student's name that it is for; any if left out.")] = None,
    mode: Annotated[Many, typer.Option(help="internal, hosted or weights; any if left out.")] = None,
    territory: Annotated[Many, typer.Option(help="A country that it is for; any if left out.")] = None,
    server: Annotated[
        Many, typer.Option(help="A host of which it permits to ask although its terms are not known.")
    ] = None,
    valid_from: Annotated[str | None, typer.Option(help="Its first day, YYYY-MM-DD.")] = None,
    valid_to: Annotated[str | None, typer.Option(help="Its last day; no end if left out.")] = None,
    irrevocable: Annotated[bool, typer.Option("--irrevocable", help="It says it cannot be revoked.")] = False,
    disclosure: Annotated[bool, typer.Option("--disclosure", help="It may be shown to others.")] = False,
    name: Annotated[
        str | None, typer.Option("--id", help="Its name; made from its words if left out.")
    ] = None,
    to_sign: Annotated[
        Path | None, typer.Option(help="Only write the bytes that the grantor is to sign to this file.")
    ] = None,
    grantor_key: Annotated[Path | None, typer.Option(help="The grantor's Ed25519 public key, PEM.")] = None,
    grantor_signature: Annotated[
        Path | None, typer.Option(help="The grantor's signature over the bytes of --to-sign.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Record a written permission, signed with the workspace's key; from a file, or from options."""
    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.ledger import Ledger
    from stillhouse.terms import authorising
    from stillhouse.terms.asking import read_bounded
    from stillhouse.terms.permissions import statement
    from stillhouse.terms.permissions import to_sign as bytes_to_sign
    from stillhouse.workspace import open_workspace

    given = {
        "id": name,
        "grantor": grantor,
        "grantee": grantee,
        "signatory": signatory,
        "approver": approver,
        "valid_from": valid_from,
        "valid_to": valid_to,
    }
    lists = {"models": model, "uses": use, "students": student, "modes": mode, "territory": territory}
    lists |= {"servers": server}
    scope: dict[str, Any] = {key: value for key, value in lists.items() if value}
    said: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    said |= {"document": str(document)} if document else {}
    if file is not None and (said or scope or volume is not None or competing or irrevocable or disclosure):
        raise UsageError("a file and options are given", "a permission is said once", "take either")
    if (grantor_key is None) != (grantor_signature is None):
        raise UsageError(
            "the grantor's key and signature go together", "one of them is given alone", "give both"
        )
    if file is not None:
        permission, text = authorising.read_permission(file)
    else:
        if volume is not None:
            scope["volume"] = volume
        said |= {"scope": scope | {"competing": competing}}
        said |= {"revocable": not irrevocable, "disclosure": disclosure}
        text = read_bounded(document, "the document") if document else b""
        permission = authorising.make_permission(said, document.name if document else "", text, "the options")
    if to_sign is not None:
        to_sign.write_bytes(bytes_to_sign(statement(permission)))
        show.result({"id": permission.id, "to_sign": str(to_sign)}, f"to sign    {to_sign}", as_json)
        return
    countersigned = (
        (read_bounded(grantor_key, "the key"), read_bounded(grantor_signature, "the signature"))
        if grantor_key is not None and grantor_signature is not None
        else None
    )
    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        leaf = authorising.record(permission, text, ledger, countersigned)
    ends = f"to {permission.valid_to}" if permission.valid_to else "without an end"
    text_out = (
        f"permission {permission.id} of {permission.grantor}, leaf {leaf}\n"
        f"valid      from {permission.valid_from} {ends}"
        f"\nnext       stillhouse terms check RECIPE, or stillhouse terms revoke {leaf}"
    )
    show.result({"id": permission.id, "leaf": leaf, **statement(permission)}, text_out, as_json)


def revoke(
    leaf: Annotated[int, typer.Argument(metavar="LEAF", help="The permission's leaf in the ledger.")],
    reason: Annotated[str, typer.Option(help="Why; recorded in the ledger.")],
    as_json: Json = False,
) -> None:
    """End a permission: from now on no request leaves under it, in any process."""
    from stillhouse.cli import show
    from stillhouse.ledger import Ledger
    from stillhouse.ledger.permissions import revoke as end
    from stillhouse.workspace import open_workspace

    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        correction = end(ledger, leaf, reason)
    text = f"revoked    the permission in leaf {leaf}; leaf {correction} says so"
    show.result({"leaf": leaf, "correction": correction}, text, as_json)


def operator(as_json: Json = False) -> None:
    """Print what the operator says of itself, in .stillhouse/operator.toml."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.terms.operator import read_operator
    from stillhouse.workspace import open_workspace

    workspace = open_workspace(Path.cwd())
    said = asdict(read_operator(workspace))
    lines = [f"{name:<24} {'nobody said' if value is None else value}" for name, value in said.items()]
    show.result(said, "\n".join([*lines, f"from       {workspace.operator}"]), as_json)
