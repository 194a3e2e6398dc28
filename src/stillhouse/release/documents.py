"""All documents of a release at once: each a file's place in the bundle, and its bytes."""

from __future__ import annotations

import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillhouse.release import eu
from stillhouse.release.attestations import signed, statements, teachers
from stillhouse.release.bom import cyclonedx
from stillhouse.release.card import model_card
from stillhouse.release.croissant import croissant
from stillhouse.release.facts import Facts
from stillhouse.release.rows import Rows
from stillhouse.release.spdx import spdx
from stillhouse.terms.lineage import BEGUN

ROWS = "provenance/rows.parquet"


def documents(facts: Facts, rows: Rows, key: Ed25519PrivateKey) -> dict[str, bytes]:
    """Equal facts, rows and keys give equal bytes. `rows` is of the file that `write_rows` put at `ROWS`."""
    summary, form = eu.training_content_summary(facts), eu.model_documentation_form(facts)
    found = {
        "README.md": model_card(facts).encode(),
        "provenance/teachers.json": as_json(teachers(facts)),
        "dataset/croissant.json": as_json(croissant(facts, rows)),
        "eu/training-content-summary.json": as_json(summary),
        "eu/training-content-summary.md": eu.markdown(summary).encode(),
        "eu/model-documentation-form.json": as_json(form),
        "eu/model-documentation-form.md": eu.markdown(form).encode(),
        "eu/scope.json": as_json(eu.scope(facts)),
        "bom/model.cdx.json": as_json(cyclonedx(facts, rows)),
        "bom/model.spdx3.json": as_json(spdx(facts, rows)),
    }
    if facts.begun is not None:
        found[BEGUN] = as_json(facts.begun)
    for name, statement in statements(facts, rows).items():
        found[f"attest/{name}.intoto.jsonl"] = signed(statement, key)
    return found


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
