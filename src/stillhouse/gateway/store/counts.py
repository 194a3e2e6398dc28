"""What is counted against the limits, and what it means that this cannot be done."""

from __future__ import annotations

from stillhouse.errors import StillhouseError


class StoreDown(StillhouseError):
    """The store cannot be reached, or lost what it held: what costs money is refused."""
