"""The support desk's pool, and a second student that also learned what the first deferred."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cascade_pool import Pool, answered, answered_by, joined
from rows import Row

from stillhouse.cascade.calibration import Rows, calibrate, risk_of
from stillhouse.cascade.scores import Sketch, signals_of, sketch_of, unfamiliar
from stillhouse.models import source_folder
from stillhouse.models.embedded import world
from stillhouse.pipeline.cascading import asked_text, told_answers
from stillhouse.records import Prompt
from stillhouse.scoring import score, scorers
from stillhouse.stats import Floats

DESK = Path(__file__).parents[1] / "examples" / "quickstart" / "recipe.toml"
TEACHER = "embedded:desk"
LEARNED, LEARNED_SEED = 6000, 1  # the recipe's prompts
SEEDS = range(3001, 3009)  # of the generator; the recipe's are 1 and 1001
TRAFFIC_SEEDS = range(4001, 4004)  # what is asked between the two rounds
PROMPTS = 1000  # of each
MAX_TOKENS = 128
AGAIN = """\
# A second round: what the first student deferred, and as many of the prompts that it learned from.
[run]
name = "second"
seed = 17

[teacher]
model = "embedded:desk"

[prompts]
source = "again.jsonl"

[collect]
max_tokens = 128

[student]
init = {student}

[train]
optimiser = "muon"
learning_rate = 3e-3
final_rate = 0.05
epochs = 4
batch_tokens = 2048

[evaluate]
source = "tested.jsonl"
baseline = false
"""


def learned() -> list[Prompt]:
    return world.prompts("train", LEARNED, LEARNED_SEED)


def pool_of(folder: Path, student: Path, sketch: Sketch, seeds: Sequence[int], name: str, count: int) -> Pool:
    teacher = answered_by(source_folder(TEACHER), MAX_TOKENS)
    return joined(
        [
            answered(
                folder / f"{name}-{seed}.npz",
                world.prompts("test", count, seed),
                teacher,
                str(student),
                sketch,
                MAX_TOKENS,
            )
            for seed in seeds
        ]
    )


def desk_pool(folder: Path, run: Path, quick: bool) -> Pool:
    seeds, count = (SEEDS[:1], 200) if quick else (SEEDS, PROMPTS)
    return pool_of(folder, run / "student", sketch_of(map(asked_text, learned())), seeds, "pool", count)


def second_round(folder: Path, run: Path, pool: Pool, quick: bool) -> list[Row]:
    """Shares that either student defers at the same promise, calibrated on the same prompts."""
    seeds, count = (TRAFFIC_SEEDS[:1], 100) if quick else (TRAFFIC_SEEDS, PROMPTS)
    sketch = sketch_of(map(asked_text, learned()))
    first = calibrate(pool.rows, sketch, "first")
    threshold = -1.0 if first.promise.threshold is None else first.promise.threshold
    asked = [prompt for seed in seeds for prompt in world.prompts("test", count, seed)]
    signals = student_signals(folder / "traffic.npz", run / "student", asked, sketch)[0]
    deferred = [
        prompt for prompt, risk in zip(asked, risk_of(first, signals), strict=True) if risk > threshold
    ]
    student = _trained(folder, run / "student", deferred)
    both = sketch_of(map(asked_text, [*learned(), *deferred]))
    second = calibrate(_with_student(folder, pool.rows, student, both, quick), both, "second")
    before, after = first.promise.deferred, second.promise.deferred
    return [
        Row("desk, second round: prompts asked in between", len(asked), ""),
        Row("desk, second round: prompts learned from", len(deferred), ""),
        Row(
            "desk, second round: share deferred",
            after,
            "",
            peer="the first round",
            peer_value=before,
            ratio=after / before if before else None,
            target=None if quick else "<= half of the first's",
            holds=None if quick else after <= before / 2,
        ),
    ]


def student_signals(
    file: Path, student: Path, prompts: Sequence[Prompt], sketch: Sketch
) -> tuple[Floats, Floats]:
    """Signals and scores of a student's answers alone."""
    if not file.exists():
        told, known = told_answers(str(student), prompts, MAX_TOKENS), scorers()
        rows = [(prompt, answer) for prompt, answer in zip(prompts, told, strict=True) if answer is not None]
        assert len(rows) == len(prompts)
        signals = [
            signals_of(
                answer.tokens, answer.text, answer.finish_reason, unfamiliar(sketch, asked_text(prompt))
            )
            for prompt, answer in rows
        ]
        values = [score(prompt.scorer, answer.text, prompt.reference, known).value for prompt, answer in rows]
        part = file.with_suffix(".part.npz")
        np.savez(part, signals=np.array(signals), scores=np.array(values, dtype=np.float64))
        part.rename(file)
    with np.load(file) as found:
        return found["signals"], found["scores"]


def _with_student(folder: Path, rows: Rows, student: Path, sketch: Sketch, quick: bool) -> Rows:
    """The pool with another student's answers in it; the teacher's stay as they are."""
    seeds, count = (SEEDS[:1], 200) if quick else (SEEDS, PROMPTS)
    prompts = {prompt.id: prompt for seed in seeds for prompt in world.prompts("test", count, seed)}
    signals, scores = student_signals(
        folder / "second.npz", student, [prompts[id] for id in rows.ids], sketch
    )
    losses = np.maximum(rows.teacher - scores, 0.0)
    return replace(rows, signals=signals, student=scores, losses=losses)


def _trained(folder: Path, student: Path, deferred: Sequence[Prompt]) -> Path:
    """The first student, trained on with the teacher's answers to what it deferred and, lest it forgets, to
    as many of the first round's prompts."""
    found = sorted(folder.glob(".stillhouse/runs/second-*/student/config.json"))
    if found:
        return found[-1].parent
    kept = learned()[: max(50, len(deferred))]
    _write(folder / "again.jsonl", [*deferred, *kept])
    _write(folder / "tested.jsonl", world.prompts("test", 200, 5001))
    recipe = folder / "second.toml"
    recipe.write_text(AGAIN.format(student=json.dumps(str(student.resolve()))))
    command = [sys.executable, "-m", "stillhouse.cli", "run", recipe.name, "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return Path(json.loads(done.stdout)["folder"], "student")


def _write(path: Path, prompts: Sequence[Prompt]) -> None:
    rows = [
        {
            "prompt": asked_text(prompt),
            "family": prompt.family,
            "group": prompt.group,
            "reference": prompt.reference,
            "scorer": prompt.scorer,
        }
        for prompt in prompts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
