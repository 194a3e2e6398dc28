"""Terms of one vendor, as a row's TOML and as what the gate decides by; tests change what they are about."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

from stillhouse.ledger import Ledger
from stillhouse.recipe import Declaration, Recipe, parse_recipe
from stillhouse.terms import admit
from stillhouse.terms.deciding import DeclaredTerms, decide
from stillhouse.terms.facts import Asked, Licence, Operator, Row, Student
from stillhouse.terms.permissions import Permission, Scope

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
TODAY = NOW.date()
TEXT = b"You may use outputs to train other models.\n"
BANS_RIVALS = {
    "trains_others": "conditional",
    "trains_competing": "no",
    "verdict": "refuse",
    "clause": "Output may not be used to develop models that compete.",
}
READ = DeclaredTerms("terms.txt", "ab" * 32, TODAY, "R. Ames", ("evaluation", "train_target"))
_ROW = {
    "key": "maker-api",
    "vendor": "Maker",
    "covers": "all of Maker",
    "access": "api",
    "models": ["maker-*"],
    "licence": {"name": "Maker Terms"},
    "trains_others": "yes",
    "trains_competing": "yes",
    "verdict": "allow",
    "liftable": True,
    "clause": "Output is the customer's.",
    "clause_ref": "s.3",
    "version": "2026-01-01",
    "source": "https://maker.example/terms",
    "source_seen": True,
    "read_via": "R. Ames",
    "read_on": date(2026, 11, 1),
    "evidence": "primary",
    "confidence": "high",
}


def row_toml(**changes: Any) -> str:
    """A row of a workspace's own, in which all is allowed; a part of it can follow as [[row.PART]]."""
    lines = [f"{name} = {_value(value)}" for name, value in (_ROW | changes).items()]
    return "\n".join(["", "[[row]]", *lines, ""])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_value(each)}" for name, each in value.items()) + " }"
    return value.isoformat() if isinstance(value, date) else json.dumps(value)


def row(**more: Any) -> Row:
    """The same as `Row`, for models that begin with m."""
    plain = _ROW | {"models": ("m*",), "licence": Licence("Maker Terms")} | more
    return Row(**plain)


def asked(
    use: str = "train_target",
    student: dict[str, Any] | None = None,
    operator: dict[str, Any] | None = None,
    **more: Any,
) -> Asked:
    about = {"model": "m-1", "revision": "", "access": "api", "endpoint": "https://maker.example/v1"}
    who = {"student": Student("small", "base", **(student or {})), "operator": Operator(**(operator or {}))}
    return Asked(**{**about, "use": use, **who, **more})


def permission(scope: dict[str, Any] | None = None, **more: Any) -> Permission:
    said = {"models": ("m*",), "uses": ("train_target",), "competing": True, **(scope or {})}
    return Permission(
        **{
            "id": "p-1",
            "grantor": "Maker Inc.",
            "grantee": "us",
            "signatory": "J. Doe",
            "document": "contract.txt",
            "document_sha256": "cd" * 32,
            "scope": Scope(**said),
            "valid_from": TODAY - timedelta(days=10),
            "valid_to": TODAY + timedelta(days=10),
            "revocable": True,
            "approver": "R. Ames",
            "disclosure": False,
            "leaf": 7,
            **more,
        }
    )


def verdict(
    rows: list[Row],
    of: Asked | None = None,
    permissions: Any = (),
    declaration: DeclaredTerms | None = None,
) -> str:
    declared = () if declaration is None else (declaration,)
    return decide(of or asked(), rows, permissions, declared, TODAY).verdict


def recipe(
    declared: Declaration | None = None,
    student: dict[str, Any] | None = None,
    release: dict[str, Any] | None = None,
    **teacher: Any,
) -> Recipe:
    about = {"model": "big-1", "endpoint": "https://api.example.com/v1", **teacher}
    about = {name: value for name, value in about.items() if value is not None}
    return parse_recipe(
        {
            "run": {"name": "small"},
            "teacher": about | ({} if declared is None else {"terms": declared.model_dump()}),
            "prompts": {"source": "embedded:desk"},
            "student": {"init": "embedded:base", **(student or {})},
            "release": release or {},
        }
    )


def at_maker(declared: Declaration | None = None, **more: Any) -> Recipe:
    return recipe(declared, model="maker-2", endpoint="https://api.maker.example/v1", **more)


def admitted(what: Recipe, use: Any, ledger: Ledger, now: datetime = NOW) -> int:
    return admit(what, what.teacher, use, ledger, now)
