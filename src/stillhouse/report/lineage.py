"""The page beside an evidence file: what was asked, of what, how, what came out and what it does not show."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.report.layout import cell, document, pairs, section, table
from stillhouse.report.markup import Html, tag

UNKNOWN = "not tested"


def page(evidence: Mapping[str, Any], sealed: bytes) -> str:
    """The whole page of an evidence file's `evidence`; `sealed` are the bytes of that file. The same gives
    the same bytes."""
    found = evidence["finding"]
    body = tag(
        "body",
        tag(
            "main",
            tag("h1", f"Lineage: {found['verdict']}"),
            tag("p", found["question"], class_="lead"),
            tag("p", f"{found['verdict']}: {found['why']}"),
            _tests(found),
            _materials(evidence),
            _limits(found),
            _repeat(evidence, sealed),
            id="main",
        ),
    )
    return document(f"{found['verdict']}: {found['question']}", body)


def _tests(found: Mapping[str, Any]) -> Html:
    facts = found["facts"]
    rows = [
        (
            test["name"],
            _number(test["p"]),
            _parts(test["parts"]),
            _number(test["adjusted"]),
            _effect(test["effect"]),
            test["unit"] or test["note"],
            test["n"],
            test["control"] or "-",
        )
        for test in found["tests"]
    ]
    return section(
        "tests",
        "Tests",
        found["correction"],
        table(
            "Each test with its p-value, what it is the larger of, and the effect (95 % interval)",
            ("test", "p", "of", "adjusted", "effect", "in", "n", "best control"),
            rows,
            words=(0, 2, 5, 7),
        ),
        pairs([(name.replace("_", " "), _plain(value)) for name, value in facts.items() if not _rows(value)]),
        [_listed(name, value) for name, value in facts.items() if _rows(value)],
    )


def _materials(evidence: Mapping[str, Any]) -> Html:
    rows = [(each["role"], each["name"], tag("code", each["sha256"])) for each in evidence["materials"]]
    lead = "Whoever has files of these hashes can make the same test."
    return section(
        "materials",
        "Materials",
        lead,
        table("What was tested", ("role", "name", "SHA-256"), rows, words=(0, 1, 2)),
    )


def _limits(found: Mapping[str, Any]) -> Html:
    lead = "A verdict is `supported` or `not decided`. No test here can find that somebody is innocent."
    return section(
        "limits", "What this does not show", lead, tag("ul", [tag("li", each) for each in found["limits"]])
    )


def _repeat(evidence: Mapping[str, Any], sealed: bytes) -> Html:
    software = ", ".join(f"{name} {number}" for name, number in evidence["software"].items())
    settings = {name: value for name, value in evidence["settings"].items() if value is not None}
    entries: list[tuple[str, object]] = [
        ("command", tag("code", evidence["repeat"])),
        ("made", evidence["made"]),
        ("software", software),
        ("settings", _plain(settings)),
        ("SHA-256 of the evidence file", tag("code", hashlib.sha256(sealed).hexdigest())),
    ]
    lead = "The evidence file beside this page is signed; this page is not, and repeats what stands in it."
    return section("repeat", "How to repeat it", lead, pairs(entries))


def _rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _listed(name: str, rows: Sequence[Mapping[str, Any]]) -> Html:
    head = list(rows[0])
    texts = [n for n, column in enumerate(head) if any(isinstance(row[column], str) for row in rows)]
    return table(
        name,
        [each.replace("_", " ") for each in head],
        [[_plain(row[c]) for c in head] for row in rows],
        words=texts,
    )


def _effect(effect: Mapping[str, float | None]) -> Html | str:
    value, low, high = (effect[name] for name in ("value", "low", "high"))
    if low is None or high is None:
        return _number(value)
    return cell(f"{_number(value)} ({_number(low)} to {_number(high)})", "n")


def _parts(parts: Mapping[str, float | None] | None) -> str:
    return "-" if not parts else ", ".join(f"{name} {_number(value)}" for name, value in parts.items())


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def _plain(value: Any) -> str:
    """Facts as words: small things in a line, nested ones in brackets."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(each)}" for name, each in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(_plain(each) for each in value) or "none"
    return UNKNOWN if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
