"""Exchanges needed to keep 90, 95 and 97 % of the teacher's score, by what is asked and how it is learned.

    .venv/bin/python benchmarks/queries.py [--quick] [--folder FOLDER] [--json FILE]

The quickstart's teacher, student and settings. Every student reads some 48,000 rows whatever it was given, so
fewer answers are read more often; each budget is a training of its own, from the same start, with three seeds
of training and of prompts. Scores are of 1,000 test prompts; what focused rounds collect is decided on the
development prompts. Between two budgets the number needed is found on a straight line over its logarithm.
A method that does not get there within 8 times the smallest budget is shown with that bound; the smallest is
tried only where the next one kept 90 %, and as the first of focused rounds. The full run takes
some hours on two cores: what is in --folder is not done again, and each method has a workspace of its own
there. --quick takes one seed and two small budgets: it shows that the path works, not what it reaches.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from rows import Row, arguments, header, interval, show, working_folder

from stillhouse.evaluate.students import local_answers
from stillhouse.models import source_folder
from stillhouse.models.embedded import world
from stillhouse.models.local import load_model
from stillhouse.scoring import score, scorers

RECIPE = Path(__file__).parents[1] / "examples" / "quickstart" / "recipe.toml"
DRAWS = 4
LEVELS = (0.90, 0.95, 0.97)


@dataclass(frozen=True, slots=True)
class Scale:
    """`budgets` are numbers of exchanges, each twice the one before; `rows_read` is what a student reads."""

    seeds: Sequence[int]
    budgets: Sequence[int]
    rows_read: int
    dev: int
    test: int


FULL = Scale((17, 18, 19), (750, 1500, 3000, 6000), 48_000, 500, 1000)
SMALL = Scale((17,), (150, 300), 600, 60, 60)

METHODS: dict[str, dict[str, Any]] = {
    "text": {},
    "text and 20 probabilities a token": {
        "collect": {"top_logprobs": 20},
        "train": {"objective": "distil", "distil": {"targets": "answers"}},
    },
    "whole distributions": {"train": {"objective": "distil", "distil": {"keep": "vectors"}}},
    f"text, {DRAWS} draws a prompt": {
        "collect": {"samples": DRAWS, "temperature": 1.0},
        "curate": {"duplicates": False, "near_duplicates": 0.0},  # equal draws are what probability is
    },
    "text, focused rounds": {},
}
FOCUSED = "text, focused rounds"


def named(method: str) -> str:
    """As folders and runs are named."""
    return "".join(letter if letter.isalnum() else "-" for letter in method)


def recipe_of(method: str, budget: int, seed: int, scale: Scale) -> dict[str, Any]:
    """The recipe of one training; that of focused rounds is the one that every round begins with."""
    tree = tomllib.loads(RECIPE.read_text())
    changes = METHODS[method]
    first = scale.budgets[0] if method == FOCUSED else budget
    tree["run"] = {"name": f"{named(method)}-{budget}", "seed": seed}
    tree["prompts"] |= {"count": first // changes.get("collect", {}).get("samples", 1), "seed": seed}
    tree["collect"] |= changes.get("collect", {})
    if "curate" in changes:
        tree["curate"] = changes["curate"]
    tree["train"] |= changes.get("train", {}) | {"epochs": scale.rows_read / budget, "held_out": 0.0}
    tree["evaluate"] = {"count": scale.dev, "split": "dev", "baseline": False}
    return tree


def stillhouse(folder: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "stillhouse.cli", *words, "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def student_of(folder: Path, method: str, budget: int, seed: int, scale: Scale, before: str | None) -> Path:
    """The folder of the run that trained this student; `before` is the run of the round before."""
    tree = recipe_of(method, budget, seed, scale)
    path = folder / f"{tree['run']['name']}-{seed}.json"
    path.write_text(json.dumps(tree))
    if before is not None:
        focused = stillhouse(folder, "collect", path.name, "--focus", before, "--count", str(budget // 2))
        path = Path(focused["folder"], "recipe.json")
    return Path(stillhouse(folder, "run", str(path))["folder"])


def score_of(model: Path, count: int) -> float:
    """The model's mean score over the first `count` test prompts; kept beside it."""
    known = model.parent / f"test-{count}.json"
    if not known.is_file():
        prompts = world.prompts("test", count, 1001)
        given = local_answers(load_model(str(model)), prompts, 128, lambda more: None)
        names = scorers()
        values = [
            score(prompt.scorer, answer.text or "", prompt.reference, names).value or 0.0
            for prompt, answer in zip(prompts, given, strict=True)
        ]
        known.write_text(json.dumps(mean(values)))
    return float(json.loads(known.read_text()))


def needed(kept: Sequence[tuple[int, float]], level: float) -> tuple[float, str]:
    """Exchanges at which the share first reaches the level, and "", "at most" or "more than" for a bound."""
    if kept[0][1] >= level:
        return kept[0][0], "at most"
    for (fewer, before), (more, after) in pairwise(kept):
        if after >= level:
            low, high = math.log(fewer), math.log(more)
            return math.exp(low + (level - before) / (after - before) * (high - low)), ""
    return kept[-1][0], "more than"


def figures(kept: dict[str, list[dict[int, float]]], scale: Scale) -> list[Row]:
    """`kept` holds the share of the teacher's score by budget, for each method and seed."""
    rows = []
    for method, by_seed in kept.items():
        for budget in scale.budgets:
            values = [shares[budget] for shares in by_seed if budget in shares]
            some = "" if len(values) == len(by_seed) else f"({len(values)} of {len(by_seed)} seeds)"
            if values:
                rows.append(interval(f"{method}: share kept with {budget:,} exchanges", values, some))
    for level in LEVELS:
        text: float | None = None
        for method, by_seed in kept.items():
            found = [needed(sorted(shares.items()), level) for shares in by_seed]
            values, bounds = [value for value, _ in found], {bound for _, bound in found if bound}
            bound = f", {' or '.join(sorted(bounds))}" if bounds else ""
            row = interval(f"{method}: exchanges for {level:.0%}{bound}", values, "")
            if bounds:
                row = replace(row, low=None, high=None)
            if method == "text":
                text = mean(values)
            elif text is not None:
                row = replace(row, peer="text", peer_value=text, ratio=mean(values) / text)
                if level == LEVELS[-1]:
                    holds = "more than" not in bounds and mean(values) <= text / 3
                    row = replace(row, target="<= a third", holds=holds)
            rows.append(row)
    return rows


def next_budget(method: str, shares: Mapping[int, float], budgets: Sequence[int]) -> int | None:
    """From small to large until the highest level is kept. The smallest only where the next one kept the
    lowest level, and as the first of focused rounds."""
    smallest, second, *_ = budgets
    if smallest not in shares and (method == FOCUSED or shares.get(second, 0.0) >= LEVELS[0]):
        return smallest
    if max(shares.values(), default=0.0) >= LEVELS[-1]:
        return None
    return next((budget for budget in budgets[1:] if budget not in shares), None)


def measure(folder: Path, scale: Scale) -> dict[str, list[dict[int, float]]]:
    """Every method at each budget that tells how many exchanges it needs."""
    teacher = folder / "teacher" / "model"
    teacher.parent.mkdir(exist_ok=True)
    if not teacher.exists():
        teacher.symlink_to(source_folder("embedded:desk"))
    level = score_of(teacher, scale.test)
    kept: dict[str, list[dict[int, float]]] = {}
    for method in METHODS:
        place = folder / named(method)
        place.mkdir(exist_ok=True)
        for seed in scale.seeds:
            shares: dict[int, float] = {}
            before: str | None = None
            while (budget := next_budget(method, shares, scale.budgets)) is not None:
                run = student_of(place, method, budget, seed, scale, before)
                before = run.name if method == FOCUSED else None
                shares[budget] = score_of(run / "student", scale.test) / level
                print(f"{method}, seed {seed}, {budget:,}: {shares[budget]:.3f}", file=sys.stderr)
            kept.setdefault(method, []).append(shares)
    return kept


def main() -> None:
    options = arguments(__doc__ or "", resumable=True)
    scale = SMALL if options.quick else FULL
    with working_folder(options.folder) as folder:
        kept = measure(folder, scale)
    packages = ["stillhouse", "torch", "transformers"]
    show(header(scale.seeds[0], packages), figures(kept, scale), options.json)


if __name__ == "__main__":
    main()
