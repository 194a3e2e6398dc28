"""Ways to learn from one teacher, from the same answers and in the same number of steps.

    .venv/bin/python benchmarks/ways.py [--quick] [--folder FOLDER] [--json FILE]

The quickstart's recipe with each objective, in one workspace: the answers are bought once. Intervals are
over the test prompts; each way is trained once, so that how far another seed would have come is not in them.
The peer of each way is learning the text. What is in --folder is not done again. --quick takes 300 answers
and two epochs: it shows that the path works, not what it reaches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rows import Row, arguments, header, show, working_folder

RECIPE = Path(__file__).parents[1] / "examples" / "quickstart" / "recipe.toml"
WAYS: dict[str, dict[str, Any]] = {
    "text": {"objective": "sequence"},
    "stored probabilities": {"objective": "distil"},
    "whole probabilities": {"objective": "distil", "distil": {"online": True}},
    "on-policy": {"objective": "on_policy", "distil": {"online": True}, "on_policy": {"after": 4.0}},
}
QUICK = {"prompts": {"count": 300}, "train": {"epochs": 2}, "evaluate": {"count": 100}}
QUICK_AFTER = 1.0  # epochs before the student writes, of the quick run's two


def recipe_of(way: str, quick: bool) -> dict[str, Any]:
    tree = tomllib.loads(RECIPE.read_text())
    for table, changes in QUICK.items() if quick else ():
        tree[table] |= changes
    tree["run"]["name"] = way.replace(" ", "-")
    tree["train"] |= WAYS[way]
    if quick and way == "on-policy":
        tree["train"]["on_policy"] = {"after": QUICK_AFTER}
    return tree


def run(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """What the evaluation of one run found; its training is in `train`."""
    path = folder / f"{tree['run']['name']}.json"
    path.write_text(json.dumps(tree))
    command = [sys.executable, "-m", "stillhouse.cli", "run", path.name, "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    marker = json.loads(Path(found["folder"], "train.done.json").read_text())
    return {**found["evaluation"], "train": marker["result"]}


Figure = dict[str, Any]

FIGURES: dict[str, tuple[str, Callable[[Figure], Figure]]] = {
    "share of the teacher's score kept": ("", lambda found: found["retention"]),
    "forward KL on its answers": ("nats/token", lambda found: found["fidelity"]["divergence"]),
    "calibration error": ("", lambda found: {"value": found["fidelity"]["calibration"]["student"]["ece"]}),
    "steps": ("", lambda found: {"value": found["train"]["steps"]}),
}


def figures(found: dict[str, Figure]) -> Iterator[Row]:
    """One row for each figure and way, beside that of the text."""
    for what, (unit, figure) in FIGURES.items():
        text = figure(found["text"])["value"]
        for way, evaluation in found.items():
            of = figure(evaluation)
            row = Row(f"{what}, {way}", of["value"], unit, of.get("low"), of.get("high"))
            if way != "text" and text and row.value is not None:
                row = replace(row, peer="text", peer_value=text, ratio=row.value / text)
            yield row


def main() -> None:
    options = arguments(__doc__ or "", resumable=True)
    with working_folder(options.folder) as folder:
        found = {way: run(folder, recipe_of(way, options.quick)) for way in WAYS}
    show(header(17, ["stillhouse", "torch", "transformers"]), list(figures(found)), options.json)


if __name__ == "__main__":
    main()
