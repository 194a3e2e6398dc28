"""The teacher of a recipe as one that reads training rows at its endpoint: gate, cap and ledger as ever."""

from __future__ import annotations

from datetime import UTC, datetime

from stillhouse.ask.scores import Readings
from stillhouse.collect import limits_of
from stillhouse.pipeline.work import Work
from stillhouse.terms import gate


def readings(work: Work) -> Readings:
    """Raises GateRefused where the teacher's terms do not allow to learn from it."""
    decision = gate.admit(work.recipe.teacher, "train_target", work.ledger, datetime.now(UTC))
    run = work.folder.root.name
    return Readings(work.teachers[0], decision, limits_of(work.recipe), work.ledger, run)
