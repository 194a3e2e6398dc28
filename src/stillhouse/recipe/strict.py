"""Files of settings read strictly: an unknown key is an error that names the line and the nearest key."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stillhouse.errors import UsageError
from stillhouse.recipe.places import line_of

AnyTable = TypeVar("AnyTable", bound=BaseModel)


def read_tree(path: Path, what: str, write_one: str) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file, or of a `.json` one, and its text. `what` it should be is for messages, and
    how to `write_one`. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no {what} at {path}", "the file does not exist", write_one) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}", str(error), "give a readable TOML file") from None
    kind, loads = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        tree = loads(text)
    except ValueError as error:
        raise UsageError(f"{path} is not valid {kind}", str(error), "mend that line") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is no {what}", "it holds no tables", f"give a {what}")
    return tree, text


def checked(
    table: type[AnyTable],
    tree: dict[str, Any],
    text: str,
    where: str,
    what: str,
    page: str,
    secret: re.Pattern[str],
) -> AnyTable:
    """The settings as `table`. `where` they stand, `what` they are and which `page` describes them is for
    messages, which show no value whose name is a `secret`. Raises UsageError that names the line in `text`.
    """
    try:
        return table.model_validate(tree)
    except ValidationError as error:
        errors = error.errors()  # a misspelt key is told before the one that it leaves out
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        place = _as_written(tree, first["loc"])
        line = line_of(text, place)
        at = f"{where}:{line}" if line else where
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        name = ".".join(place)
        if first["type"] == "extra_forbidden":
            valid = _keys_at(table, place[:-1])
            near = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.4)
            mend = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(valid)}"
            raise UsageError(
                f"{at}: unknown key `{name}`{more}", "stillhouse reads no such setting", mend
            ) from None
        if first["type"] == "missing":
            raise UsageError(
                f"{at}: `{name}` is missing{more}", f"a {what} needs it", f"add `{place[-1]}`"
            ) from None
        why = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        hidden = secret.fullmatch(name) is not None
        shown = isinstance(first["input"], str | int | float) and not hidden
        raise UsageError(
            f"{at}: {f'`{name}`' if name else f'the {what}'} is not usable{more}",
            f"{why} (got {first['input']!r})" if shown else why,
            f"see {page}",
        ) from None


def _as_written(tree: Any, place: Iterable[int | str]) -> list[str]:
    """The place of an error; without the number of the one table where several could stand."""
    found = []
    for part in place:
        if isinstance(part, int) and not isinstance(tree, list):
            continue
        found.append(str(part))
        if isinstance(tree, list):
            tree = tree[part] if isinstance(part, int) and part < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return found


def _keys_at(table: Any, place: list[str]) -> list[str]:
    names_follow = False
    for part in place:
        if names_follow or part.isdigit():  # what the file's writer named, or a place in a list of tables
            names_follow = False
            continue
        field = (
            table.model_fields.get(part) if isinstance(table, type) and issubclass(table, BaseModel) else None
        )
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        names_follow = getattr(field.annotation, "__origin__", None) is dict
        table = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return sorted(table.model_fields) if isinstance(table, type) and issubclass(table, BaseModel) else []
