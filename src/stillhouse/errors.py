"""Everything that stillhouse raises on purpose.

    StillhouseError                 exit 1
      UsageError                    exit 2   the recipe, a prompt file or an argument is wrong
      EndpointError                 exit 1   a server refused, vanished or answered nonsense
      LedgerError                   exit 1   the ledger is damaged, locked or of another version
      ModelError                    exit 1   a folder or hub id is not a usable model
      StorageError                  exit 1   disk full, read-only folder
      GateRefused                   exit 3   the teacher's terms were not shown to allow this use
      BudgetReached                 exit 4   a declared cap stopped the work; what was done is kept
      Interrupted                   exit 130 the operator stopped it; what was done is kept

Each carries three lines for a person: what happened, why, and what to do. A bad row or a failed request
is not an exception but data: it is recorded with its reason and counted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StillhouseError(Exception):
    exit_code = 1

    def __init__(self, what: str, why: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.mend = mend

    def __reduce__(self) -> tuple[type[StillhouseError], tuple[str, str, str]]:
        return type(self), (self.what, self.why, self.mend)


class UsageError(StillhouseError):
    exit_code = 2


class EndpointError(StillhouseError):
    pass


class LedgerError(StillhouseError):
    pass


class ModelError(StillhouseError):
    pass


class StorageError(StillhouseError):
    pass


class GateRefused(StillhouseError):
    exit_code = 3


class BudgetReached(StillhouseError):
    exit_code = 4


class Interrupted(StillhouseError):
    exit_code = 130


_STORAGE = {
    errno.ENOSPC: ("no space left on the disk", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EROFS: ("the file system is read-only", "choose a folder that can be written"),
    errno.EACCES: ("permission denied", "make the folder writable, or choose another one"),
    errno.EPERM: ("operation not permitted", "make the folder writable, or choose another one"),
}


@contextmanager
def storage(what: str, path: Path) -> Iterator[None]:
    """Turn a full disk or a folder without write permission into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        why, mend = _STORAGE[error.errno]
        raise StorageError(
            f"could not {what} {path}", why, f"{mend}; nothing recorded so far is lost"
        ) from error
