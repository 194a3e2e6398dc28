"""What `stillhouse guard` prints of organisations, accounts, keys and changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from stillhouse.gateway.operations import Listed, NewSecret

_MOMENTS = ("at", "created", "expires", "revoked", "training_since")
_BILLIONTHS = ("paid", "amount")
_LONG = ("before", "after", "limits", "why", "models")


def plain(value: Any) -> Any:
    """As the admin API answers it."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return [plain(one) for one in value] if isinstance(value, list) else value


def text(value: Any) -> str:
    if isinstance(value, NewSecret):
        once = f"secret         {value.secret}\n               keep it now: it is stored nowhere"
        return f"{text(value.key)}\n{once}"
    if isinstance(value, Listed):
        lines = [_line(one) for one in value.data] or ["none"]
        return "\n".join(lines + ([f"more: --after {value.next}"] if value.next is not None else []))
    return "\n".join(
        f"{field.name:<14} {_said(field.name, getattr(value, field.name))}" for field in fields(value)
    )


def _line(value: Any) -> str:
    """One row: what is always there in columns, the rest where it says something."""
    told = {field.name: getattr(value, field.name) for field in fields(value)}
    short = [_said(name, given) for name, given in told.items() if name not in _LONG]
    long = [f"{name}: {_said(name, given)}" for name, given in told.items() if name in _LONG and given]
    return "  ".join([*short, *long])


def _said(name: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if name in _MOMENTS:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S}"
    if name in _BILLIONTHS:
        return f"US$ {value / 1e9:,.2f}"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return " ".join(value) if isinstance(value, tuple) else str(value)
