"""The command line: parse, call, print. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 refused by the terms gate, 4 budget reached, 130 interrupted.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from stillhouse.errors import StillhouseError

EXTRAS = ("datasets", "peft", "safetensors", "sklearn", "starlette", "tokenizers", "torch", "transformers")


def main() -> NoReturn:
    """The entry point. No import of weight happens before a command needs it."""
    from typer.exceptions import Abort, Exit, TyperException

    from stillhouse.cli.commands import app

    debug = os.environ.get("STILLHOUSE_DEBUG") == "1"
    # Python looks for cycles after every 700 new objects, through all that libraries have loaded: a sixth of
    # the time of collecting, for cycles that are not made.
    gc.set_threshold(50_000, 20, 100)
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        _leave(code if isinstance(code, int) else 0)
    except StillhouseError as error:
        if debug:
            traceback.print_exc()
        _print_error(error.what, error.why, error.mend)
        _leave(error.exit_code)
    except Exit as error:
        _leave(error.exit_code)
    except TyperException as error:
        _print_error(
            error.format_message(), "the command was not understood", "add --help to see its options"
        )
        _leave(2)
    except (KeyboardInterrupt, Abort):
        _print_error(
            "stopped", "interrupted", "run the same command again to go on; what is recorded is kept"
        )
        _leave(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except ModuleNotFoundError as error:
        known = (error.name or "").split(".")[0] in EXTRAS
        place = "pip install 'stillhouse[train]'" if known else _write_trace()
        _print_error(f"the module {error.name} is not installed", "this command needs it", place)
        _leave(1)
    except Exception as error:  # the last line of defence: a bug must not look like a user's mistake
        place = _write_trace()
        if debug:
            traceback.print_exc()
        _print_error(
            f"{type(error).__name__}: {error}", "this is a bug in stillhouse, or in a library", place
        )
        _leave(1)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.exit(code)


def _print_error(what: str, why: str, mend: str) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": {"what": what, "why": why, "mend": mend}}))
        return
    lines = [("error:", what), ("cause:", why), ("hint: ", mend)]
    print("\n".join(f"{label} {text}" for label, text in lines if text), file=sys.stderr)


def _write_trace() -> str:
    """Keep the traceback in the workspace, if there is one; the text tells where, or how to see it."""
    from stillhouse.workspace import find_workspace

    try:
        workspace = find_workspace(Path.cwd())
        if workspace is not None:
            path = workspace.root / "error.txt"
            path.write_text(traceback.format_exc())
            return f"the traceback is in {path}; `stillhouse doctor` prints what to add to a report"
    except OSError:
        pass
    return "set STILLHOUSE_DEBUG=1 to see the traceback"
