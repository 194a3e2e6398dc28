"""Writes docs/benchmarks.md from the JSON files of benchmark runs: python docs/benchmarks_page.py FILE..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

INTRO = """\
# Benchmarks

Every figure here was printed by a script in `benchmarks/`: `.venv/bin/python benchmarks/NAME.py --json FILE`.
This page was made from these files, which lie in `benchmarks/results/`. Machines are noisy: compare ratios.
A missed target stands as it is.
"""


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
    parts = [section(Path(name).stem, json.loads(Path(name).read_text())) for name in sys.argv[1:]]
    (Path(__file__).parent / "benchmarks.md").write_text("\n".join([INTRO, *parts]))
