"""dataset/croissant.json, loaded by mlcroissant, and its PROV-O read as a graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlcroissant
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdflib import Graph, Namespace, URIRef
from releasing import FACTS, ROWS, TEACHER, nothing_recorded, taught_by

from stillhouse.ledger.manifest import sha256_of
from stillhouse.release.croissant import croissant
from stillhouse.release.documents import as_json
from stillhouse.release.facts import urn
from stillhouse.release.rows import SCHEMA, Rows

PROV = Namespace("http://www.w3.org/ns/prov#")
ODD = 'a "quoted" `name` | with \\ and\ttabs, ünïcode 蒸留 and ' + "length " * 200


@pytest.mark.parametrize(
    "facts",
    [FACTS, nothing_recorded(), taught_by(replace(TEACHER, model=ODD), name=ODD, run=ODD)],
    ids=["all", "nothing", "odd"],
)
def test_mlcroissant_loads_the_rows_by_their_description(facts, tmp_path: Path):
    records = [
        {"row": 0, "leaf": 9, "exchanges": [4], "decisions": [3], "teacher": "t"},
        {"row": 1, "leaf": 10, "exchanges": [5, 6], "decisions": [3, 3], "teacher": "ü"},
    ]
    (tmp_path / "provenance").mkdir()
    (tmp_path / "dataset").mkdir()
    file, described = tmp_path / "provenance/rows.parquet", tmp_path / "dataset/croissant.json"
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), file)
    described.write_bytes(as_json(croissant(facts, Rows(2, file.stat().st_size, sha256_of(file)))))
    dataset = mlcroissant.Dataset(jsonld=described)
    assert not dataset.metadata.ctx.issues.errors
    assert dataset.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
    read = [
        {key.removeprefix("rows/"): v.decode() if isinstance(v, bytes) else v for key, v in one.items()}
        for one in dataset.records("rows")
    ]
    assert [
        {k: list(v) if k in ("exchanges", "decisions") else v for k, v in one.items()} for one in read
    ] == (records)


def test_the_rows_are_derived_from_the_teachers_answers():
    described = croissant(FACTS, ROWS)
    graph = Graph().parse(data=json.dumps(described), format="json-ld")
    rows, teacher = URIRef(urn(FACTS.run, "rows")), URIRef(urn("model", TEACHER.model, TEACHER.revision))
    sources = set(graph.objects(rows, PROV.wasDerivedFrom))
    answers = URIRef(urn(FACTS.run, "answers", TEACHER.model, TEACHER.revision))
    assert sources == {answers, URIRef(urn("prompts", FACTS.samples.prompts))}
    assert list(graph.objects(answers, PROV.wasAttributedTo)) == [teacher]
    assert list(graph.objects(rows, PROV.wasAttributedTo)) == [teacher]
    assert list(graph.objects(rows, PROV.wasGeneratedBy)) == [URIRef(urn(FACTS.run, "collect"))]
