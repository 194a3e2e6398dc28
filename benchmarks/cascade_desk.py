"""The support desk's pool, and a second student that also learned what the first deferred."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cascade_pool import (
    BROKEN,
    CALIBRATED,
    NO_SKETCH,
    REPEATS,
    SEED,
    Pool,
    answered,
    answered_by,
    drawn,
    joined,
    kept_by,
)
from rows import Row

from stillhouse.cascade.calibration import Rows, calibrate, held_back
from stillhouse.cascade.risk import MOST
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
QUICK_LEARNED = 300
SEEDS = range(3001, 3009)  # of the generator; the recipe's are 1 and 1001
TRAFFIC_SEEDS = range(4001, 4007)  # what is asked between the two rounds
PROMPTS = 1000  # of each
MAX_TOKENS = 128
AGAIN = """\
# A second round: what the first student deferred, and the prompts that it learned from.
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
learning_rate = 4e-3
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
    """Shares that either student defers at the same promise: both are calibrated on the same draws from the
    pool, so many times anew, and judged by the rows of it that no score is fitted on."""
    rng, full, repeats = np.random.default_rng(SEED), not quick, 20 if quick else REPEATS
    asked = traffic(quick)
    first, sketch = run / "student", sketch_of(map(asked_text, learned()))
    at_work = calibrate(drawn(pool, rng, CALIBRATED).rows, NO_SKETCH, "first")
    kept = kept_by(at_work, _signals(folder, "traffic", first, asked, sketch)[0])
    deferred = [prompt for prompt, sure in zip(asked, kept, strict=True) if not sure]
    before = learned()[: QUICK_LEARNED if quick else LEARNED]
    student = _trained(folder, run / "release", [*deferred, *before])
    again = _with_student(folder, pool.rows, student, sketch_of(map(asked_text, [*learned(), *deferred])))
    shares: tuple[list[float], list[float]] = [], []
    broken = 0
    for _ in range(repeats):
        chosen = rng.integers(0, len(pool.rows.ids), CALIBRATED)
        for rows, found in zip((pool.rows, again), shares, strict=True):
            calibration, truth = calibrate(rows.part(chosen), NO_SKETCH, ""), held_back(rows)
            sure = kept_by(calibration, truth.signals)
            found.append(float(1 - sure.mean()))
            broken += rows is again and float(np.where(sure, truth.losses, 0.0).mean()) > MOST
    whole = [calibrate(rows, NO_SKETCH, "").promise.deferred for rows in (pool.rows, again)]
    share, after = (float(np.mean(found)) for found in shares)
    lost, lost_after = float(pool.rows.losses.mean()), float(again.losses.mean())
    drawn_anew = _halved("share deferred", after, share, full)
    low, high = np.quantile(shares[1], [0.025, 0.975]).tolist()
    return [
        Row("desk, second round: prompts asked in between", len(asked), ""),
        Row("desk, second round: of them deferred and learned from", len(deferred), ""),
        Row("desk, second round: lost by the student alone", lost_after, "", **_beside(lost_after, lost)),
        replace(drawn_anew, low=low, high=high),
        _halved(f"share deferred, calibrated on all {len(again.ids):,}", whole[1], whole[0], full),
        Row(
            f"desk, second round: promises broken, of {repeats}",
            broken,
            "",
            target=f"<= {BROKEN}" if full else None,
            holds=broken <= BROKEN if full else None,
        ),
    ]


def _halved(what: str, after: float, before: float, full: bool) -> Row:
    row = Row(f"desk, second round: {what}", after, "", **_beside(after, before))
    return replace(row, target="<= half of the first's", holds=after <= before / 2) if full else row


def _beside(value: float, first: float) -> dict[str, Any]:
    return {"peer": "the first round", "peer_value": first, "ratio": value / first if first else None}


def traffic(quick: bool) -> list[Prompt]:
    """What is asked between the two rounds, without what the pool asks as well."""
    seeds, count = (TRAFFIC_SEEDS[:1], 100) if quick else (TRAFFIC_SEEDS, PROMPTS)
    judged = {asked_text(prompt) for seed in SEEDS for prompt in world.prompts("test", PROMPTS, seed)}
    asked = [prompt for seed in seeds for prompt in world.prompts("test", count, seed)]
    return [prompt for prompt in asked if asked_text(prompt) not in judged]


def _signals(
    folder: Path, name: str, student: Path, prompts: Sequence[Prompt], sketch: Sketch
) -> tuple[Floats, Floats]:
    """`student_signals` of many prompts, a file for each thousand."""
    parts = [
        student_signals(folder / f"{name}-{start}.npz", student, prompts[start : start + PROMPTS], sketch)
        for start in range(0, len(prompts), PROMPTS)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


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


def _with_student(folder: Path, rows: Rows, student: Path, sketch: Sketch) -> Rows:
    """The pool with another student's answers in it; the teacher's stay as they are. Whether the texts differ
    is left as it was: no promise is made of it."""
    prompts = {prompt.id: prompt for seed in SEEDS for prompt in world.prompts("test", PROMPTS, seed)}
    signals, scores = _signals(folder, "second", student, [prompts[id] for id in rows.ids], sketch)
    losses = np.maximum(rows.teacher - scores, 0.0)
    return replace(rows, signals=signals, student=scores, losses=losses)


def _trained(folder: Path, released: Path, prompts: Sequence[Prompt]) -> Path:
    """The first student, trained on with the teacher's answers to what it deferred and, lest it forgets, to
    the first round's prompts: the ledger has these, and they are not asked again."""
    found = sorted(folder.glob(".stillhouse/runs/second-*/student/config.json"))
    if found:
        return found[-1].parent
    _write(folder / "again.jsonl", prompts)
    _write(folder / "tested.jsonl", world.prompts("test", 50, 5001))
    recipe = folder / "second.toml"
    recipe.write_text(AGAIN.format(student=json.dumps(str(released.resolve()))))
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
