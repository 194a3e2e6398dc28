"""bom/model.spdx3.json: model, teachers and data as SPDX 3.0.1 JSON-LD, with its AI and Dataset profiles.

SPDX has no relation for distilling: a teacher `generates` the rows, and the model is `trainedOn` them.
"""

from __future__ import annotations

from typing import Any

from stillhouse.release.facts import Facts, Teacher, missing, stamp, urn
from stillhouse.release.rows import Rows

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
_CREATION = "_:creation"
_UNSAID = "expandedlicensing_NoAssertionLicense"

_Element = dict[str, Any]


def spdx(facts: Facts, rows: Rows) -> dict[str, Any]:
    """JSON-LD. What was not recorded is left out, or asserted to be unsaid where the format asks for it."""
    supplier = _element(facts, "supplier", "Organization" if facts.operator.name else "Agent")
    supplier["name"] = facts.operator.name or "not recorded"
    tool = _element(facts, "stillhouse", "Tool")
    tool["name"] = f"stillhouse {facts.software.get('stillhouse', '')}".strip()
    model, trained, tested = _model(facts), _rows(facts, rows), _test(facts)
    teachers = [_teacher(facts, number, teacher) for number, teacher in enumerate(facts.teachers)]
    base = [_base(facts)] if facts.student.base else []
    licences, licence = _licence(facts)
    related = [
        *(("generates", teacher, [trained]) for teacher in teachers),
        ("trainedOn", model, [trained]),
        ("testedOn", model, [tested]),
        *(("descendantOf", model, [one]) for one in base),
    ]
    links = [_relation(facts, kind, at, [one["spdxId"] for one in to]) for kind, at, to in related]
    links += [
        _relation(facts, kind, model, [licence]) for kind in ("hasConcludedLicense", "hasDeclaredLicense")
    ]
    links += [
        _relation(facts, kind, data, [_UNSAID])
        for data in (trained, tested)
        for kind in ("hasConcludedLicense", "hasDeclaredLicense")
    ]
    for one in (model, trained, tested):
        one["suppliedBy"] = supplier["spdxId"]
    parts = [supplier, tool, model, trained, tested, *teachers, *base, *licences, *links]
    document = _element(facts, "document", "SpdxDocument") | {
        "profileConformance": ["core", "software", "ai", "dataset", "simpleLicensing"],
        "rootElement": [model["spdxId"]],
        "element": [part["spdxId"] for part in parts],
        "comment": "Not recorded: " + ("; ".join(missing(facts)) or "nothing that is asked for here"),
    }
    creation = {
        "type": "CreationInfo",
        "@id": _CREATION,
        "specVersion": "3.0.1",
        "created": stamp(facts.written),
        "createdBy": [supplier["spdxId"]],
        "createdUsing": [tool["spdxId"]],
    }
    return {"@context": CONTEXT, "@graph": [creation, document, *parts]}


def _model(facts: Facts) -> _Element:
    student, training, found = facts.student, facts.training, facts.evaluation
    measured = [figure for figure in (*found.figures, found.retention) if figure.value is not None]
    return _element(facts, "model", "ai_AIPackage") | {
        "name": facts.name,
        "software_packageVersion": facts.version,
        "software_primaryPurpose": "model",
        "releaseTime": stamp(facts.written),
        "ai_typeOfModel": [f"transformer, {student.architecture or 'architecture not recorded'}"],
        "ai_informationAboutTraining": (
            f"Trained on answers of {', '.join(t.model for t in facts.teachers)} by the objective "
            f"{training.objective}, from {student.base or 'nothing'}."
        ),
        "ai_hyperparameter": _entries(
            {
                "steps": training.steps,
                "epochs": training.epochs,
                "tokens": training.tokens,
                "seed": training.seed,
                "parameters": student.parameters,
                "dtype": training.dtype,
            }
        ),
        "ai_metric": _entries({figure.name: figure.value for figure in measured}),
        "ai_limitation": " ".join(found.notes) or "None was recorded.",
        "verifiedUsing": [_hash(digest, name) for name, digest in sorted(facts.files.items())],
    }


def _rows(facts: Facts, rows: Rows) -> _Element:
    samples = facts.samples
    dropped = ", ".join(f"{why} {n}" for why, n in sorted(samples.dropped.items())) or "none"
    return _element(facts, "rows", "dataset_DatasetPackage") | {
        "name": f"training rows of {facts.name}",
        "software_primaryPurpose": "data",
        "dataset_datasetType": ["text"],
        "dataset_datasetSize": rows.count,
        "dataset_dataCollectionProcess": (
            f"Prompts of {samples.prompts} were put to the teachers; the ledger holds a leaf for each answer."
        ),
        "dataset_dataPreprocessing": [
            f"{samples.kept} of {samples.answers} answers kept; dropped: {dropped}"
        ],
        "releaseTime": stamp(facts.written),
        "verifiedUsing": [_hash(rows.sha256, "provenance/rows.parquet, which names the rows")],
    }


def _test(facts: Facts) -> _Element:
    return _element(facts, "test", "dataset_DatasetPackage") | {
        "name": f"test prompts: {facts.evaluation.source}",
        "software_primaryPurpose": "data",
        "dataset_datasetType": ["text"],
    }


def _teacher(facts: Facts, number: int, teacher: Teacher) -> _Element:
    return _element(facts, f"teacher-{number}", "ai_AIPackage") | {
        "name": teacher.model,
        **({"software_packageVersion": teacher.revision} if teacher.revision else {}),
        "software_primaryPurpose": "model",
        "comment": (
            f"A teacher, reached by {teacher.access or 'a way that was not recorded'}: {teacher.rows} rows, "
            f"{teacher.completion_tokens} tokens written. What it was taught by: "
            f"{teacher.lineage or 'not recorded'}."
        ),
    }


def _base(facts: Facts) -> _Element:
    sha = facts.student.base_sha256
    return _element(facts, "base", "ai_AIPackage") | {
        "name": facts.student.base,
        "software_primaryPurpose": "model",
        "comment": f"What the model began as. Digest of its files: {sha or 'not recorded'}.",
    }


def _licence(facts: Facts) -> tuple[list[_Element], str]:
    """The licence's element, where one is recorded, and what relations point at."""
    if facts.licence is None:
        return [], _UNSAID
    made = _element(facts, "licence", "simplelicensing_LicenseExpression")
    return [made | {"simplelicensing_licenseExpression": facts.licence}], made["spdxId"]


def _relation(facts: Facts, kind: str, at: _Element, to: list[str]) -> _Element:
    name = f"{at['spdxId'].rsplit(':', 1)[1]}-{kind}"
    return _element(facts, name, "Relationship") | {
        "from": at["spdxId"],
        "relationshipType": kind,
        "to": to,
    }


def _element(facts: Facts, name: str, kind: str) -> _Element:
    return {"type": kind, "spdxId": urn(facts.run, name), "creationInfo": _CREATION}


def _entries(values: dict[str, Any]) -> list[dict[str, str]]:
    return [{"type": "DictionaryEntry", "key": key, "value": str(value)} for key, value in values.items()]


def _hash(digest: str, of: str) -> dict[str, str]:
    return {"type": "Hash", "algorithm": "sha256", "hashValue": digest, "comment": of}
