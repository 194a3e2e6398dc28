"""A filter as a user would write one and declare it as an entry point."""

from typing import Any

from stillhouse.records import Verdict


def same(row: dict[str, Any]) -> Verdict:
    return Verdict("keep") if row["answer"] == row["reference"] else Verdict("drop", "not the reference")


def tidy(row: dict[str, Any]) -> Verdict:
    """Does what it should not: changes the row."""
    row["answer"] = "other"
    row["family"] = None
    row["messages"][0]["content"] = ""
    return Verdict("keep")


def numbered(row: dict[str, Any]) -> Verdict:
    """Gives as its reason what the row says: a number, half a character, or a text."""
    return Verdict("drop", {"number": 5, "half": "\ud800", "list": ["x"]}.get(row["answer"], "told"))  # type: ignore[arg-type]


nothing = 5
