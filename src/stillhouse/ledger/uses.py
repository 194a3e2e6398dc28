"""Which students and releases used an answer: they are what erasing and recalling cannot reach."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from stillhouse.ledger.store import Ledger
from stillhouse.ledger.subject import Found, read_rows, runs_of
from stillhouse.workspace import Workspace


def note_uses(ledger: Ledger, found: Found) -> None:
    """Put into `found` which trainings and releases used what it names."""
    found.students = trainings(ledger, found.leaves, found.rows.values(), _shards(ledger.workspace, found))
    found.releases = releases(ledger, found.students)


def trainings(
    ledger: Ledger, leaves: Collection[int], transforms: Iterable[int | None], shards: Iterable[str]
) -> list[dict[str, Any]]:
    """The `train_run` leaves whose rows, pairs or targets (digests of shards) were made from these leaves."""
    made, held, paired = set(transforms), frozenset(shards), _pairing(ledger.workspace, leaves)
    return [
        {"leaf": leaf.index, "run": leaf.body["run"], "weights": leaf.body.get("weights")}
        for leaf in ledger.leaves("train_run")
        if leaf.body.get("transform") in made
        or not held.isdisjoint(leaf.body.get("targets", ()))
        or ("pairs" in leaf.body and leaf.body["run"] in paired)
    ]


def releases(ledger: Ledger, students: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `release` leaves of the runs of these trainings."""
    runs = {student["run"] for student in students}
    return [
        {"leaf": leaf.index, "run": leaf.body["run"], "name": leaf.body.get("name")}
        for leaf in ledger.leaves("release")
        if leaf.body["run"] in runs
    ]


def rows_of_targets(workspace: Workspace, found: Found) -> set[str]:
    """The names that shards have for rows of these leaves, and for rows of which these are readings."""
    named = set(map(str, found.leaves))
    for run in runs_of(workspace):
        for each in (run, *run.all_further()):
            records = read_rows(each.readings, ["row", "reading"])
            named |= {row["row"] for row in records if row["reading"] in found.leaves}
    return named


def _shards(workspace: Workspace, found: Found) -> set[str]:
    from stillhouse.ledger.targets import SUFFIX, open_shard, unsealed  # numpy, which a gateway does without

    named = rows_of_targets(workspace, found)
    paths = set(workspace.targets.glob(f"*{SUFFIX}")) - set(unsealed(workspace.targets))
    return {path.stem for path in sorted(paths) if not named.isdisjoint(open_shard(path).sample_ids)}


def _pairing(workspace: Workspace, leaves: Collection[int]) -> set[str]:
    """The runs whose dropped rows name one of the leaves: pairs of answers are made with such."""
    return {
        run.root.name
        for run in runs_of(workspace)
        if any(leaf in leaves for row in read_rows(run.dropped, ["leaves"]) for leaf in row["leaves"] or ())
    }
