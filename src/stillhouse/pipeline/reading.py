"""The teacher of a recipe as one that reads training rows at its endpoint: gate, cap and ledger as ever."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from stillhouse.ask.scores import Readings
from stillhouse.collect import limits_of
from stillhouse.ledger.quarantine import quarantined
from stillhouse.pipeline.work import Work
from stillhouse.recipe import Recipe
from stillhouse.terms import gate


def reads_there(recipe: Recipe) -> bool:
    """Whether [teacher] reads training rows at its endpoint."""
    settings = recipe.train
    reads = settings.objective == "on_policy" or settings.distil.targets == "teacher"
    return settings.objective != "sequence" and reads and recipe.teacher.endpoint is not None


def most_readings(recipe: Recipe, rows: int, students: int, is_read: bool = False) -> int:
    """How many texts are read there at most, where so many students are to learn from so many rows. A row is
    read once for all of them, perhaps already; what each writes itself is other text."""
    settings, own = recipe.train, recipe.train.on_policy
    if not reads_there(recipe):
        return 0
    once = rows if settings.distil.targets == "teacher" and not is_read else 0
    if settings.objective != "on_policy":
        return once
    return once + students * math.ceil(own.share * rows * (settings.epochs - own.after))


def readings(work: Work) -> Readings:
    """Raises GateRefused where the teacher's terms do not allow to learn from it."""
    decision = gate.admit(work.recipe, work.recipe.teacher, "train_target", work.ledger, datetime.now(UTC))
    run = work.folder.root.name
    held = quarantined(work.ledger)
    return Readings(work.teachers[0], decision, limits_of(work.recipe), work.ledger, run, held)
