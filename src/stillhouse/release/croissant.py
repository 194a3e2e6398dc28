"""dataset/croissant.json: what rows.parquet holds and where it came from, as Croissant 1.1 with PROV-O."""

from __future__ import annotations

from typing import Any

from stillhouse.release.facts import Facts, Teacher, stamp, urn
from stillhouse.release.rows import COLUMNS, Rows

_TYPES = {"int64": "sc:Integer", "string": "sc:Text"}
_FILE = "rows.parquet"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(facts: Facts, rows: Rows, place: str = "../provenance/rows.parquet") -> dict[str, Any]:
    """JSON-LD; `place` is where rows.parquet lies, seen from this file. The texts of the rows are no part of
    it: they stay with the operator, and the leaves commit to them."""
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "@id": urn(facts.run, "rows"),
        "name": f"Training rows of {facts.name}",
        "description": (
            f"Where each of the {rows.count} rows came from that {facts.name} was trained on: leaves of the "
            "ledger, decisions and teachers. Prompts and answers are not in it."
        ),
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "version": "1.0.0",
        "datePublished": facts.written.date().isoformat(),
        **_creator(facts),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": _FILE,
                "name": _FILE,
                "description": "One row for each training row.",
                "contentUrl": place,
                "contentSize": f"{rows.size} B",
                "encodingFormat": "application/x-parquet",
                "sha256": rows.sha256,
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "description": "One record for each training row.",
                "key": {"@id": "rows/row"},
                "field": [_field(name, str(kind), said) for name, kind, said in COLUMNS],
            }
        ],
        "prov:wasDerivedFrom": [
            {"@type": "prov:Entity", "@id": urn("prompts", facts.samples.prompts)},
            *(_answers(facts, teacher) for teacher in facts.teachers),
        ],
        "prov:wasGeneratedBy": _activity(facts),
        "prov:wasAttributedTo": [_agent(teacher) for teacher in facts.teachers],
    }


def _creator(facts: Facts) -> dict[str, Any]:
    name = facts.operator.name
    return {} if name is None else {"creator": {"@type": "sc:Organization", "name": name}}


def _field(name: str, kind: str, said: str) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"rows/{name}",
        "name": name,
        "description": said,
        "dataType": _TYPES["int64" if "int64" in kind else kind],
        "source": {"fileObject": {"@id": _FILE}, "extract": {"column": name}},
    }
    return field | ({"isArray": True, "arrayShape": "-1"} if kind.startswith("list") else {})


def _activity(facts: Facts) -> dict[str, Any]:
    spans = [teacher.times for teacher in facts.teachers if teacher.times]
    known = {}
    if spans:
        known = {
            "prov:startedAtTime": min(first for first, _ in spans),
            "prov:endedAtTime": max(last for _, last in spans),
        }
    return {
        "@type": "prov:Activity",
        "@id": urn(facts.run, "collect"),
        "prov:label": f"Prompts put to {', '.join(t.model for t in facts.teachers)}, answers kept by rules",
        **known,
    }


def _answers(facts: Facts, teacher: Teacher) -> dict[str, Any]:
    return {
        "@type": "prov:Entity",
        "@id": urn(facts.run, "answers", teacher.model, teacher.revision or ""),
        "prov:label": f"{teacher.exchanges} answers of {teacher.model}, {teacher.rows} of them kept",
        "prov:wasAttributedTo": {"@id": _agent(teacher)["@id"]},
        "prov:generatedAtTime": teacher.times[1] if teacher.times else stamp(facts.written),
    }


def _agent(teacher: Teacher) -> dict[str, Any]:
    return {
        "@type": "prov:SoftwareAgent",
        "@id": urn("model", teacher.model, teacher.revision or ""),
        "prov:label": teacher.model,
    }
