"""The quickstart in an empty folder: seconds, share of the teacher kept, FLOPs; then the same run again.

    .venv/bin/python benchmarks/quickstart.py [--quick] [--json FILE]

--quick collects 300 answers and trains for two epochs: it shows that the path works, not what it reaches.
The peer of each figure is the student before training, the cheap baseline, or the target of the design.
Then teacher and student answer the prompts of ten fresh generator seeds, none of which the run has seen and
no template of which it learnt from: the share that is kept is claimed on these.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rows import Row, arguments, header, show

from stillhouse.evaluate.figures import summarise
from stillhouse.evaluate.predictions import Prediction, judged
from stillhouse.evaluate.students import local_answers
from stillhouse.models import source_folder
from stillhouse.models.embedded import world
from stillhouse.models.local import load_model
from stillhouse.scoring import scorers

RECIPE = Path(__file__).parents[1] / "examples" / "quickstart" / "recipe.toml"


SEEDS = range(2001, 2011)  # of the generator; the recipe's are 1 and 1001
PROMPTS = 500  # of each


def run(folder: Path, recipe: Path) -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    command = [sys.executable, "-m", "stillhouse.cli", "run", str(recipe), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {**found["evaluation"], "folder": found["folder"]}, time.monotonic() - started


def fresh(student: Path, seeds: Sequence[int], count: int) -> list[Row]:
    """The share kept over all seeds' prompts, clustered by template, and that of the worst seed."""
    models = {"teacher": source_folder("embedded:desk"), "student": str(student)}
    rows: dict[int, list[Prediction]] = {seed: [] for seed in seeds}
    for system, folder in models.items():
        model = load_model(folder)
        for seed in seeds:
            prompts = world.prompts("test", count, seed)
            rows[seed] += judged(
                system, prompts, local_answers(model, prompts, 128, lambda more: None), scorers()
            )
    kept = summarise([row for of in rows.values() for row in of])["retention"]
    worst = min(summarise(of)["retention"]["value"] for of in rows.values())
    name = f"share kept on {len(rows)} fresh seeds"
    full = count == PROMPTS
    return [
        Row(
            name,
            kept["value"],
            "",
            kept["low"],
            kept["high"],
            target=">= 0.97" if full else None,
            holds=kept["value"] >= 0.97 if full else None,
        ),
        Row(
            f"{name}, lower bound",
            kept["low"],
            "",
            target=">= 0.95" if full else None,
            holds=kept["low"] >= 0.95 if full else None,
        ),
        Row(f"{name}, the worst of them", worst, ""),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = RECIPE.read_text()
        if options.quick:
            lines = [line for line in text.splitlines() if not line.startswith(("count", "epochs"))]
            text = "\n".join(lines)
            text = text.replace('source = "embedded:desk"', 'source = "embedded:desk"\ncount = 300')
            text = text.replace("[train]", "[train]\nepochs = 2").replace(
                "[evaluate]", "[evaluate]\ncount = 100"
            )
        recipe = folder / "recipe.toml"
        recipe.write_text(text)
        first, seconds = run(folder, recipe)
        second, again = run(folder, recipe)
        student = Path(first["folder"], "student")
        claimed = fresh(student, SEEDS[:2], 50) if options.quick else fresh(student, SEEDS, PROMPTS)
    kept, full = first["retention"], not options.quick
    rows = [
        Row("whole run, wall time", seconds, "s", target="< 360 s", holds=seconds < 360),
        *(
            Row(f"  {stage}", first["seconds"][stage], "s")
            for stage in ("collect", "curate", "train", "evaluate")
        ),
        Row("second run, wall time", again, "s", peer="first run", peer_value=seconds, ratio=again / seconds),
        Row(
            "exchanges sent by the second run",
            second["exchanges"]["sent"],
            "",
            target="0",
            holds=second["exchanges"]["sent"] == 0,
        ),
        Row(
            "share of the teacher's score kept",
            kept["value"],
            "",
            kept["low"],
            kept["high"],
            target=">= 0.90" if full else None,
            holds=kept["value"] >= 0.90 if full else None,
        ),
        *claimed,
        Row(
            "FLOPs per answer, share of the teacher's",
            first["flops_ratio"],
            "",
            target="<= 0.10",
            holds=first["flops_ratio"] <= 0.10,
        ),
        *(
            Row(
                f"score of {system.replace('_', ' ')}",
                first[system]["score"],
                "",
                first[system]["low"],
                first[system]["high"],
            )
            for system in ("teacher", "student", "student_before", "baseline")
        ),
        Row("parameters of the teacher", first["parameters"]["teacher"], ""),
        Row("parameters of the student", first["parameters"]["student"], ""),
    ]
    show(header(17, ["stillhouse", "torch", "transformers"]), rows, options.json)


if __name__ == "__main__":
    main()
