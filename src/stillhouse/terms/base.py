"""What the model that a student begins with brings: its weights are in the student, whoever teaches."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from stillhouse.recipe import Recipe
from stillhouse.terms import licences, registry
from stillhouse.terms.asking import base_named
from stillhouse.terms.deciding import decide
from stillhouse.terms.facts import Asked, Row, Student
from stillhouse.terms.obligations import Base, Owed, begins_from
from stillhouse.terms.operator import read_operator
from stillhouse.terms.registry import Registry
from stillhouse.workspace import Workspace


def of_base(recipe: Recipe, workspace: Workspace, today: date) -> Base:
    """What the base brings by the rows of today; nothing where the student begins with none, with one that
    stillhouse ships, or as a part of its teacher, for which the teacher's own decision speaks.

    Raises UsageError for rows or an operator's file that cannot be read.
    """
    init = recipe.student.init
    if init in ("config", "from_teacher") or init.startswith("embedded:"):
        return Base()
    teacher = next((one for one in (recipe.teacher, *recipe.teachers) if begins_from(recipe, one)), None)
    called = Path(init).name if Path(init).is_absolute() else init
    name = called if teacher is None else teacher.checkpoint or called
    rows, readable = _rows(registry.load(workspace.terms), name, Path(init).expanduser())
    if not rows:
        return Base(unknown="" if readable else name)
    student = Student(recipe.release.name or recipe.run.name, name, mode=recipe.release.mode)
    asked = Asked(name, "", "weights", "", "train_target", student, read_operator(workspace))
    by = base_named(recipe) if teacher is None else teacher.model
    owed = decide(asked, rows, (), (), today).obligations
    return Base(tuple(Owed(one.row, by, one.obligation, in_student=True) for one in owed))


def _rows(table: Registry, name: str, folder: Path) -> tuple[tuple[Row, ...], bool]:
    """The rows that know a base by its name or by the LICENSE in its folder, and whether that LICENSE is one
    that brings nothing beyond itself (an SPDX id that was recognised)."""
    found = {match.row.key: match.row for match in table.matches(name, "weights")}
    digest, spdx, _ = licences.read_licence(folder) or ("", "", "")
    found |= {row.key: row for row in table.rows() if digest and digest in row.licence.sha256}
    return tuple(found.values()), bool(spdx)
