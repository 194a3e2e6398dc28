"""Students that answer before their teachers: how often, how well, and what that saves."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response

from stillhouse.gateway.cascade_figures import Figures, figures_of
from stillhouse.gateway.console.visit import Visit, page
from stillhouse.guard.config import Cascade

WHY = {
    "sure": "sure enough",
    "unsure": "the risk was above the threshold",
    "audit": "drawn to be compared",
    "traffic_changed": "the traffic has changed",
    "not_judged": "the calibration does not speak of such requests",
    "student_failed": "the student gave no answer",
    "nothing_promised": "the calibration keeps nothing",
    "teacher_down": "the teacher gave no answer",
    "other_student": "another student is served than was calibrated",
}


@dataclass(frozen=True, slots=True)
class Row:
    """`answers` are (who, why in words, count), most first; `unpriced` names what has no price."""

    figures: Figures
    config: Cascade
    answers: list[tuple[str, str, int]]
    unpriced: str


async def cascades(visit: Visit) -> Response:
    gateway = visit.gateway
    rows = []
    for served in gateway.models.values():
        found = figures_of(served)
        if found is not None and served.cascade is not None:
            rows.append(_row(found, served.cascade.config))
    kept, record = gateway.record.deferred, gateway.config.record
    return page(visit, "cascades.html", rows=rows, kept=kept.kept, lost=dict(kept.lost), record=record)


def _row(found: Figures, config: Cascade) -> Row:
    counted = sorted(found.answered.items(), key=lambda each: (-each[1], each[0]))
    prices = (("the student", config.student_price), ("the teacher", config.teacher_price))
    return Row(
        found,
        config,
        [(who, WHY.get(why, why), count) for (who, why), count in counted],
        " and ".join(who for who, price in prices if price is None),
    )
