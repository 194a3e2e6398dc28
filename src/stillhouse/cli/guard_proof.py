"""`stillhouse guard prove` and `shown`: that one event was recorded, for somebody who sees no other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.options import GUARD, Json


def register(app: typer.Typer) -> None:
    """Give the commands to `stillhouse guard`."""

    @app.command("prove")
    def prove(
        event: Annotated[str, typer.Argument(metavar="EVENT", help="Its id: x-request-id of the answer.")],
        file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the proof.")],
        config: Annotated[
            Path, typer.Option("--config", metavar="CONFIG", help="The settings, a TOML file.")
        ] = GUARD,
        as_json: Json = False,
    ) -> None:
        """Write what shows that an event was recorded, a minute after it at the latest."""
        from stillhouse.cli import show
        from stillhouse.gateway.served import proof_in
        from stillhouse.guard.reading import read_config
        from stillhouse.workspace import open_workspace, write_atomic

        store = read_config(config).store
        proof = proof_in(store, event)
        write_atomic(file, proof)
        key = open_workspace(Path(store.folder)).verifying_key
        said = f"proof      {file}\nnext       stillhouse guard shown {file} --key {key}"
        show.result({"proof": str(file), "key": str(key)}, said, as_json)

    @app.command("shown")
    def shown(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="As `prove` wrote it.")],
        key: Annotated[Path, typer.Option(metavar="PEM", help="The public key of the gateway's ledger.")],
        as_json: Json = False,
    ) -> None:
        """Check a proof, and print the event that it shows."""
        from stillhouse.cli import show
        from stillhouse.errors import storage
        from stillhouse.guard.events import FIELDS, row_of
        from stillhouse.guard.proof import read_event_proof
        from stillhouse.ledger.keys import read_public_pem

        with storage("read", file):
            proof = file.read_bytes()
        found = read_event_proof(proof, read_public_pem(key))
        event = dict(zip(FIELDS, row_of(found.event), strict=True))
        under = {"leaf": found.leaf.index, "origin": found.checkpoint.origin, "size": found.checkpoint.size}
        lines = [f"{name:<14} {value}" for name, value in event.items() if value not in ("", None)]
        lines.append("{:<14} under leaf {leaf} of {origin}, at size {size}".format("recorded", **under))
        show.result({"event": event, "under": under}, "\n".join(lines), as_json)
