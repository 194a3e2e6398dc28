"""The server in front of a model: its wire, its stores, its administration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillhouse.guard.config import Guard


def serve(config: Guard) -> None:
    """Serve until SIGTERM."""
    raise NotImplementedError
