"""One process at a time, for what is done in the store and in the ledger and must be done in both."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.errors import StorageError, storage
from stillhouse.workspace import locked_within


@contextmanager
def alone(lock: Path, what: str, seconds: float) -> Iterator[None]:
    """While no other process, and no other thread, is in here with this file. The lock goes with a process
    that dies. Raises StorageError, which says `what` cannot be done, when another one is in here for so many
    seconds."""
    with storage("open", lock):
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not locked_within(seconds, file, fcntl.LOCK_EX):
            why = f"another process is in the middle of that for {seconds:g} seconds"
            raise StorageError(what, why, "let it go on, or end it")
        yield
    finally:
        os.close(file)
