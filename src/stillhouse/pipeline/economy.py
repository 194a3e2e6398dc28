"""What a run has cost and what prices are known, as the evaluation reckons with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stillhouse.pipeline.setup import local_teacher, today
from stillhouse.prices import price_of
from stillhouse.recipe import Recipe

if TYPE_CHECKING:
    from stillhouse.evaluate import Ledgered


def known_costs(
    recipe: Recipe, collected: float | None, tested: float, seconds: Mapping[str, float]
) -> Ledgered:
    """`collected` and `tested` are what the teacher's answers cost (US dollars), `collected` None where no
    price was known. A price given for a teacher that is served here goes before the machine's."""
    from stillhouse.evaluate import Ledgered

    teacher = recipe.teacher
    served_here = local_teacher(recipe) is not None and teacher.price is None
    known = None if served_here or teacher.imported else price_of(teacher, today())
    return Ledgered(
        price=None if known is None else known.price,
        served_here=served_here,
        machine=recipe.evaluate.machine_price,
        billed=None if collected is None or teacher.imported else collected + tested,
        collect_seconds=seconds["collect"],
        train_seconds=seconds["train"],
    )
