"""Every test that the threat model names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = sorted(
    set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "guard-threats.md").read_text()))
)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_shows_a_defence_exists(file, name):
    nodes = [node for path in (ROOT / "tests").rglob(file) for node in ast.walk(ast.parse(path.read_text()))]
    assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_line_of_the_threat_model_is_shown_or_says_that_it_cannot_be():
    lines = [
        line.strip("| ").split(" | ")
        for line in (ROOT / "docs" / "guard-threats.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| threat")
    ]
    assert len(lines) > 40
    assert all(len(line) == 3 and (line[2] == "-" or "::test_" in line[2]) for line in lines)
