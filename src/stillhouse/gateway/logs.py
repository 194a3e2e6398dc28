"""What the gateway says of itself: one JSON object a line on stderr.

A line is for a refusal, a failure or an act of the operator; it holds codes, ids and counts, and never a word
of a request or an answer, a key or a body. Whatever stands in it is ASCII without control characters and of
bounded length, so that no name of a model or of a person can begin a line, end a string or move a terminal's
cursor. Lines are written by a thread, since a pipe that nobody reads would hold up every request.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from stillhouse.gateway.worker import Worker
from stillhouse.guard.events import Event

WAITING = 10_000  # lines
LONGEST = 500  # characters of a value
_SHOWN = ("account", "key", "model", "route", "status", "ended", "reason", "upstream")


class Logs:
    """Call it with what happened and whatever is to be known of it; close it at the end. May be called from
    any thread, never waits and never raises."""

    def __init__(self, write: Callable[[bytes], object] | None = None) -> None:
        """`write` gets whole lines; left out, they go to stderr."""
        self.dropped = 0  # lines for which there was no room
        self._told = 0
        self._write = write or _to_stderr
        self._worker: Worker[bytes] = Worker(
            "logs", self._work, batch=256, linger=0.1, failed=lambda error: None
        )

    def __call__(self, what: str, **fields: Any) -> None:
        if len(self._worker) < WAITING:
            self._worker.put(line(what, time.time(), fields))
        else:
            self.dropped += 1

    def ended(self, event: Event) -> None:
        """A line for an event that was refused or failed; none for others."""
        if event.ended in ("refused", "failed", "upstream_cut"):
            self(event.ended, request=event.id, **{name: getattr(event, name) for name in _SHOWN})

    def flush(self, seconds: float | None = None) -> None:
        self._worker.flush(seconds)

    def close(self, seconds: float = 1.0) -> None:
        self.dropped += len(self._worker.close(seconds))

    def _work(self, lines: list[bytes]) -> None:
        dropped = self.dropped
        if dropped > self._told:
            lines = [*lines, line("lines dropped", time.time(), {"count": dropped - self._told})]
        self._write(b"".join(lines))
        self._told = dropped


def line(what: str, at: float, fields: dict[str, Any]) -> bytes:
    """One line of the log, with its line feed."""
    said = {
        "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        "what": what,
        **fields,
    }
    text = json.dumps({plain(name): _bounded(value) for name, value in said.items()}, ensure_ascii=True)
    return text.replace("\x7f", "\\u007f").encode() + b"\n"


def _bounded(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else plain(value)


def plain(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _to_stderr(lines: bytes) -> None:
    os.write(sys.stderr.fileno(), lines)
