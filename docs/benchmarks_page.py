"""Writes docs/benchmarks.md from the files in benchmarks/results; `--check` only compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drawing import keep

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
ORDER = (
    "quickstart quickstart_seeds ways queries copied_word collect ledger chaos drift curating dedup leaks"
    " refusals clinc150 intervals targets train_step hinton_mnist alm characters extraction gateway"
    " gateway_memory gateway_replicas prices_study detection ladder clusters arena cascade cascade_load"
    " lineage watermark selection radioactivity"
).split()

INTRO = """\
# Benchmarks

Every figure here was printed by a script in `benchmarks/`: `.venv/bin/python benchmarks/NAME.py --json FILE`.
This page was made from these files, which lie in `benchmarks/results/`. Machines are noisy: compare ratios.
A missed target stands as it is.
"""


def page() -> str:
    """Raises ValueError for results that have no place in the order, and for a place without results."""
    if odd := {file.stem for file in RESULTS.glob("*.json")} ^ set(ORDER):
        raise ValueError(f"give {', '.join(sorted(odd))} a place in docs/benchmarks_page.py, or none")
    parts = [section(name, json.loads((RESULTS / f"{name}.json").read_text())) for name in ORDER]
    return "\n".join([INTRO, *parts])


def number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def section(name: str, run: dict[str, Any]) -> str:
    head = run["header"]
    versions = ", ".join(f"{package} {version}" for package, version in head["versions"].items())
    lines = [
        f"## {name}",
        "",
        f"{head['machine']}; Python {head['python']}; {versions}; seed {head['seed']}.",
        "",
    ]
    lines += ["| what | value | beside | target |", "|---|---|---|---|"]
    for row in run["rows"]:
        interval = "" if row["low"] is None else f" ({number(row['low'])} to {number(row['high'])})"
        beside = "" if row["peer"] is None else f"{row['peer']}: {number(row['peer_value'])}"
        beside += "" if row["ratio"] is None else f" (x {row['ratio']:.3g})"
        target = (
            "" if row["target"] is None else f"{row['target']}: {'holds' if row['holds'] else '**missed**'}"
        )
        value = f"{number(row['value'])} {row['unit']}{interval}"
        lines.append(f"| {row['what'].strip()} | {value} | {beside} | {target} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    keep(DOCS / "benchmarks.md", page())
