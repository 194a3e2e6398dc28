"""A process that asks a provider and is killed by it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from provider import Provider, echo

from stillhouse.workspace import Workspace

BEGIN = """
import sys
from pathlib import Path
from stillhouse.ask import *
from stillhouse.ledger import Ledger
from stillhouse.money import Price
from stillhouse.records import Message
from stillhouse.workspace import Workspace

def asked(count):
    return [Question(f"p{i}", (Message("user", f"question {i}"),)) for i in range(count)]

def teacher(name="m", price=None):
    return Teacher(name, "somewhere", "r1", lambda: sys.argv[2], price=price)

with Ledger.open(Workspace(Path(sys.argv[1]))) as ledger:
"""


def ask_until_killed(
    serve: Callable[..., Provider], workspace: Workspace, folder: Path, line: str, after: int
) -> Provider:
    """A process of its own asks by this `line` of Python, and dies by SIGKILL when the server sees request
    number `after`. Gives the server, which then answers everybody."""
    child: list[subprocess.Popen[bytes]] = []

    async def deadly(body: dict[str, Any], number: int) -> web.Response:
        if number == after and child[0].poll() is None:
            child[0].kill()
        return await echo(body, number)

    server, script = serve(deadly), folder / "collector.py"
    script.write_text(f"{BEGIN}    {line}\n")
    child.append(subprocess.Popen([sys.executable, str(script), str(workspace.root), server.url]))
    assert child[0].wait(60) == -signal.SIGKILL
    return server
