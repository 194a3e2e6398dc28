"""How far a run is, kept in its folder for whoever looks from another process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from stillhouse.errors import StillhouseError, StorageError
from stillhouse.records import Progress, Watch
from stillhouse.workspace import RunFolder, write_atomic

EVERY = 1.0  # seconds between two writes


@contextmanager
def recorded(run: RunFolder, watch: Watch) -> Iterator[Watch]:
    """`watch`, with what it is told written to the run's progress file about once a second for as long as the
    block lasts, and at its end how it ended.

    The file is not forced to disk, and a disk that is full does not stop the run.
    """
    record, over = _Record(), threading.Event()

    def keep() -> None:
        while not over.wait(EVERY):
            _write(run, record.row("running"))

    def seen(progress: Progress) -> None:
        record.see(progress)
        watch(progress)

    _write(run, record.row("running"))
    thread = threading.Thread(target=keep, name="progress", daemon=True)
    thread.start()
    ended, why = "done", ""
    try:
        yield seen
    except BaseException as error:
        ended, why = "stopped", error.what if isinstance(error, StillhouseError) else type(error).__name__
        raise
    finally:
        over.set()
        thread.join()
        _write(run, record.row(ended, why))


@dataclass(slots=True)
class _Record:
    latest: Progress | None = None
    began: dict[str, float] = field(default_factory=dict)  # of each stage, by the monotonic clock

    def see(self, progress: Progress) -> None:
        self.latest = progress
        if progress.stage not in self.began:
            self.began[progress.stage] = time.monotonic()

    def row(self, state: str, why: str = "") -> dict[str, Any]:
        """What the file holds; `time` in Unix seconds. `progress` is None before a stage has reported any."""
        latest = self.latest
        shown = None if latest is None else asdict(latest)
        if latest is not None and shown is not None:
            shown["seconds"] = round(time.monotonic() - self.began[latest.stage], 2)
        who = {"pid": os.getpid(), "host": socket.gethostname()}
        return {"state": state, "why": why, "time": time.time(), **who, "progress": shown}


def _write(run: RunFolder, row: dict[str, Any]) -> None:
    with suppress(StorageError, OSError):
        write_atomic(run.progress, orjson.dumps(row) + b"\n", durable=False)
