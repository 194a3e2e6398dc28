"""What a test for marks says, as rows for whoever reads it, with what they do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.watermark.detect import Evidence, among_keys, evidence
from stillhouse.watermark.hashing import Ids
from stillhouse.watermark.keys import Key, decoy_keys
from stillhouse.watermark.schemes import described

DECOYS = 19
SAID = 1e-3  # at or below it the summary calls a text marked
NO_EVIDENCE = "no evidence of a mark; that is no evidence that there was none"
LIMITS = (
    "p is how often a key drawn at random would score these texts as high, if they were written without it; "
    "`adjusted_p` bears that so many keys were tried.",
    "It is not the chance that the texts are unmarked. A short, edited, translated or predictable text keeps "
    "little of its mark, so a large p says nothing.",
    "It does not say who published the texts: a marked answer may be quoted by anybody, and whoever has the "
    "key can forge its mark.",
    "The chance lies in the key: texts that share a template are right or wrong together. Compare the "
    "decoys, which marked nothing.",
)

Found = tuple[Key, Evidence, float]  # a key, what it says, and its p-value as one of several


def tried(keys: Sequence[Key], ids: Mapping[str, Sequence[Ids]]) -> tuple[list[Found], list[Evidence]]:
    """What each key says, the strongest first, and what decoys of that one say. `ids` has the texts by the
    name of a scheme. Raises ValueError without keys."""
    if not keys:
        raise ValueError("there is no key to try")
    found = among_keys(keys, [ids[key.scheme.name] for key in keys])
    best = found[0][0]
    of_best = ids[best.scheme.name]
    return found, [evidence(one.scheme, one.sip, of_best) for one in decoy_keys(best, DECOYS)]


def rows(found: Sequence[Found], decoys: Sequence[Evidence]) -> dict[str, Any]:
    return {
        "keys": [{**key_row(key), **evidence_row(said), "adjusted_p": p} for key, said, p in found],
        "decoys": {"count": len(decoys), "smallest_p": min(one.p for one in decoys)},
    }


def verdict(found: Sequence[Found]) -> str:
    key, _, p = found[0]
    if p > SAID:
        return NO_EVIDENCE
    rarely = "" if p < 1e-12 else f": without it a text scores so high for one key in {1 / p:,.0f}"
    return f"marked with {key.id}{rarely}"


def key_row(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "scheme": described(key.scheme),
        "created": key.created.isoformat(timespec="seconds"),
        "account": key.account,
    }


def evidence_row(said: Evidence) -> dict[str, Any]:
    return {
        "tokens": said.tokens,
        "scored": said.scored,
        "mean": said.mean,
        "expected": said.expected,
        "p": said.p,
        "ln_p": said.log_p,
    }
