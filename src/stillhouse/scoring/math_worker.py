"""The process behind the scorer `math`: a line [answer, reference] in, a line with the verdict out."""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from typing import Any

MEMORY = 4 << 30  # bytes of address space: 9^9^9 must end here and not with the machine
_LATEX = ("$", "\\(", "\\[", "\\boxed")


def compared(answer: str, reference: str) -> dict[str, Any]:
    from math_verify import parse, verify

    # A reference in LaTeX often comes bare, and only what is marked is read as LaTeX.
    bare = "\\" in reference and not any(mark in reference for mark in _LATEX)
    # Without time limits of its own: they are signals, which its parser swallows. The parent keeps the time.
    wanted = parse(f"${reference}$" if bare else reference, parsing_timeout=None)
    if not wanted:
        return {"bad_reference": True}
    found = parse(answer, parsing_timeout=None)
    try:
        same = verify(wanted, found, timeout_seconds=None, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        # What cannot be compared (a set with a matrix) is not the same.
        same = False
    return {"same": float(same)}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed must not look like a reply
    import math_verify  # noqa: F401

    # macOS refuses limits on address space; there only the time limit holds.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    reply: dict[str, Any] = {}
    lines = iter(sys.stdin.buffer.readline, b"")
    while True:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        line = next(lines, None)
        if line is None:
            return
        try:
            reply = compared(*json.loads(line))
        except Exception as error:
            reply = {"error": type(error).__name__}


if __name__ == "__main__":
    main()
