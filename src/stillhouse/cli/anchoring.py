"""The commands by which others can hold a ledger to what it said: checkpoints, anchors, keys, backups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli.options import Json

_NO_MORE = "it says nothing of later leaves, nor that everything was logged"


def checkpoint(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Also write it there.")] = None,
    as_json: Json = False,
) -> None:
    """Sign the log's present size and root, and print that for others to keep."""
    from stillhouse.cli import show
    from stillhouse.ledger import Ledger
    from stillhouse.workspace import open_workspace, write_atomic

    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        made = ledger.checkpoint()
    if file is not None:
        write_atomic(file, made.note)
    note = made.note.decode()
    show.result({"size": made.size, "root": made.root.hex(), "note": note}, note.rstrip("\n"), as_json)


def anchor(
    tsa: Annotated[str | None, typer.Option(metavar="URL", help="A time stamping authority.")] = None,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Its root certificates; those of this machine by default."),
    ] = None,
    witness: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A checkpoint of this log that a witness cosigned.")
    ] = None,
    witness_key: Annotated[
        str, typer.Option(metavar="VKEY", help="The witness's key, as it publishes it: NAME+ID+KEY.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Have the newest checkpoint stamped by others, or keep what a witness said of one."""
    from stillhouse.cli import show
    from stillhouse.errors import LedgerError, UsageError
    from stillhouse.ledger import Ledger, read_checkpoint
    from stillhouse.ledger.anchors import cosigned, read_certificates, stamp, system_roots
    from stillhouse.workspace import open_workspace

    if (tsa is None) == (witness is None) or bool(witness) != bool(witness_key):
        raise UsageError(
            "say by whom",
            "a checkpoint is stamped by an authority, or was cosigned by a witness whose key is known",
            "add --tsa URL, or --witness FILE --witness-key VKEY",
        )
    workspace = open_workspace(Path.cwd())
    with Ledger.open(workspace) as ledger:
        if tsa is not None:
            roots = system_roots() if ca is None else read_certificates(ca)
            made = stamp(workspace, ledger.checkpoint(), tsa, roots)
        elif witness is not None:
            note = _read(witness)
            given = read_checkpoint(note)
            done = ledger.verify(note)
            if given.origin != ledger.origin or not done.ok:
                raise LedgerError(
                    f"{witness} is no checkpoint of this log", done.state, "give one of this log"
                )
            made = cosigned(workspace, note, witness_key)
    found = {"size": made.checkpoint.size, "by": made.who, "time": made.when}
    text = f"anchored   at size {made.checkpoint.size} by {made.who} on {made.when:%Y-%m-%d %H:%M:%S} UTC"
    show.result(found, f"{text}; {_NO_MORE}", as_json)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    keys: Annotated[
        bool, typer.Option("--keys", help="With the private keys; better backed up apart from the ledger.")
    ] = False,
    targets: Annotated[
        bool, typer.Option("--targets", help="With the shards of teachers' probabilities.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy the ledger into one file, also while it is written."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.ledger import Ledger
    from stillhouse.ledger.backup import back_up
    from stillhouse.workspace import open_workspace

    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        made = back_up(ledger, file, keys, targets)
    lines = [f"backed up  {made.size:,} leaves to {file}"]
    lines += [] if keys else ["not in it  private keys: back up .stillhouse/keys apart"]
    lines += [f"not in it  {made.left_out:,} shards of targets: add --targets"] if made.left_out else []
    lines.append("not in it  runs: they are made again from the ledger")
    show.result({"file": str(file), **asdict(made)}, "\n".join(lines), as_json)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `ledger backup` wrote.")],
    as_json: Json = False,
) -> None:
    """Put a backup into this folder, which must hold no ledger; it is verified before that."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.ledger.backup import restore as put_back
    from stillhouse.workspace import FOLDER, Workspace, find_workspace, init_workspace

    workspace = find_workspace(Path.cwd()) or Workspace(Path.cwd() / FOLDER)
    made, lacking = put_back(file, workspace)
    init_workspace(workspace.root.parent)  # folders and modes; keys that are there stay
    lines = [f"restored   {made.size:,} leaves of {made.time} to {workspace.ledger}"]
    lines += [f"not in it  {made.left_out:,} shards of targets"] if made.left_out else []
    if lacking is not None:
        lines.append(f"rolled back or forked: {lacking}; see docs/ledger.md before you go on")
    show.result(
        {"workspace": str(workspace.root), **asdict(made), "rolled_back": lacking}, "\n".join(lines), as_json
    )


def show_keys(as_json: Json = False) -> None:
    """Print the public keys of this workspace, present and earlier, and which files hold the private ones."""
    from stillhouse.cli import show
    from stillhouse.ledger.keys import public_pem, read_public_key
    from stillhouse.workspace import open_workspace

    workspace = open_workspace(Path.cwd())
    public = read_public_key(workspace)
    pem, models = public_pem(public).decode(), workspace.model_verifying_key
    earlier = sorted(workspace.verifying_key.parent.glob("signing-*.pub"))
    private = [workspace.signing_key, workspace.workspace_key]
    private += [workspace.model_signing_key] if models.is_file() else []
    found = {
        "public_key": public.hex(),
        "pem": pem,
        "file": str(workspace.verifying_key),
        "earlier": list(map(str, earlier)),
        "model_signing": str(models) if models.is_file() else None,
        "private": list(map(str, private)),
    }
    lines = [f"signing    {public.hex()}", f"           {workspace.verifying_key}: give it to who verifies"]
    lines += [f"earlier    {path}" for path in earlier]
    lines.append(f"models     {models if models.is_file() else 'made with the next release'}")
    lines += [f"private    {path}" for path in private]
    show.result(found, "\n".join([*lines, pem.rstrip()]), as_json)


def rotate_keys(as_json: Json = False) -> None:
    """Replace both keys that sign; what the old ones signed stays valid."""
    from stillhouse.cli import show
    from stillhouse.ledger import Ledger, oms, rotate_signing_key
    from stillhouse.ledger.keys import read_public_key
    from stillhouse.workspace import open_workspace

    workspace = open_workspace(Path.cwd())
    old = read_public_key(workspace)
    with Ledger.open(workspace) as ledger:
        leaf = rotate_signing_key(workspace, ledger)
    new = read_public_key(workspace)
    text = f"replaced   {old.hex()[:16]}... by {new.hex()[:16]}..., at leaf {leaf}"
    text += f"\nnext       give {workspace.verifying_key} to those who verify"
    text += f"\n           and {workspace.model_verifying_key} to those who check {oms.NAME}"
    show.result({"leaf": leaf, "old": old.hex(), "new": new.hex()}, text, as_json)


def _read(path: Path) -> bytes:
    from stillhouse.errors import UsageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}", str(error), "give a file that is there") from None


LEDGER: dict[str, Callable[..., Any]] = {
    "checkpoint": checkpoint,
    "anchor": anchor,
    "backup": backup,
    "restore": restore,
}
KEYS: dict[str, Callable[..., Any]] = {"show": show_keys, "rotate": rotate_keys}
