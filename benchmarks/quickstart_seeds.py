"""The quickstart with other seeds of prompts and of training: the share of the teacher's score each keeps.

    .venv/bin/python benchmarks/quickstart_seeds.py [--quick] [--folder FOLDER] [--json FILE]

One training says what one training reached. Here the recipe is run with five seeds, each of its prompts, of
the rows held out and of the order in which they are read; teacher and students then answer the prompts of
three fresh generator seeds (the run's own evaluation is cut to 200, as nothing here comes of it). A student
that has not learned to copy one of the slots shows in its training loss as well: the mean over the last epoch
stands beside each share. The full run takes half an hour on two quiet cores: what is in --folder is not done
again. --quick takes two seeds, 300 answers and one epoch: it shows that the path works, not what it reaches.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quickstart import RECIPE, run
from rows import Row, arguments, header, interval, show, working_folder

from stillhouse.evaluate.figures import summarise
from stillhouse.evaluate.predictions import Prediction, judged
from stillhouse.evaluate.students import local_answers
from stillhouse.models import source_folder
from stillhouse.models.embedded import world
from stillhouse.models.local import load_model
from stillhouse.records import Prompt
from stillhouse.scoring import scorers


@dataclass(frozen=True, slots=True)
class Scale:
    """`changes` are made to the recipe's tables; `tests` are generator seeds, each of `prompts` prompts."""

    seeds: Sequence[int]
    tests: Sequence[int]
    prompts: int
    changes: dict[str, dict[str, Any]]


FULL = Scale((17, 18, 19, 20, 21), (2001, 2002, 2003), 500, {"evaluate": {"count": 200}})
SMALL = Scale(
    (17, 18), (2001,), 60, {"prompts": {"count": 300}, "train": {"epochs": 1}, "evaluate": {"count": 60}}
)


def recipe_of(seed: int, scale: Scale) -> dict[str, Any]:
    tree = tomllib.loads(RECIPE.read_text())
    for table, changes in scale.changes.items():
        tree[table] |= changes
    tree["run"] |= {"name": f"seed-{seed}", "seed": seed}
    tree["prompts"]["seed"] = seed
    return tree


def trained(folder: Path, seed: int, scale: Scale) -> tuple[Path, float]:
    """The run's folder, and the wall time of this call in seconds."""
    recipe = folder / f"seed-{seed}.json"
    recipe.write_text(json.dumps(recipe_of(seed, scale)))
    found, seconds = run(folder, recipe)
    return Path(found["folder"]), seconds


def answered(system: str, folder: str, prompts: Sequence[Prompt]) -> list[Prediction]:
    return judged(
        system, prompts, local_answers(load_model(folder), prompts, 128, lambda more: None), scorers()
    )


def last_loss(losses: Path) -> float:
    """Mean loss of the steps after the last but one measurement of the held-out loss: the last epoch's."""
    lines = [json.loads(line) for line in losses.read_text().splitlines()]
    ends = [number for number, line in enumerate(lines, 1) if "held_out" in line]
    last = lines[ends[-2] if len(ends) > 1 else 0 :]
    return sum(float(line["loss"]) for line in last) / len(last)


def figures(kept: dict[int, dict[str, Any]], losses: dict[int, float], claimed: bool) -> list[Row]:
    """`kept` holds the share of the teacher's score by seed with its interval, `losses` the training's."""
    values = [float(each["value"]) for each in kept.values()]
    mean, worst = interval(f"share kept, mean of {len(values)} trainings", values, ""), min(values)
    low = mean.low if mean.low is not None else mean.value
    rows = [
        mean,
        Row("share kept, lower bound of that mean", low, ""),
        Row("share kept, the worst", worst, ""),
    ]
    if claimed and low is not None:
        rows[1] = replace(rows[1], target=">= 0.95", holds=low >= 0.95)
        rows[2] = replace(rows[2], target=">= 0.97", holds=worst >= 0.97)
    for seed, each in kept.items():
        rows.append(Row(f"share kept, seed {seed}", each["value"], "", each["low"], each["high"]))
        rows.append(Row(f"training loss of the last epoch, seed {seed}", losses[seed], "nats/token"))
    return rows


def main() -> None:
    options = arguments(__doc__ or "", resumable=True)
    scale = SMALL if options.quick else FULL
    prompts = [prompt for seed in scale.tests for prompt in world.prompts("test", scale.prompts, seed)]
    kept: dict[int, dict[str, Any]] = {}
    losses: dict[int, float] = {}
    with working_folder(options.folder) as folder:
        teacher = answered("teacher", source_folder("embedded:desk"), prompts)
        for seed in scale.seeds:
            at, seconds = trained(folder, seed, scale)
            student = answered("student", str(at / "student"), prompts)
            kept[seed] = summarise([*teacher, *student])["retention"]
            losses[seed] = last_loss(at / "losses.jsonl")
            print(f"seed {seed}: {kept[seed]['value']:.3f} in {seconds:.0f} s", file=sys.stderr)
    packages = ["stillhouse", "torch", "transformers"]
    show(header(scale.seeds[0], packages), figures(kept, losses, not options.quick), options.json)


if __name__ == "__main__":
    main()
