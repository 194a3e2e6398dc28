"""The last stage: terms are decided about again, by what is known today, before anything leaves the house."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pyarrow.parquet as pq

from stillhouse.pipeline.work import Work, digest, is_done, mark, need
from stillhouse.terms import gate
from stillhouse.terms.asking import licence_texts, read_bounded
from stillhouse.workspace import read_marker

# Of a decision what a release depends on: neither when it was made, nor which leaves it names
_DEPENDS = ("teacher", "use", "verdict", "basis", "obligations", "stricter", "signed_off_by", "upstream")


def decide_and_release(work: Work) -> bool:
    """The stage of release: decide about the terms once more, then write the bundle. Whether it was not done.

    Raises GateRefused, also where the bundle is there, and UsageError where there is nothing to release.
    """
    from stillhouse.release import none_recalled, release

    trained, evaluated = need(work, "train"), read_marker(work.folder, "evaluate")
    if evaluated is None:
        need(work, "evaluate")
    none_recalled(work.folder, work.ledger)
    started, now = time.monotonic(), datetime.now(UTC)
    collected = pq.read_table(work.folder.exchanges, columns=["decision"])["decision"].unique().to_pylist()
    decided = gate.admit_release(work.recipe, collected, work.ledger, now)
    licences = licence_texts(work.recipe, work.workspace)
    wanted = [work.recipe.release.model_dump(), work.recipe.prompts.licence]
    inputs = digest(
        trained["weights"],
        evaluated and evaluated["inputs"],
        *wanted,
        [_said(work.ledger.leaf(leaf).body) for leaf in decided],
        sha256(read_bounded(work.workspace.operator, "the operator's file")).hexdigest(),
        {" ".join(whose): sha256(text).hexdigest() for whose, text in licences.items()},
    )
    if is_done(work, "release", inputs, work.folder.release / "README.md"):
        return False
    result = release(work.folder, work.recipe, work.ledger, decided, now, licences)
    checkpoint = {"size": result.size, "root": result.root}
    recorded = {
        "decisions": decided,
        "folder": result.folder,
        "leaf": result.leaf,
        "files": result.files,
        "checkpoint": checkpoint,
    }
    mark(work, "release", inputs, time.monotonic() - started, {**recorded, "anchored": False})
    return True


def _said(decision: Mapping[str, Any]) -> list[Any]:
    return [decision.get(key) for key in _DEPENDS]
