"""What a test of lineage found, and the signed file that lets another repeat it.

EVIDENCE is one JSON object: `evidence`, the maker's `public_key` and a `signature` (Ed25519, both base64)
over the canonical form of the first under DSSE's pre-authentication encoding. Figures in it are rounded to
six significant digits, so that the same materials give the same file wherever sums round otherwise.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillhouse.audit.lineage.materials import Material
from stillhouse.errors import LedgerError
from stillhouse.ledger import canonical
from stillhouse.ledger.keys import pre_authentication, public_bytes, signed_by
from stillhouse.stats import UNDEFINED, Interval

KIND = "application/vnd.stillhouse.lineage-evidence.v1+json"
SUPPORTED = "supported"
NOT_DECIDED = "not decided"
_DIGITS = 6
_NEAR = 1e-4  # relative; what another processor's rounding may move a figure by


@dataclass(frozen=True, slots=True)
class Test:
    """One test. `p` None where it could not be made (`note` says why) or where it is a figure beside others
    and no test; `adjusted` is `p` under the finding's correction. `control` explains best without the
    teacher, `n` is how many units (groups of prompts, rows, weights' units) it rests on."""

    name: str
    p: float | None
    adjusted: float | None
    effect: Interval
    unit: str
    n: int
    control: str = ""
    parts: Mapping[str, float | None] | None = None  # p-values that `p` is the largest of
    note: str = ""

    __test__ = False  # the name is no test of pytest's


@dataclass(frozen=True, slots=True)
class Finding:
    """A question and its answer: SUPPORTED or NOT_DECIDED, never that somebody is innocent."""

    kind: str  # answers, weights, membership or marks
    question: str
    verdict: str
    why: str
    tests: tuple[Test, ...]
    correction: str
    controls: tuple[str, ...]
    facts: Mapping[str, Any]
    limits: tuple[str, ...]


def body(
    finding: Finding,
    materials: Sequence[Material],
    settings: Mapping[str, Any],
    software: Mapping[str, str],
    made: str,
) -> dict[str, Any]:
    """What is signed. `made` is a time in UTC."""
    return {
        "kind": finding.kind,
        "made": made,
        "materials": [
            {"role": each.role, "name": each.name, "path": str(each.path), "sha256": each.sha256}
            for each in materials
        ],
        "settings": dict(settings),
        "software": dict(software),
        "finding": figures(finding),
        "repeat": "stillhouse audit lineage --repeat EVIDENCE",
    }


def figures(finding: Finding) -> dict[str, Any]:
    """The finding as plain JSON with rounded figures."""
    rounded = _rounded(asdict(finding))
    assert isinstance(rounded, dict)
    return rounded


def seal(evidence: Mapping[str, Any], key: Ed25519PrivateKey) -> bytes:
    """The evidence file. Equal evidence and keys give equal bytes."""
    signature = key.sign(pre_authentication(KIND, canonical(evidence)))
    whole = {
        "type": KIND,
        "evidence": evidence,
        "public_key": base64.b64encode(public_bytes(key)).decode(),
        "signature": base64.b64encode(signature).decode(),
    }
    return orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n"


def unseal(data: bytes, pinned: bytes | None = None) -> tuple[dict[str, Any], bytes]:
    """The evidence and the public key (32 bytes) that signed it; that is `pinned`, where one is given.

    Raises LedgerError for a file that is none, was changed after signing or was signed by another.
    """
    try:
        whole = json.loads(data)
        evidence, kind = whole["evidence"], whole["type"]
        public = base64.b64decode(whole["public_key"], validate=True)
        signature = base64.b64decode(whole["signature"], validate=True)
        message = pre_authentication(KIND, canonical(evidence))
        good = kind == KIND and isinstance(evidence, dict) and signed_by(public, signature, message)
    except (ValueError, KeyError, TypeError, binascii.Error, LedgerError):
        raise _unsigned("it is not an evidence file of this form") from None
    if not good:
        raise _unsigned("it was changed after signing, or its key did not sign it")
    if pinned is not None and public != pinned:
        raise _unsigned(f"it was signed by the key {public.hex()[:8]}..., not by the one given")
    return evidence, public


def differences(recorded: Any, again: Any, where: str = "finding") -> list[str]:
    """Where two findings (as `figures` gives them) differ; figures within 1e-4 of each other do not."""
    if isinstance(recorded, dict) and isinstance(again, dict):
        names = [*recorded, *(name for name in again if name not in recorded)]
        return [
            line
            for name in names
            for line in differences(recorded.get(name), again.get(name), f"{where}.{name}")
        ]
    if isinstance(recorded, list) and isinstance(again, list) and len(recorded) == len(again):
        return [
            line
            for number, pair in enumerate(zip(recorded, again, strict=True))
            for line in differences(*pair, f"{where}[{number}]")
        ]
    if _number(recorded) and _number(again) and math.isclose(recorded, again, rel_tol=_NEAR, abs_tol=1e-9):
        return []
    return [] if recorded == again else [f"{where}: {recorded!r} is recorded, {again!r} comes out"]


def untested(name: str, why: str) -> Test:
    return Test(name, None, None, UNDEFINED, "", 0, note=why)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS - 1}e}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unsigned(why: str) -> LedgerError:
    return LedgerError("the evidence does not hold", why, "take the file from whoever made it again")
