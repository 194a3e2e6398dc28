"""Rows of terms from TOML: strict, so that a slip of the pen cannot loosen a row."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from datetime import date, datetime
from fnmatch import fnmatchcase
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stillhouse.errors import UsageError
from stillhouse.terms.facts import Case, Feature, Licence, Need, Obligation, Row, Scale, Territory

# How a row's file calls its parts: the name of the table says what it is.
PARTS: dict[str, type] = {
    "case": Case,
    "scale": Scale,
    "territory": Territory,
    "feature": Feature,
    "need": Need,
    "obligation": Obligation,
}
CONDITIONS = ("scale", "territory", "feature", "need")
WORDED = ("name_prefix", "no_mark", "credit", "notice", "licence_copy", "inherits", "use_policy", "note")
LISTS = ("cases", "conditions", "obligations")
PLAIN = tuple(field.name for field in fields(Row) if field.name not in LISTS)


def read_rows(name: str, text: str) -> tuple[Row, ...]:
    """The rows of one file, which `name` names in errors.

    Raises UsageError for what is not TOML, an unknown or missing key, a value of another kind or outside its
    choices, and a pattern that an exclusion takes back whole.
    """
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _broken(name, f"it is not TOML: {error}") from None
    if unknown := sorted(whole.keys() - {"row"}):
        raise _broken(name, f"unknown key {unknown[0]!r}; a file holds [[row]] tables alone")
    found = whole.get("row", [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise _broken(name, "a row is written as [[row]]")
    return tuple(_row(f"{name}, row {table.get('key', at + 1)!r}", table) for at, table in enumerate(found))


def check_together(rows: Iterable[tuple[str, Row]], known: Iterable[str] = ()) -> None:
    """`rows` are pairs of file and row. Raises UsageError for a key given twice, and for an upstream that is
    neither among them nor among the keys `known`."""
    given = list(rows)
    places: dict[str, str] = {}
    for name, row in given:
        if row.key in places:
            raise _broken(f"{name}, row {row.key!r}", f"{places[row.key]} has a row of that key as well")
        places[row.key] = name
    keys = places.keys() | set(known)
    for name, row in given:
        for upstream in row.upstream:
            if upstream not in keys:
                raise _broken(f"{name}, row {row.key!r}", f"its upstream {upstream!r} is no row")


def _row(place: str, table: Mapping[str, Any]) -> Row:
    if unknown := sorted(table.keys() - {*PLAIN, *PARTS}):
        raise _broken(place, f"unknown key {unknown[0]!r}; the keys are {', '.join((*PLAIN, *PARTS))}")
    parts: dict[str, list[Any]] = {}
    for kind, shape in PARTS.items():
        given = table.get(kind, [])
        if not isinstance(given, list):
            raise _broken(place, f"{kind} is written as [[row.{kind}]]")
        parts[kind] = [
            _record(f"{place}, {kind} {at}", shape, part) for at, part in enumerate(given, start=1)
        ]
    plain = {key: value for key, value in table.items() if key in PLAIN}
    row: Row = _record(
        place,
        Row,
        plain,
        cases=tuple(parts["case"]),
        conditions=tuple(part for kind in CONDITIONS for part in parts[kind]),
        obligations=tuple(parts["obligation"]),
    )
    _check(place, row)
    return row


def _check(place: str, row: Row) -> None:
    for name in ("key", "vendor", "source", "read_via", "clause"):
        if not getattr(row, name).strip():
            raise _broken(place, f"{name} is empty")
    if not row.models and not row.hosts:
        raise _broken(place, "it has neither models nor hosts, so it can never match")
    for pattern in row.models:
        for excluded in row.excluding:
            # With no wildcard but `*`, an exclusion that fits the pattern's own text fits all that it means.
            whole = pattern.lower() == excluded.lower() or not set("?[") & set(excluded)
            if whole and fnmatchcase(pattern.lower(), excluded.lower()):
                raise _broken(place, f"the pattern {pattern!r} never matches: {excluded!r} excludes it")
    scales = [condition for condition in row.conditions if isinstance(condition, Scale)]
    for scale in scales:
        if scale.verdict is None and scale.owed is None:
            raise _broken(place, f"above {scale.above:,} {scale.figure} nothing follows")
    for owed in (*row.obligations, *(scale.owed for scale in scales if scale.owed)):
        if owed.kind in WORDED and not any(text.strip() for text in owed.texts):
            raise _broken(place, f"the obligation {owed.kind} has no texts")


def _record(place: str, shape: type, table: Any, **ready: Any) -> Any:
    """`table` as the dataclass `shape`; `ready` are values that need no reading."""
    if not isinstance(table, dict):
        raise _broken(place, f"{table!r} is no table")
    hints = _hints(shape)
    if unknown := sorted(table.keys() - hints.keys()):
        raise _broken(place, f"unknown key {unknown[0]!r}; the keys are {', '.join(hints)}")
    for field in fields(shape):
        may_lack = field.default is not MISSING or field.name in ready
        # A date is left out where none is known: TOML has no word for that.
        if field.name not in table and not may_lack and type(None) not in get_args(hints[field.name]):
            raise _broken(place, f"{field.name} is missing")
    values = {key: _value(f"{place}, {key}", hints[key], value) for key, value in table.items()}
    absent = {
        field.name: None
        for field in fields(shape)
        if field.default is MISSING and field.name not in values and field.name not in ready
    }
    return shape(**absent, **values, **ready)


def _value(place: str, hint: Any, value: Any) -> Any:
    kind, choices = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        # A union is of a kind with None, or of two sets of words.
        of = [choice for choice in choices if choice is not type(None)]
        words = [word for choice in of if get_origin(choice) is Literal for word in get_args(choice)]
        return _word(place, words, value) if words else _value(place, of[0], value)
    if kind is Literal:
        return _word(place, choices, value)
    if kind is tuple:
        if not isinstance(value, list):
            raise _broken(place, f"{value!r} is no list")
        return tuple(_value(place, choices[0], one) for one in value)
    if hint in (Licence, Obligation):
        return _record(place, hint, value)
    if hint is date and isinstance(value, datetime):
        raise _broken(place, f"{value} is a time; a day is written as 2026-01-31")
    # To Python a bool is an int, to a reader it is not.
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _broken(place, f"{value!r} is no {hint.__name__}")
    return value


def _word(place: str, words: Iterable[str], value: Any) -> Any:
    known = list(words)
    if value not in known:
        raise _broken(place, f"{value!r} is none of {', '.join(known)}")
    return value


@cache
def _hints(shape: type) -> dict[str, Any]:
    return get_type_hints(shape)


def _broken(place: str, why: str) -> UsageError:
    return UsageError(f"the terms in {place} cannot be read", why, "mend the row; docs/terms.md says how")
