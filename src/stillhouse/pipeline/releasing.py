"""The last stage: terms are decided about again, by what is known today, before anything leaves the house."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pyarrow.parquet as pq

from stillhouse.pipeline.work import Work, digest, is_done, mark, need
from stillhouse.terms import gate
from stillhouse.terms.asking import licence_texts
from stillhouse.workspace import read_marker


def decide_and_release(work: Work) -> bool:
    """The stage of release: decide about the terms once more, then write the bundle. Whether it was not done.

    Raises GateRefused, and UsageError where there is nothing to release.
    """
    from stillhouse.release import release

    trained, evaluated = need(work, "train"), read_marker(work.folder, "evaluate")
    if evaluated is None:
        need(work, "evaluate")
    wanted = [work.recipe.release.model_dump(), work.recipe.prompts.licence]
    inputs = digest(trained["weights"], evaluated and evaluated["inputs"], *wanted)
    if is_done(work, "release", inputs, work.folder.release / "README.md"):
        return False
    started, now = time.monotonic(), datetime.now(UTC)
    collected = pq.read_table(work.folder.exchanges, columns=["decision"])["decision"].unique().to_pylist()
    decided = gate.admit_release(work.recipe, collected, work.ledger, now)
    texts = licence_texts(work.recipe, work.ledger.workspace)
    result = release(work.folder, work.recipe, work.ledger, decided, now, texts)
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
