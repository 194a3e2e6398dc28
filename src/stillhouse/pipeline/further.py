"""Further students for comparison, each trained in a folder of its own from the samples of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import rfc8785
from pyarrow import parquet

from stillhouse.errors import UsageError, storage
from stillhouse.models import source_folder, weights_digest
from stillhouse.recipe import Recipe, Student
from stillhouse.scoring import Scorer, score
from stillhouse.workspace import RunFolder, read_marker, write_json

if TYPE_CHECKING:
    from stillhouse.evaluate import Further
    from stillhouse.evaluate.further import Kind


@dataclass(frozen=True, slots=True)
class Variant:
    """`samples` None: all of them. `student` is how it begins, None as the run's own."""

    name: str
    kind: Kind
    seed: int
    samples: int | None = None
    student: Student | None = None

    def facts(self) -> dict[str, Any]:
        """What its training depends on beside what the run's own does, as JSON."""
        start = self.student and source_folder(self.student.init)
        return {
            "kind": self.kind,
            "seed": self.seed,
            "samples": self.samples,
            "student": self.student and self.student.model_dump(mode="json", exclude={"task"}),
            "start": weights_digest(start) if start and Path(start).is_dir() else None,
        }

    def label(self) -> str:
        """How it begins, in words."""
        if self.student is None:
            return ""
        layers, width = self.student.keep_layers, self.student.keep_width
        kept = f", layers {', '.join(map(str, layers))}" if isinstance(layers, list) else ""
        kept = f", {layers} layers" if isinstance(layers, int) else kept
        shares = width.model_dump(exclude_defaults=True) if width else {}
        return self.student.init + kept + "".join(f", {name} x {share:g}" for name, share in shares.items())


def variants(recipe: Recipe) -> list[Variant]:
    """The further students that a recipe asks for."""
    settings, seed = recipe.evaluate, recipe.run.seed
    made = [Variant(f"seed-{seed + more}", "seed", seed + more) for more in range(1, settings.seeds)]
    if settings.hard_labels:
        made.append(Variant("hard-labels", "hard_labels", seed))
    made += [Variant(f"samples-{n}", "samples", seed, n) for n in sorted(set(settings.curve or ()))]
    others = enumerate(settings.students or (), 1)
    return made + [Variant(f"student-{place}", "size", seed, student=other) for place, other in others]


def further_inputs(run: RunFolder, recipe: Recipe, trained: str, scorers: Mapping[str, Scorer]) -> list[str]:
    """For each variant the digest of what its training depends on; `trained` is that of the run's own.

    Raises UsageError where there are no samples for one."""
    found = []
    for variant in variants(recipe):
        wanted: dict[str, Any] = {"trained": trained, **variant.facts()}
        if variant.kind == "hard_labels":  # nothing else depends on the references of what is learned from
            rows = _samples(run, variant, recipe.run.seed, scorers).select(["id", "completion"])
            wanted["labels"] = rows.to_pylist()
        found.append(hashlib.sha256(rfc8785.dumps(wanted)).hexdigest())
    return found


def train_further(
    run: RunFolder,
    recipe: Recipe,
    inputs: Sequence[str],
    scorers: Mapping[str, Scorer],
    fit: Callable[[RunFolder, Recipe], object],
) -> list[Further]:
    """Let `fit` train what is not trained yet, from the samples in a folder, by a recipe, into that folder.

    `inputs` are what `further_inputs` finds. A student's samples lie in its folder
    only while it is trained, so that erasing finds them in one place.
    Raises what training raises, and UsageError where there are no samples for a variant.
    """
    from stillhouse.evaluate import Further

    found = []
    for variant, wanted in zip(variants(recipe), inputs, strict=True):
        folder = run.further(variant.name)
        marker = read_marker(folder, "train")
        there = (folder.student / "config.json").is_file()
        if marker is None or marker.get("inputs") != wanted or not there:
            folder.root.mkdir(parents=True, exist_ok=True)
            folder.marker("train").unlink(missing_ok=True)
            rows = _samples(run, variant, recipe.run.seed, scorers)
            with storage("write", folder.samples):
                parquet.write_table(rows, folder.samples)
            fit(folder, _settings(recipe, variant))
            folder.samples.unlink()
            marker = {"inputs": wanted, "samples": rows.num_rows}
            write_json(folder.marker("train"), marker)
        found.append(
            Further(
                variant.name,
                variant.kind,
                variant.seed,
                int(marker["samples"]),
                folder.student,
                variant.label(),
            )
        )
    return found


def _settings(recipe: Recipe, variant: Variant) -> Recipe:
    """References have no probabilities, so they are learned as sequences whatever the objective."""
    changes: dict[str, Any] = {"run": recipe.run.model_copy(update={"seed": variant.seed})}
    if variant.student is not None:
        changes["student"] = variant.student
    if variant.kind == "hard_labels":
        alone = {"objective": "sequence", "rationale": None, "preference": None}
        return recipe.model_copy(update={**changes, "train": recipe.train.model_copy(update=alone)})
    return recipe.model_copy(update=changes)


def _samples(run: RunFolder, variant: Variant, seed: int, scorers: Mapping[str, Scorer]) -> pa.Table:
    rows = parquet.read_table(run.samples)
    if variant.kind == "hard_labels":
        return _hard(rows, run, scorers)
    if variant.samples is None:
        return rows
    if variant.samples >= rows.num_rows:
        raise UsageError(
            f"evaluate.curve asks for {variant.samples} samples",
            f"curate kept {rows.num_rows}, on which the student itself is trained",
            "name smaller numbers",
        )
    # By a hash of the id, so that each set holds every smaller one.
    order = sorted(range(rows.num_rows), key=lambda index: _place(seed, rows["id"][index].as_py()))
    return rows.take(sorted(order[: variant.samples]))


def _hard(rows: pa.Table, run: RunFolder, scorers: Mapping[str, Scorer]) -> pa.Table:
    """One row for each prompt that was learned from and whose reference is itself a right answer."""
    columns = ["id", "reference", "scorer"]
    known: dict[str, dict[str, Any]] = {
        row["id"]: row for row in parquet.read_table(run.prompts, columns=columns).to_pylist()
    }
    kept, labels, seen = [], [], set()
    for index, name in enumerate(rows["id"].to_pylist()):
        prompt_id = name.rpartition("#")[0]
        row = known.get(prompt_id)
        if row is None or row["reference"] is None or prompt_id in seen:
            continue
        if score(row["scorer"], row["reference"], row["reference"], scorers).value == 1.0:
            seen.add(prompt_id)
            kept.append(index)
            labels.append(row["reference"])
    if not kept:
        raise UsageError(
            "there are no hard labels to train on",
            "no prompt that was learned from has a reference that its own scorer takes for a right answer",
            "give the prompts references and a scorer, or remove `evaluate.hard_labels`",
        )
    place = rows.schema.get_field_index("completion")
    return rows.take(kept).set_column(place, rows.schema.field(place), pa.array(labels, pa.string()))


def _place(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"curve:{seed}:{name}".encode()).digest()
