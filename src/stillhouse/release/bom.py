"""bom/model.cdx.json: what the model is made of, as a bill of materials by CycloneDX 1.6."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from stillhouse.release.facts import FREE_LICENCES, Facts, Figure, Teacher, compute, missing, stamp, urn
from stillhouse.release.rows import Rows

_MODEL, _ROWS, _PROMPTS = "model", "training-rows", "prompts"


def cyclonedx(facts: Facts, rows: Rows) -> dict[str, Any]:
    """The student with its model card, its base as ancestor, its teachers and its data."""
    taught = [f"teacher-{number}" for number, _ in enumerate(facts.teachers)]
    parts = [
        *(_teacher(ref, teacher) for ref, teacher in zip(taught, facts.teachers, strict=True)),
        _data(_ROWS, "training rows", _rows_said(facts, rows), rows.sha256),
        _data(_PROMPTS, facts.samples.prompts, "The prompts that the teachers answered.", None),
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, urn(facts.run, facts.student.sha256, facts.root))}",
        "version": 1,
        "metadata": {
            "timestamp": stamp(facts.written),
            "tools": {
                "components": [
                    {"type": "application", "name": name, "version": version}
                    for name, version in sorted(facts.software.items())
                ]
            },
            "component": _model(facts),
            **({"supplier": {"name": facts.operator.name}} if facts.operator.name else {}),
        },
        "components": parts,
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [_ROWS]},
            {"ref": _ROWS, "dependsOn": [_PROMPTS, *taught]},
        ],
    }


def _model(facts: Facts) -> dict[str, Any]:
    student = facts.student
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": facts.name,
        "version": facts.version,
        "description": f"Distilled from {', '.join(teacher.model for teacher in facts.teachers)}",
        "tags": ["distillation", "synthetic"],
        "modelCard": _card(facts),
        "properties": _properties(
            {
                "stillhouse:run": facts.run,
                "stillhouse:weights-digest": student.sha256,
                "stillhouse:ledger-origin": facts.origin,
                "stillhouse:ledger-size": facts.size,
                "stillhouse:ledger-root": facts.root,
                "stillhouse:anchored": "no" if facts.anchored is None else facts.anchored,
                "stillhouse:parameters": student.parameters,
                "stillhouse:operations": compute(facts).total,
                "stillhouse:operations-are-the-least": bool(compute(facts).unknown),
            }
        ),
        "components": [
            {
                "type": "file",
                "bom-ref": f"file:{name}",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
            for name, digest in sorted(facts.files.items())
        ],
    }
    if facts.licence is not None:
        known = facts.licence in FREE_LICENCES
        component["licenses"] = [{"license": {"id" if known else "name": facts.licence}}]
    if student.base is not None:
        base: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": "base", "name": student.base}
        if student.base_sha256:
            base["properties"] = _properties({"stillhouse:weights-digest": student.base_sha256})
        component["pedigree"] = {"ancestors": [base], "notes": "Trained on answers of the teachers."}
    return component


def _card(facts: Facts) -> dict[str, Any]:
    student, found = facts.student, facts.evaluation
    limits = [f"Not recorded: {one}" for one in missing(facts)]
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "task": "text-generation",
        "datasets": [{"ref": _ROWS}],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if student.architecture:
        parameters["modelArchitecture"] = student.architecture
    figures = [figure for figure in (*found.figures, found.retention) if figure.value is not None]
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": [_metric(figure, found.source) for figure in figures]},
        "considerations": {"technicalLimitations": [*found.notes, *limits]},
    }


def _metric(figure: Figure, source: str) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": figure.name, "value": str(figure.value), "slice": source}
    if figure.low is not None and figure.high is not None:
        metric["confidenceInterval"] = {"lowerBound": str(figure.low), "upperBound": str(figure.high)}
    return metric


def _teacher(ref: str, teacher: Teacher) -> dict[str, Any]:
    texts = sorted({sha for decision in teacher.decisions for sha in decision.terms_sha256})
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": teacher.model,
        **({"version": teacher.revision} if teacher.revision else {}),
        "description": "A teacher: its answers were trained on, its weights are not in the model.",
        "scope": "excluded",
        "properties": _properties(
            {
                "stillhouse:role": "teacher",
                "stillhouse:access": teacher.access,
                "stillhouse:host": teacher.host,
                "stillhouse:answers": teacher.exchanges,
                "stillhouse:rows": teacher.rows,
                "stillhouse:tokens-read": teacher.prompt_tokens,
                "stillhouse:tokens-written": teacher.completion_tokens,
                "stillhouse:verdict": ", ".join(sorted({d.verdict for d in teacher.decisions})),
                "stillhouse:terms-sha256": ", ".join(texts) or None,
                "stillhouse:lineage": teacher.lineage,
            }
        ),
    }


def _data(ref: str, name: str, said: str, digest: str | None) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": ref,
        "name": name,
        "description": said,
        "data": [{"type": "dataset", "name": name}],
        **({"properties": _properties({"stillhouse:rows-parquet-sha256": digest})} if digest else {}),
    }


def _rows_said(facts: Facts, rows: Rows) -> str:
    return f"{rows.count} prompts with answers of the teachers, kept of {facts.samples.answers}."


def _properties(values: dict[str, Any]) -> list[dict[str, str]]:
    """Strings all; what was not recorded is said to be so."""
    return [
        {"name": name, "value": "not recorded" if value is None else str(value)}
        for name, value in values.items()
    ]
