"""What a guard's cascade deferred, taken into the ledger of a workspace for the next student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.guard.config import Guard, Model
    from stillhouse.ledger import Ledger
    from stillhouse.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Landing:
    """What became of it, to be printed and for --json."""

    text: str
    found: dict[str, Any]


def landed_from(recipe: Recipe, ledger: Ledger, config: Path, name: str | None) -> tuple[Recipe, Landing]:
    """The recipe that begins with the student at work and also learns what was deferred. Raises what
    `pipeline.landing.land` raises, UsageError for settings that keep nothing, and StorageError."""
    import os
    import time
    from contextlib import closing
    from dataclasses import asdict

    from stillhouse.gateway.deferred import deferred_exchanges
    from stillhouse.gateway.store.place import pepper_of, sealing_key
    from stillhouse.gateway.store.register import Register
    from stillhouse.guard.reading import read_config
    from stillhouse.pipeline.landing import land

    guard = read_config(config)
    model = _model(guard, name, config)
    student = student_at_work(model)
    pepper = pepper_of(guard.store, os.environ)
    since = time.time() - 86_400 * guard.record.deferred_days
    servers = [(each.url, each.model or model.name) for each in model.upstreams]
    with closing(Register(guard.store, pepper)) as register:
        found = deferred_exchanges(guard.store, sealing_key(pepper), register, model.name, since)
        made, landed = land(recipe, model.name, servers, found, ledger)
    made = made.model_copy(update={"student": made.student.model_copy(update={"init": str(student)})})
    lines = [
        f"deferred   {landed.taken:,} exchanges of {model.name} are learned from, by leaf {landed.decision}; "
        f"{landed.known:,} of them were in the ledger",
        *(f"left out   {count:,}: {why}" for why, count in landed.left_out.items()),
        f"student    begins with the one at work: {student}",
    ]
    return made, Landing("\n".join(lines), asdict(landed) | {"student": str(student)})


def _model(guard: Guard, name: str | None, config: Path) -> Model:
    from stillhouse.errors import UsageError

    found = [model for model in guard.models if model.cascade is not None and name in (None, model.name)]
    if len(found) != 1:
        there = ", ".join(model.name for model in guard.models if model.cascade is not None) or "none"
        raise UsageError(
            f"it is not clear from which cascade of {config} to learn",
            f"models with a student there: {there}",
            "name one of them with --model",
        )
    if guard.record.deferred != "with_consent":
        raise UsageError(
            f"{config} keeps nothing of what is deferred",
            'record.deferred is "never"',
            'set [record] deferred = "with_consent", and have accounts agree: docs/cascade.md',
        )
    return found[0]


def student_at_work(model: Model) -> Path:
    """The folder of the student whose calibration the gateway uses. Raises UsageError where it is not there,
    or is another one."""
    from stillhouse.cascade.calibration import read
    from stillhouse.errors import UsageError, storage
    from stillhouse.models import weights_digest

    assert model.cascade is not None
    path = Path(model.cascade.calibration)
    with storage("read", path):
        calibration = read(path.read_bytes(), str(path))
    student = path.parent.resolve() / "student"
    if not student.is_dir() or weights_digest(student) != calibration.student:
        raise UsageError(
            f"the student of {model.name} is not found",
            f"{student} is not the model that {path} was made for",
            "let `calibration` name the cascade.json in the run that trained the student",
        )
    return student
