"""What the gateway says of itself: one JSON object a line on stderr.

A line is for a refusal, a failure or an act of the operator. It holds codes, ids and counts, and never a word
of a request or an answer, a key or a body. Whatever stands in it is ASCII without control characters and of
bounded length, so that no name of a model or of a person can begin a line, end a string or move a terminal's
cursor. Lines are written by a thread, since a pipe that nobody reads would hold up every request.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from stillhouse.errors import StorageError
from stillhouse.gateway.worker import Worker
from stillhouse.guard.events import Event

WAITING = 10_000  # lines
LONGEST = 500  # characters of a value
MOST = 50  # values of a list
_SHOWN = ("account", "key", "model", "route", "status", "reason", "upstream")


def say(event: str, /, **fields: Any) -> None:
    """A line on stderr: what happened, and what is to be known of it. Never waits and never raises."""
    _of_this_process().say(event, **fields)


def ended(event: Event) -> None:
    """A line for an event that was refused or failed; none for others."""
    if event.ended in ("refused", "failed", "upstream_cut"):
        say(event.ended, request=event.id, **{name: getattr(event, name) for name in _SHOWN})


def fault(error: BaseException, request: str = "") -> None:
    """A line for an error that nobody foresaw: its kind and where it arose. Its text could hold words of a
    request."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    say("fault", request=request, kind=type(error).__name__, places=places[-8:])


def flush(seconds: float = 1.0) -> None:
    """Wait until all that was said is written, but no longer than that."""
    with suppress(TimeoutError, StorageError):
        _of_this_process().flush(seconds)


class Others(logging.Handler):
    """What the libraries below say, in lines of ours: a traceback holds the text of its error."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            say("server", said=record.getMessage())
        else:
            fault(error)


class Logs:
    """Lines for `write`, which gets one or several whole ones. Close it."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.dropped = 0  # lines for which there was no room
        self._told = 0
        self._write = write
        self._worker: Worker[bytes] = Worker("logs", self._work, batch=256, linger=0.1, failed=lambda _: None)

    def say(self, event: str, /, **fields: Any) -> None:
        if len(self._worker) < WAITING:
            self._worker.put(line(event, time.time(), fields))
        else:
            self.dropped += 1

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


def line(event: str, at: float, fields: Mapping[str, Any]) -> bytes:
    """One line of the log, with its line feed."""
    time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    told = {"time": time, "event": _bounded(event)}
    said = told | {name: _bounded(value) for name, value in fields.items()} | told
    return json.dumps(said, ensure_ascii=True).replace("\x7f", "\\u007f").encode() + b"\n"


def _bounded(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_bounded(each) for each in value[:MOST]]
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


@cache
def _of_this_process() -> Logs:
    logs = Logs(_to_stderr)
    atexit.register(logs.close)
    return logs


def _to_stderr(lines: bytes) -> None:
    """Raises OSError where stderr is closed."""
    handle = sys.stderr.fileno()
    while lines:
        lines = lines[os.write(handle, lines) :]
