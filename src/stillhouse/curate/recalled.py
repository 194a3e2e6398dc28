"""Rows that rest on a recalled decision: whatever else may be said of them, they are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
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
    prompts = {prompt for prompt, decision in _invented(run, ledger).items() if decision in held}
    return Recalled(held & set(pc.unique(named).to_pylist()), frozenset(prompts))


def resting_on(run: RunFolder, ledger: Ledger, dropped: bool = False) -> frozenset[int]:
    """The decisions of the answers that the run's samples are made from, and of those that invented their
    prompts; with `dropped` those of its dropped rows too, but of such as were dropped for being recalled."""
    asked = pq.read_table(run.exchanges, columns=["leaf", "decision", "prompt_id"])
    leaves = pq.read_table(run.samples, columns=["leaves"])["leaves"]
    used = set(pc.unique(pc.list_flatten(leaves)).to_pylist())
    if dropped:
        lost = pq.read_table(run.dropped, columns=["leaves", "reason"])
        lost = lost.filter(pc.not_equal(lost["reason"], NAME))
        used |= set(pc.unique(pc.list_flatten(lost["leaves"])).to_pylist())
    rows = asked.filter(pc.is_in(asked["leaf"], value_set=pa.array(used, pa.int64())))
    elsewhere = used.difference(rows["leaf"].to_pylist())  # of samples from before the newest answers
    decided = set(pc.unique(rows["decision"]).to_pylist())
    decided |= {leaf.body["decision"] for leaf in ledger.pick(elsewhere)}
    invented, prompts = _invented(run, ledger), set(pc.unique(rows["prompt_id"]).to_pylist())
    return frozenset(decided | {invented[prompt] for prompt in prompts & invented.keys()})


def _invented(run: RunFolder, ledger: Ledger) -> dict[str, int]:
    """The prompts that a teacher invented, each with the decision under which it did."""
    if not run.grown.exists():
        return {}
    rows = pq.read_table(run.grown, columns=["id", "leaf"]).to_pylist()
    named = {row["id"]: row["leaf"] for row in rows if row["id"] is not None}
    found = {prompt: ledger.leaf(leaf).body.get("decision") for prompt, leaf in named.items()}
    return {prompt: decision for prompt, decision in found.items() if decision is not None}
