"""attest/*.intoto.jsonl: what was done and decided, as in-toto statements in signed DSSE envelopes.

Two statements about the student's files: how it was trained (SLSA provenance v1), and what it was taught by,
with what the gate said of each teacher (a predicate of our own, for which there is none).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillhouse.errors import LedgerError
from stillhouse.ledger import canonical
from stillhouse.ledger.keys import pre_authentication, public_bytes, signed_by
from stillhouse.release.facts import MARGIN, Facts, Teacher, compute, missing, stamp, urn
from stillhouse.release.rows import Rows

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
DISTILLATION = urn("distillation-provenance", "v1")
PAYLOAD = "application/vnd.in-toto+json"


def statements(facts: Facts, rows: Rows) -> dict[str, dict[str, Any]]:
    """The statements by the name of their file."""
    return {
        "training": _statement(facts, PROVENANCE, _provenance(facts, rows)),
        "distillation": _statement(facts, DISTILLATION, _distillation(facts, rows)),
    }


def signed(statement: Mapping[str, Any], key: Ed25519PrivateKey) -> bytes:
    """A DSSE envelope on one line. Equal statements and keys give equal bytes."""
    payload = canonical(statement)
    message = pre_authentication(PAYLOAD, payload)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD,
        "signatures": [
            {"keyid": key_id(public_bytes(key)), "sig": base64.b64encode(key.sign(message)).decode()}
        ],
    }
    return canonical(envelope) + b"\n"


def opened(line: bytes, public: bytes) -> dict[str, Any]:
    """The statement of an envelope that `public` (32 bytes) signed. Raises LedgerError when it did not."""
    try:
        envelope = json.loads(line)
        payload = base64.b64decode(envelope["payload"], validate=True)
        given = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        good = envelope["payloadType"] == PAYLOAD
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise _unsigned("it is not a DSSE envelope") from None
    if not good or not any(signed_by(public, each, pre_authentication(PAYLOAD, payload)) for each in given):
        raise _unsigned(f"the key {public.hex()[:8]}... did not sign it, or it was changed after signing")
    statement = json.loads(payload)
    return statement if isinstance(statement, dict) else {}


def key_id(public: bytes) -> str:
    """SHA-256 (hex) over the 32 bytes of the public key."""
    return sha256(public).hexdigest()


def _unsigned(why: str) -> LedgerError:
    return LedgerError("an attestation does not hold", why, "take the release from its operator again")


def _statement(facts: Facts, kind: str, predicate: dict[str, Any]) -> dict[str, Any]:
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(facts.files.items())
        ],
        "predicateType": kind,
        "predicate": predicate,
    }


def _provenance(facts: Facts, rows: Rows) -> dict[str, Any]:
    student, training = facts.student, facts.training
    base = [{"name": student.base or "", "uri": urn("model", student.base or "")}] if student.base else []
    if base and student.base_sha256:
        base[0] |= {"digest": {"stillhouseWeights": student.base_sha256}}  # type: ignore[dict-item]
    ended = {"finishedOn": stamp(datetime.fromisoformat(training.finished))} if training.finished else {}
    return {
        "buildDefinition": {
            "buildType": urn("train", "v1"),
            "externalParameters": {
                "objective": training.objective,
                "prompts": facts.samples.prompts,
                "seed": training.seed,
                "settings": dict(training.settings),
            },
            "internalParameters": {"device": training.device, "dtype": training.dtype},
            "resolvedDependencies": [
                *base,
                {"name": "provenance/rows.parquet", "digest": {"sha256": rows.sha256}},
                *({"name": t.model, "uri": urn("model", t.model, t.revision or "")} for t in facts.teachers),
            ],
        },
        "runDetails": {
            "builder": {"id": urn("stillhouse"), "version": dict(facts.software)},
            "metadata": {"invocationId": urn("run", facts.run), **ended},
        },
    }


def _distillation(facts: Facts, rows: Rows) -> dict[str, Any]:
    counted = compute(facts)
    return {
        "run": facts.run,
        "ledger": {"origin": facts.origin, "size": facts.size, "root": facts.root}
        | {"anchored": facts.anchored},
        "student": {"base": facts.student.base, "baseDigest": facts.student.base_sha256}
        | {"digest": facts.student.sha256, "parameters": facts.student.parameters},
        "base": None if facts.begun is None else dict(facts.begun),
        "teachers": teachers(facts),
        "rows": {"count": rows.count, "sha256": rows.sha256, "answers": facts.samples.answers}
        | {"dropped": dict(facts.samples.dropped), "unscored": dict(facts.samples.unscored)},
        # Operations go beyond what every reader of JSON takes for a whole number.
        "operations": {"total": str(counted.total), "least": bool(counted.unknown), "margin": str(MARGIN)},
        "missing": list(missing(facts)),
    }


def teachers(facts: Facts) -> list[dict[str, Any]]:
    """provenance/teachers.json: who taught, on what terms, and how much."""
    return [_teacher(facts, teacher) for teacher in facts.teachers]


def _teacher(facts: Facts, teacher: Teacher) -> dict[str, Any]:
    return {
        "model": teacher.model,
        "revision": teacher.revision,
        "access": teacher.access,
        "host": teacher.host,
        "answeredBy": list(teacher.answered_by),
        "lineage": teacher.lineage,
        "upstream": None if teacher.upstream is None else dict(teacher.upstream),
        "known": None if teacher.known is None else dict(teacher.known),
        "rows": teacher.rows,
        "shareOfRows": str(round(teacher.rows / facts.samples.kept, 4)) if facts.samples.kept else None,
        "answers": teacher.exchanges,
        "answersWithoutCounts": teacher.uncounted,
        "tokensRead": teacher.prompt_tokens,
        "tokensWritten": teacher.completion_tokens,
        "firstAnswer": teacher.times[0] if teacher.times else None,
        "lastAnswer": teacher.times[1] if teacher.times else None,
        "decisions": [
            {
                "leaf": decision.leaf,
                "verdict": decision.verdict,
                "reasons": list(decision.reasons),
                "terms": decision.terms,
                "termsSha256": list(decision.terms_sha256),
                "readOn": decision.read_on,
                "basis": decision.basis,
                "policy": decision.policy,
                "registrySha256": decision.registry_sha256,
                "authorisation": decision.authorisation,
            }
            for decision in teacher.decisions
        ],
        "obligations": [
            {
                "row": row,
                "kind": owed.kind,
                "texts": list(owed.texts),
                "modes": list(owed.modes),
                "redistributes": owed.redistributes,
                "where": owed.where,
            }
            for row, owed in teacher.obligations
        ],
    }
