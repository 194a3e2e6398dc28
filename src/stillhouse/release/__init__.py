"""release: the student's folder, its card made from recorded facts, and the proofs of where it came from."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import storage
from stillhouse.ledger import Leaf, LeafKind, Ledger, disclosure, manifest
from stillhouse.ledger.keys import read_signing_key
from stillhouse.recipe import Recipe
from stillhouse.release.provenance import Provenance, as_json, trace
from stillhouse.workspace import RunFolder, write_atomic, write_json

PROOFS = "provenance"


@dataclass(frozen=True, slots=True)
class Released:
    folder: str
    leaf: int
    size: int  # of the log, under the checkpoint
    root: str  # base64, RFC 6962
    files: dict[str, str]  # name -> SHA-256


def release(run: RunFolder, recipe: Recipe, ledger: Ledger, decided: Sequence[int]) -> Released:
    """Write `release/`: the student as a transformers folder, its documents, the proofs, and the manifest.

    `decided` are the decisions of now that each teacher's answers may be trained on. The release leaf holds
    the SHA-256 of every file that is there before it; checkpoint, leaves and hashes come after, and the
    signed manifest, written last, covers them all. The folder is replaced as a whole; a half-written one is
    never left behind.
    """
    temporary = run.release.with_name("release.new")
    with storage("write the release", run.release):
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(run.student, temporary)
        (temporary / PROOFS).mkdir()
    markers = {stage: json.loads(run.marker(stage).read_bytes()) for stage in ("collect", "curate", "train")}
    transform = markers["curate"]["result"]["transform"]
    traced = trace(ledger, run, transform, temporary / PROOFS / "rows.parquet")
    trained = _newest(ledger, "train_run", run, weights=markers["train"]["result"]["weights"])
    evaluated = _newest(ledger, "evaluation", run, weights=markers["train"]["result"]["weights"])
    evaluation = json.loads(run.evaluation.read_bytes())
    facts = _facts(run, recipe, evaluation, traced.decisions, markers)
    write_json(temporary / PROOFS / "teachers.json", as_json(traced))
    write_json(temporary / "provenance.json", facts)
    write_json(temporary / "evaluation.json", evaluation)
    write_atomic(temporary / "README.md", model_card(recipe, run.root.name, evaluation, facts).encode())
    files = manifest.digests(temporary)
    leaf = ledger.append(
        "release",
        {
            "run": run.root.name,
            "name": _name(recipe),
            "rows": traced.rows,
            "decisions": sorted({*traced.decisions, *decided}),
            "transform": transform,
            "train_run": trained.index,
            "evaluation": evaluated.index,
            "files": files,
        },
    )
    checkpoint = ledger.checkpoint()
    shown = {*traced.leaves, *decided, trained.index, evaluated.index, leaf, *_corrections(ledger, traced)}
    disclosure.disclose(ledger, temporary / PROOFS, shown, checkpoint)
    manifest.seal(temporary, ledger.origin, _name(recipe), read_signing_key(ledger.workspace))
    with storage("write the release", run.release):
        shutil.rmtree(run.release, ignore_errors=True)
        temporary.rename(run.release)
    return Released(
        str(run.release), leaf, checkpoint.size, base64.b64encode(checkpoint.root).decode(), files
    )


def _newest(ledger: Ledger, kind: LeafKind, run: RunFolder, weights: str) -> Leaf:
    """What the log says last of the training, or the evaluation, of these weights in this run."""
    found = [
        leaf
        for leaf in ledger.leaves(kind)
        if (leaf.body["run"], leaf.body["weights"]) == (run.root.name, weights)
    ]
    return found[-1]


def _corrections(ledger: Ledger, traced: Provenance) -> set[int]:
    """Changes of the signing key and of permissions, and what was erased of the leaves that are shown."""
    erased = {
        leaf.index
        for leaf in ledger.leaves("tombstone")
        if not traced.leaves.isdisjoint((leaf.body["leaf"], *leaf.body.get("rows", ())))
    }
    return erased | {leaf.index for leaf in ledger.leaves("correction")}


def _facts(
    run: RunFolder,
    recipe: Recipe,
    evaluation: dict[str, Any],
    decisions: list[int],
    markers: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    asked = markers["collect"]["result"]["teachers"]
    teachers = [
        {
            "model": teacher.model,
            "endpoint": teacher.endpoint,
            "revision": found["revision"],
            "declared_terms": None if teacher.terms is None else teacher.terms.model_dump(mode="json"),
        }
        for teacher, found in zip((recipe.teacher, *recipe.teachers), asked, strict=True)
    ]
    return {
        "run": run.root.name,
        "teachers": teachers,
        "decision_leaves": decisions,
        "student": {"init": recipe.student.init},
        "samples": markers["curate"]["result"],
        "training": markers["train"]["result"],
        "exchanges": evaluation.get("exchanges"),
        "anchored": False,
    }


def model_card(recipe: Recipe, run: str, evaluation: dict[str, Any], facts: dict[str, Any]) -> str:
    """Markdown with Hub metadata. A fact that was not recorded is said to be missing."""
    licence = recipe.release.licence
    head = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [distillation, stillhouse]",
    ]
    head += [f"license: {licence}"] if licence else []
    rows = [
        f"| {label} | {_figure(evaluation.get(system))} |"
        for system, label in (
            ("teacher", "teacher"),
            ("student_before", "student before"),
            ("student", "this model"),
            ("baseline", "TF-IDF baseline"),
        )
    ]
    retention = evaluation.get("retention") or {}
    kept = _interval(retention.get("value"), retention.get("low"), retention.get("high"))
    samples = facts["samples"]
    taught = " and ".join(f"`{teacher['model']}`" for teacher in facts["teachers"])
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {_name(recipe)}",
            "",
            f"Distilled by stillhouse (run `{run}`) from the answers of {taught}, "
            f"starting from `{recipe.student.init}`.",
            "",
            "| | score on the test prompts (95 % interval) |",
            "|---|---|",
            *rows,
            "",
            f"Share of the teacher's score kept: {kept}. FLOPs per answer against the teacher's: "
            f"{_percent(evaluation.get('flops_ratio'))}.",
            "",
            "## Where the training rows came from",
            "",
            f"{samples['kept']} rows were kept of {samples['rows']} teacher answers; dropped: "
            f"{json.dumps(samples['reasons'], sort_keys=True)}. Every row is a leaf in the ledger that names "
            "the teacher's answer, and every answer names the decision by which it was allowed (leaves "
            f"{', '.join(map(str, facts['decision_leaves']))}). `provenance/` shows it.",
            "",
            "unanchored: internally consistent only. Nobody else is known to hold a checkpoint.",
            "",
            f"Licence: {licence or 'not declared in the recipe'}.",
            "",
        ]
    )


def _name(recipe: Recipe) -> str:
    return recipe.release.name or recipe.run.name


def _figure(entry: dict[str, Any] | None) -> str:
    return _interval(entry.get("score"), entry.get("low"), entry.get("high")) if entry else "not measured"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "unknown"
    if low is None or high is None:
        return f"{_percent(value)} (interval unknown)"
    return f"{_percent(value)} ({_percent(low)} to {_percent(high)})"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"
