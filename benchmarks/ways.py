"""Ways to learn from one teacher, from the same answers and in the same number of steps.

    .venv/bin/python benchmarks/ways.py [--quick] [--json FILE]

The quickstart's recipe with each objective, in one workspace: the answers are bought once. Each way is
trained with three seeds; values are means over them, with the interval of Student's t, which knows the
seeds alone and not the prompts. The peer of each way is learning the text. --quick takes 300 answers, two
epochs and one seed: it shows that the path works, not what it reaches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rows import Row, arguments, header, show
from scipy import stats

RECIPE = Path(__file__).parents[1] / "examples" / "quickstart" / "recipe.toml"
SEEDS = (17, 18, 19)
WAYS: dict[str, dict[str, Any]] = {
    "text": {"objective": "sequence"},
    "stored probabilities": {"objective": "distil"},
    "whole probabilities": {"objective": "distil", "distil": {"online": True}},
    "on-policy": {"objective": "on_policy", "distil": {"online": True}, "on_policy": {"after": 4.0}},
}
QUICK = {"prompts": {"count": 300}, "train": {"epochs": 2}, "evaluate": {"count": 100}}
QUICK_AFTER = 1.0  # epochs before the student writes, of the quick run's two


def recipe_of(way: str, seed: int, quick: bool) -> dict[str, Any]:
    tree = tomllib.loads(RECIPE.read_text())
    for table, changes in QUICK.items() if quick else ():
        tree[table] |= changes
    tree["run"] = {"name": way.replace(" ", "-"), "seed": seed}
    tree["train"] |= WAYS[way]
    if quick and way == "on-policy":
        tree["train"]["on_policy"] = {"after": QUICK_AFTER}
    return tree


def run(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """What the evaluation of one run found; its training is in `train`."""
    path = folder / f"{tree['run']['name']}-{tree['run']['seed']}.json"
    path.write_text(json.dumps(tree))
    command = [sys.executable, "-m", "stillhouse.cli", "run", path.name, "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    marker = json.loads(Path(found["folder"], "train.done.json").read_text())
    return {**found["evaluation"], "train": marker["result"]}


def over_seeds(what: str, values: Sequence[float | None], unit: str) -> Row:
    """The mean and its interval; unknown where one of the values is."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Row(what, None, unit)
    if len(known) < 2:
        return Row(what, known[0], unit)
    half = stdev(known) / len(known) ** 0.5 * float(stats.t.ppf(0.975, len(known) - 1))
    return Row(what, mean(known), unit, mean(known) - half, mean(known) + half)


FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], float | None]]] = {
    "share of the teacher's score kept": ("", lambda found: found["retention"]["value"]),
    "forward KL on its answers": ("nats/token", lambda found: found["fidelity"]["divergence"]["value"]),
    "calibration error": ("", lambda found: found["fidelity"]["calibration"]["student"]["ece"]),
    "steps": ("", lambda found: found["train"]["steps"]),
    "training": ("s", lambda found: found["train"]["seconds"]),
}


def figures(found: dict[str, list[dict[str, Any]]]) -> Iterator[Row]:
    """One row for each figure and way, beside that of the text."""
    for what, (unit, figure) in FIGURES.items():
        text = None
        for way, runs in found.items():
            row = over_seeds(f"{what}, {way}", [figure(each) for each in runs], unit)
            if text and row.value is not None:
                row = replace(row, peer="text", peer_value=text, ratio=row.value / text)
            text = text or row.value
            yield row


def main() -> None:
    options = arguments(__doc__ or "")
    seeds = SEEDS[:1] if options.quick else SEEDS
    with tempfile.TemporaryDirectory() as name:
        found = {
            way: [run(Path(name), recipe_of(way, seed, options.quick)) for seed in seeds] for way in WAYS
        }
    sent = sum(each["exchanges"]["sent"] for runs in found.values() for each in runs)
    rows = [*figures(found), Row("exchanges sent, all runs together", sent, "")]
    show(header(seeds[0], ["stillhouse", "torch", "transformers"]), rows, options.json)


if __name__ == "__main__":
    main()
