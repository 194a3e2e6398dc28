"""Rows that rest on a recalled decision: whatever else may be said of them, they are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.curate.funnel import Judged
from stillhouse.ledger import Ledger
from stillhouse.ledger.quarantine import quarantined
from stillhouse.records import Verdict
from stillhouse.workspace import RunFolder

NAME = "recalled"


@dataclass(frozen=True, slots=True)
class Recalled:
    """The recalled decisions that a run's exchanges name, and the prompts that such an exchange invented."""

    decisions: frozenset[int] = frozenset()
    prompts: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.decisions or self.prompts)

    def record(self) -> list[int | str]:
        """What the stage's inputs say of it; nothing where nothing is recalled."""
        return [*sorted(self.decisions), *sorted(self.prompts)]

    def judge(self, rows: Sequence[Judged]) -> list[Judged]:
        verdict = Verdict("drop", NAME)
        return [
            replace(one, verdict=verdict, step=NAME)
            if one.row["decision"] in self.decisions or one.row["prompt_id"] in self.prompts
            else one
            for one in rows
        ]


def recalled_of(run: RunFolder, ledger: Ledger) -> Recalled:
    """What of a run is quarantined now (see `ledger.quarantine`)."""
    held = quarantined(ledger)
    if not held:
        return Recalled()
    named = pq.read_table(run.exchanges, columns=["decision"])["decision"]
    prompts = set()
    if run.grown.exists():
        for row in pq.read_table(run.grown, columns=["id", "leaf"]).to_pylist():
            if row["id"] is not None and ledger.leaf(row["leaf"]).body.get("decision") in held:
                prompts.add(row["id"])
    return Recalled(held & set(pc.unique(named).to_pylist()), frozenset(prompts))
