"""What a student rests on: no stage goes on with answers that were recalled since the one before it."""

from __future__ import annotations

from stillhouse.curate import resting_on
from stillhouse.errors import GateRefused
from stillhouse.ledger.quarantine import quarantined
from stillhouse.pipeline.work import Work


def grounds(work: Work) -> frozenset[int]:
    """The decisions under which the answers were had that the samples are made from; where the student learns
    from wrong answers too, those of the dropped ones as well."""
    return resting_on(work.folder, work.ledger, dropped=work.recipe.train.preference is not None)


def none_recalled(work: Work) -> None:
    """Raises GateRefused where samples rest on what is recalled: a whole run has then curated anew, a stage
    alone has not."""
    held = quarantined(work.ledger)
    gone = sorted(held & grounds(work)) if held else []
    if gone:
        raise GateRefused(
            f"the samples of {work.folder.root.name} were made from answers that are recalled",
            f"they were had under the decisions {gone}",
            "`stillhouse run RECIPE` makes samples and student without them, `stillhouse curate RECIPE` the "
            "samples alone; or lift it: `stillhouse ledger recall --lift`",
        )
