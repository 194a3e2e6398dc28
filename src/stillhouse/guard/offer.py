"""What the provider says of its terms to machines, served at `terms.offered.WELL_KNOWN`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.guard.config import Record, Terms
from stillhouse.terms.offered import SCHEMA, WORDS


def document(
    terms: Terms, record: Record, sha256: str, base_url: str, marks: Mapping[str, str]
) -> dict[str, Any]:
    """The document, as JSON; docs/guard-terms.md says what each field is for. `sha256` (hex) is that of the
    text of the terms, which is served at `base_url` + /terms; `marks` says whose answers are marked."""
    text = f"{base_url.rstrip('/')}/terms"
    # What may train no model may train no competing one
    competing = min(terms.training, terms.competing, key=WORDS.index)
    free = competing == "allowed"
    return {
        "schema": SCHEMA,
        "contact": terms.contact,
        "terms": {"version": terms.version, "url": text, "sha256": sha256},
        "answers": {"train_other_models": terms.training, "train_competing_models": competing},
        "acceptance_required": terms.must_accept,
        "marks": dict(marks),
        "requests": {"train_own_models": record.deferred},
        "aipref": {"train-ai": "y" if free else "n"},
        "tdmrep": {"tdm-reservation": 0 if free else 1, "tdm-policy": text},
    }
