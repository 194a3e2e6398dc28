"""`stillhouse audit`: what a stranger can check of a release, and what the maker can show of one row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import lineage
from stillhouse.cli.options import Json

audit_app = typer.Typer(
    rich_markup_mode=None, help="Check a release, prove single rows, and test who was taught by whom."
)
lineage.add_to(audit_app)


@audit_app.command("verify")
def audit_verify(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="The folder of a release.")],
    key: Annotated[
        Path | None, typer.Option(help="The maker's public key (PEM), as you had it before.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="A checkpoint that somebody else kept.")] = None,
    as_json: Json = False,
) -> None:
    """Check signatures, hashes, training rows and decisions of a release; needs nothing but its folder."""
    from stillhouse.audit import verify
    from stillhouse.cli import show
    from stillhouse.cli.ledgers import checked
    from stillhouse.ledger.keys import public_of_pem

    pinned = None if key is None else public_of_pem(_bytes(key))
    done = verify(release, pinned, None if against is None else _bytes(against))
    show.result(*checked(done), as_json)
    if not done.ok:
        raise typer.Exit(1)


@audit_app.command("prove")
def audit_prove(
    leaf: Annotated[int, typer.Argument(metavar="LEAF", help="The leaf of the row; see rows.parquet.")],
    file: Annotated[Path | None, typer.Option("--to", help="Write the proof there.")] = None,
    as_json: Json = False,
) -> None:
    """Show that one row is in the log, and no other; `audit check-proof`, or anybody, can check it."""
    from stillhouse.cli import show
    from stillhouse.ledger import Ledger
    from stillhouse.ledger.proof import write_proof
    from stillhouse.workspace import open_workspace, write_atomic

    with Ledger.open(open_workspace(Path.cwd())) as ledger:
        proof = write_proof(ledger, leaf)
    if file is not None:
        write_atomic(file, proof)
    text = proof.decode() if file is None else f"proof      {file}"
    show.result(
        {"leaf": leaf, "file": None if file is None else str(file), "proof": proof.decode()}, text, as_json
    )


@audit_app.command("check-proof")
def audit_check_proof(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="A file that `audit prove` wrote.")],
    key: Annotated[Path, typer.Option(help="The maker's public key (PEM).")],
    as_json: Json = False,
) -> None:
    """Check that a leaf is in the log of whoever holds that key, and print it."""
    from stillhouse.cli import show
    from stillhouse.ledger.keys import public_of_pem
    from stillhouse.ledger.proof import read_proof

    leaf, checkpoint = read_proof(_bytes(proof), public_of_pem(_bytes(key)))
    found = {
        "index": leaf.index,
        "kind": leaf.kind,
        "time": leaf.time,
        "body": leaf.body,
        "size": checkpoint.size,
    }
    text = f"leaf {leaf.index} of {checkpoint.size} in {checkpoint.origin}\n{leaf.data.decode()}"
    show.result(found, text, as_json)


def _bytes(path: Path) -> bytes:
    from stillhouse.errors import UsageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}", error.strerror or str(error), "give the file that was kept"
        ) from None
