"""`operator.toml`: what the operator says of itself, for the gate and for the documents of a release."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.terms.facts import Operator, Publisher
from stillhouse.workspace import Workspace

_Kind = tuple[str, Callable[[Any], bool]]  # in words, and whether a value is of it
_NUMBER: _Kind = "a whole number, 0 or more", lambda value: type(value) is int and value >= 0
_ANSWER: _Kind = "true or false", lambda value: type(value) is bool
_CODE: _Kind = "a code such as DE", lambda value: type(value) is str and bool(value.strip())
_TEXT: _Kind = "a text", lambda value: type(value) is str and bool(value.strip())
_DAY: _Kind = "a day such as 2026-12-01", lambda value: type(value) is date
_COUNT: _Kind = "a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf

_KEYS: Mapping[str, Mapping[str, _Kind]] = {
    "": {
        "monthly_users": _NUMBER,
        "monthly_revenue_usd": _NUMBER,
        "yearly_revenue_usd": _NUMBER,
        "territory": _CODE,
        "sells_access_to_models": _ANSWER,
        "commercial": _ANSWER,
    },
    "provider": {
        "name": _TEXT,
        "contact": _TEXT,
        "authorised_representative": _TEXT,
        "market_date": _DAY,
    },
    "base": {"training_flop": _COUNT},
}


def read_operator(workspace: Workspace) -> Operator:
    """The facts that terms depend on; nothing where there is no such file.

    Raises UsageError for a file that is no TOML, an unknown key and a value of the wrong kind, in any part.
    """
    return Operator(**_read(workspace.operator)[""])


def read_publisher(workspace: Workspace) -> Publisher:
    """The facts that a release's documents tell, [provider] and [base]; raises as `read_operator` does."""
    said = _read(workspace.operator)
    return Publisher(base_training_flop=said["base"].get("training_flop"), **said["provider"])


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What is said, by table; "" is what stands before the first. No part is missing."""
    try:
        tree: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        tree = {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {path}", str(error), "see docs/gate.md and docs/release.md for what it holds"
        ) from None
    found = {table: tree.pop(table, {}) for table in _KEYS if table} | {"": tree}
    for table, said in found.items():
        if not isinstance(said, dict):
            raise _unusable(path, table, said, f"a table, [{table}]")
        for key, value in said.items():
            name = f"{table}.{key}" if table else key
            if key not in _KEYS[table]:
                near = difflib.get_close_matches(key, _KEYS[table], n=1, cutoff=0.4)
                mend = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(_KEYS[table])}"
                raise UsageError(f"{path}: unknown key `{name}`", "stillhouse reads no such fact", mend)
            kind, fits = _KEYS[table][key]
            if not fits(value):
                raise _unusable(path, name, value, kind)
    return found


def _unusable(path: Path, name: str, value: Any, kind: str) -> UsageError:
    return UsageError(f"{path}: `{name}` is not usable", f"it is {value!r}", f"give {kind}")
