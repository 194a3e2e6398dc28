"""Writes docs/benchmarks.md from the files in benchmarks/results; `--check` only compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drawing import keep

DOCS = Path(__file__).parent
FILE, RESULTS = DOCS / "benchmarks.md", DOCS.parent / "benchmarks" / "results"
ORDER = (
    "quickstart ways copied_word collect ledger chaos drift curating dedup leaks refusals clinc150 intervals"
    " targets hinton_mnist alm characters extraction gateway gateway_memory gateway_replicas prices_study"
    " detection ladder clusters arena cascade cascade_load lineage watermark selection radioactivity"
).split()
OPENING = """\
# Benchmarks

Every figure here was printed by a script in `benchmarks/`: `.venv/bin/python benchmarks/NAME.py --json FILE`.
This page was made from these files, which lie in `benchmarks/results/`. Machines are noisy: compare ratios.
A missed target stands as it is.
"""


def page() -> str:
    """Raises ValueError for results that have no place in the order, and for a place without results."""
    found = {file.stem for file in RESULTS.glob("*.json")}
    if odd := found ^ set(ORDER):
        raise ValueError(f"give {', '.join(sorted(odd))} a place in docs/figures.py, or none")
    return "\n".join([OPENING, *(section(name) for name in ORDER)])


def section(name: str) -> str:
    told = json.loads((RESULTS / f"{name}.json").read_text())
    head = told["header"]
    versions = ", ".join(f"{package} {number}" for package, number in head["versions"].items())
    lines = [
        f"## {name}",
        "",
        f"{head['machine']}; Python {head['python']}; {versions}; seed {head['seed']}.",
        "",
        "| what | value | beside | target |",
        "|---|---|---|---|",
        *(table_row(row) for row in told["rows"]),
        "",
    ]
    return "\n".join(lines)


def table_row(row: dict[str, Any]) -> str:
    value = f"{number(row['value'])} {row['unit']}"
    if row["low"] is not None and row["high"] is not None:
        value += f" ({number(row['low'])} to {number(row['high'])})"
    beside = "" if row["peer"] is None else f"{row['peer']}: {number(row['peer_value'])}"
    beside += "" if row["ratio"] is None else f" (x {row['ratio']:.3g})"
    target = "" if row["target"] is None else f"{row['target']}: {'holds' if row['holds'] else '**missed**'}"
    return f"| {row['what'].strip()} | {value} | {beside} | {target} |"


def number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


if __name__ == "__main__":
    keep(FILE, page())
