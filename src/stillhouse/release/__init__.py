"""release: the student's folder, its card made from recorded facts, and the ledger's checkpoint."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stillhouse.errors import storage
from stillhouse.ledger import Ledger
from stillhouse.recipe import Recipe
from stillhouse.workspace import RunFolder, write_atomic, write_json


@dataclass(frozen=True, slots=True)
class Released:
    folder: str
    leaf: int
    size: int  # of the log, under the checkpoint
    root: str  # base64, RFC 6962
    files: dict[str, str]  # name -> SHA-256


def release(run: RunFolder, recipe: Recipe, ledger: Ledger, decided: Sequence[int] = ()) -> Released:
    """Write `release/`: the student as a transformers folder, README.md, provenance.json, and the checkpoint.

    `decided` are the leaves of the decisions that allow the release; those under which the answers were had
    are read from the run. The release leaf holds the SHA-256 of every file but the checkpoint, which is
    signed after it and so covers it. The folder is replaced as a whole; a half-written one is never left
    behind.
    """
    temporary = run.release.with_name("release.new")
    with storage("write the release", run.release):
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(run.student, temporary)
    evaluation = json.loads(run.evaluation.read_bytes())
    decisions = sorted(set(pq.read_table(run.exchanges, columns=["decision"])["decision"].to_pylist()))
    facts = _facts(run, recipe, evaluation, decisions)
    write_json(temporary / "provenance.json", facts)
    write_json(temporary / "evaluation.json", evaluation)
    write_atomic(temporary / "README.md", model_card(recipe, run.root.name, evaluation, facts).encode())
    files = {
        p.relative_to(temporary).as_posix(): _sha256(p) for p in sorted(temporary.rglob("*")) if p.is_file()
    }
    leaf = ledger.append(
        "release",
        {
            "run": run.root.name,
            "name": _name(recipe),
            "decisions": decisions,
            "decided_at_release": list(decided),
            "files": files,
        },
    )
    checkpoint = ledger.checkpoint()
    write_atomic(temporary / "ledger.checkpoint", checkpoint.note)
    write_atomic(temporary / "ledger.pub", ledger.workspace.verifying_key.read_bytes())
    with storage("write the release", run.release):
        shutil.rmtree(run.release, ignore_errors=True)
        temporary.rename(run.release)
    return Released(
        str(run.release), leaf, checkpoint.size, base64.b64encode(checkpoint.root).decode(), files
    )


def _facts(
    run: RunFolder, recipe: Recipe, evaluation: dict[str, Any], decisions: list[int]
) -> dict[str, Any]:
    markers = {stage: json.loads(run.marker(stage).read_bytes()) for stage in ("collect", "curate", "train")}
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
            f"{', '.join(map(str, facts['decision_leaves']))}). `ledger.checkpoint` is the "
            "ledger's signed head.",
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
