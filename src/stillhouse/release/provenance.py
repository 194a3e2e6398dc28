"""The leaves that a stranger must see to check where a release came from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stillhouse.ledger import Leaf, LeafKind, Ledger
from stillhouse.ledger.quarantine import LIFTED, SET_ASIDE
from stillhouse.workspace import RunFolder


def leaves_to_show(run: RunFolder, ledger: Ledger, rows: Path, named: Iterable[int]) -> set[int]:
    """Every row and answer of the run and what allowed it, by the run's files and `rows.parquet` at `rows`.

    Answers that were dropped are shown as well, since they count in what was asked of a teacher. `named` are
    leaves that the release itself names. Erasures, recalls and revocations are shown where they touch one of
    these, changes of keys always. A permission that is not to be disclosed is left out: what rests on it
    names its leaf, and no more of it is told.
    """
    shown = set(named) | _column(rows, "leaf") | _column(run.exchanges, "leaf")
    shown |= _column(run.readings, "reading") if run.readings.is_file() else set()
    decisions = {leaf.body["decision"] for leaf in ledger.pick(shown) if leaf.kind in ("exchange", "import")}
    for decision in ledger.pick(shown | decisions):
        if decision.kind == "decision":
            shown |= {decision.index, *_grounds(decision)}
    shown -= {leaf.index for leaf in ledger.pick(shown) if _is_kept_back(leaf)}
    shown |= {leaf.index for leaf in ledger.leaves("correction") if _touches(leaf.body, shown)}
    return shown | {
        leaf.index for leaf in ledger.leaves("tombstone") if not shown.isdisjoint(_erased(leaf.body))
    }


def learned_under(run: RunFolder, ledger: Ledger) -> set[int]:
    """The decisions of the answers that became rows, and of what the teacher read of these in training.
    Those of answers that were dropped are not among them."""
    made_from = pq.read_table(run.samples, columns=["leaves"])["leaves"].to_pylist()
    learned = {leaf for leaves in made_from for leaf in leaves}
    learned |= _column(run.readings, "reading") if run.readings.is_file() else set()
    return {leaf.body["decision"] for leaf in ledger.pick(learned)}


def newest(ledger: Ledger, kind: LeafKind, run: RunFolder, weights: str) -> Leaf:
    """What the log says last of the training, or the evaluation, of these weights in this run."""
    found = [
        leaf
        for leaf in ledger.leaves(kind)
        if (leaf.body["run"], leaf.body["weights"]) == (run.root.name, weights)
    ]
    return found[-1]


def _grounds(decision: Leaf) -> set[int]:
    """What a decision rests on: permissions, declarations, and the texts that were read."""
    found: set[int] = set()
    several = ("permissions", "declarations", "terms_snapshots", "offered")
    for name in ("authorisation", *several, "declaration", "terms_snapshot"):  # the last two of before
        given = decision.body.get(name)
        found.update([given] if isinstance(given, int) else given or ())
    return found


def _is_kept_back(leaf: Leaf) -> bool:
    return leaf.kind == "authorisation" and not leaf.body.get("permission", {}).get("disclosure", True)


def _touches(correction: dict[str, Any], shown: set[int]) -> bool:
    what = correction["what"]
    if what == "signing key replaced":
        return True
    if what == "permission revoked":
        return correction["authorisation"] in shown
    named = [*correction.get("decisions", ()), correction.get("authorisation")]
    return what in (SET_ASIDE, LIFTED) and not shown.isdisjoint(named)


def _erased(body: dict[str, Any]) -> set[int]:
    """The leaves that a tombstone names, in the form of today or the one before."""
    return {*body.get("leaves", ()), *body.get("rows", ()), *([body["leaf"]] if "leaf" in body else [])}


def _column(path: Path, name: str) -> set[int]:
    return set(pq.read_table(path, columns=[name])[name].to_pylist())
