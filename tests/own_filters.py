"""A filter as a user would write one and declare it as an entry point."""

from typing import Any

from stillhouse.records import Verdict


def same(row: dict[str, Any]) -> Verdict:
    return Verdict("keep") if row["answer"] == row["reference"] else Verdict("drop", "not the reference")
