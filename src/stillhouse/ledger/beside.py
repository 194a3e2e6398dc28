"""The newest checkpoint, kept beside the database: one that was put back to an older state lacks it.

Whoever restores an old copy and goes on would sign another history under the same name. The file is no proof
against the operator, who can delete it; it is there so that nobody does this unawares.
"""

from __future__ import annotations

from collections.abc import Callable

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger import merkle
from stillhouse.ledger.checkpoint import Checkpoint, read_checkpoint
from stillhouse.workspace import Workspace, write_atomic

Node = Callable[[int, int], bytes]


def newest(workspace: Workspace) -> Checkpoint | None:
    """The one that is kept; None where there is none. Raises LedgerError where it is damaged."""
    path = workspace.newest_checkpoint
    with storage("read", path):
        return read_checkpoint(path.read_bytes()) if path.is_file() else None


def keep(workspace: Workspace, signed: Checkpoint) -> None:
    """Put it there, unless another process has kept a later one meanwhile."""
    before = newest(workspace)
    if before is None or before.size <= signed.size:
        with storage("write", workspace.newest_checkpoint):
            workspace.anchors.mkdir(exist_ok=True)
        write_atomic(workspace.newest_checkpoint, signed.note)


def lacks(workspace: Workspace, size: int, node: Node) -> str | None:
    """How a log of this size differs from what was signed before; None where it does not."""
    before = newest(workspace)
    if before is None:
        return None
    if before.size > size:
        return f"a checkpoint of {before.size} leaves was signed, this log has {size}"
    if merkle.range_root(node, 0, before.size) != before.root:
        return f"a checkpoint was signed for {before.size} leaves that this log does not begin with"
    return None


def check(workspace: Workspace, size: int, node: Node) -> None:
    """Raises LedgerError where a checkpoint of this log would contradict one that was signed before."""
    if (why := lacks(workspace, size, node)) is not None:
        raise LedgerError(
            "the ledger was rolled back or forked, and no checkpoint of it is signed",
            why,
            "restore the newest copy of the ledger; if it is lost for good, keep "
            f"{workspace.newest_checkpoint} somewhere else, and say so to those who hold that checkpoint",
        )
