"""Options that many commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

# Of `stillhouse guard`
Config = Annotated[Path, typer.Option("--config", metavar="CONFIG", help="The settings, a TOML file.")]
GUARD = Path("guard.toml")
Who = Annotated[str, typer.Option("--as", metavar="NAME", help="Who does it; by default the user.")]


def named(who: str) -> str:
    """Who does it: as was said, else the user of this machine."""
    import getpass

    return who or getpass.getuser()
