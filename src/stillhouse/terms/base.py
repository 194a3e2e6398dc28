"""What the model that a student begins with brings: its weights are in the student, whoever teaches."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from stillhouse.terms.deciding import Decision, decide
from stillhouse.terms.facts import Asked, Row
from stillhouse.terms.registry import Registry


def rows_about(asked: Asked, table: Registry) -> tuple[Row, ...]:
    """The rows that know a base by any of its names, by what its folder says, or by its LICENSE."""
    found = {row.key: row for row in table.matching(asked)}
    digest = asked.licence_sha256
    found |= {row.key: row for row in table.rows() if digest and digest in row.licence.sha256}
    return tuple(found.values())


def begun_with(asked: Asked, rows: tuple[Row, ...], today: date) -> Decision:
    """What is owed for weights that are in the student, by the rows that know them. Those speak of learning
    from answers, and so nothing of them forbids to begin with weights."""
    inside = replace(asked, student=replace(asked.student, base=asked.model))
    found = decide(inside, rows, (), (), today)
    if is_unread(asked, rows):
        return Decision("allow", f"the terms of the base {asked.model} are not known")
    if not rows:
        return Decision("allow", f"its LICENSE is {asked.licence_spdx}, and no row says more")
    return Decision(
        "allow_with_obligations" if found.obligations else "allow",
        f"its weights are in the student, and what {found.terms} asks is owed",
        obligations=found.obligations,
        basis="registry",
        terms=found.terms,
        read_on=found.read_on,
    )


def is_unread(asked: Asked, rows: tuple[Row, ...]) -> bool:
    """Whether nobody knows what a base asks: no row speaks of it, and its LICENSE is none that is known to
    bring nothing."""
    return not rows and not asked.licence_spdx
