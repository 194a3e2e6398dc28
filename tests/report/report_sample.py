"""A whole run folder, made up but of the real shape; `python tests/report/report_sample.py FOLDER` makes one.

Every figure follows from one seed. The texts look like those of the support desk, so that the page can be
judged by eye; the scores are drawn, not measured.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from stillhouse.ask.judge import Judged
from stillhouse.collect.canaries import account
from stillhouse.curate import Curated
from stillhouse.evaluate.battery import battery_figures, battery_prompts
from stillhouse.evaluate.economics import Ledgered, economics
from stillhouse.evaluate.fidelity import fidelity_figures
from stillhouse.evaluate.figures import summarise
from stillhouse.evaluate.predictions import SYSTEMS, Prediction, write_predictions
from stillhouse.evaluate.preference import judge_pairs, preference_figures, write_judgements
from stillhouse.recipe import Recipe, recipe_digest, run_digest
from stillhouse.records import Message, Prompt
from stillhouse.train import TrainResult
from stillhouse.workspace import RunFolder, Workspace, write_json

RIGHT = {  # share of right answers: teacher, student before, student, baseline
    "extract": (0.965, 0.02, 0.945, None),
    "route": (0.99, 0.17, 0.985, 0.93),
    "sort": (1.0, 0.04, 0.98, 0.12),
    "dates": (0.95, 0.06, 0.83, 0.22),
    "totals": (0.93, 0.01, 0.74, 0.05),
    "policy": (0.985, 0.35, 0.965, 0.71),
    "reply": (0.97, 0.10, 0.955, None),
}
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
REASONS = {"duplicate": 141, "truncated": 37, "refusal": 12, "empty": 3}


def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "run": {"name": "desk", "seed": 17},
            "teacher": {"model": "embedded:desk"},
            "prompts": {"source": "embedded:desk", "count": 3000},
            "student": {"init": "embedded:base"},
            "train": {"epochs": 6.0},
            "evaluate": {"count": 840},
        }
    )


def write_sample_run(folder: Path, seed: int = 7) -> RunFolder:
    rng = Random(seed)
    made = recipe()
    run = Workspace(folder).run(made.run.name, run_digest(made))
    run.root.mkdir(parents=True)
    write_json(run.recipe, made.model_dump(mode="json"))
    test = [_question(rng, family, number) for family in RIGHT for number in range(120)]
    train = [_question(rng, family, 1000 + number) for family in RIGHT for number in range(40)]
    _write_prompts(run, test, train)
    _write_samples(run, train)
    rows = _predictions(rng, test)
    write_predictions(run.predictions, rows)
    write_losses(run.losses, rng)
    write_json(run.evaluation, _evaluation(rows) | {"judge": _judge(run, rng, rows)})
    for minute, (stage, result) in enumerate(_results().items()):
        write_json(
            run.marker(stage),
            {
                "inputs": f"{minute + 11:02x}" * 32,
                "finished": f"2026-11-21T09:4{minute}:07+00:00",
                "seconds": (48.2, 1.9, 131.4, 39.0, 0.8)[minute],
                "result": result,
            },
        )
    return run


def write_rows(path: Path, rows: list[dict[str, Any]], types: dict[str, pa.DataType] | None = None) -> None:
    """Rows as Parquet; message lists get their type by name, other columns by `types` or by content."""
    types = {"messages": MESSAGES, "prompt": MESSAGES, **(types or {})}
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    parquet.write_table(pa.table(columns), path)


def write_losses(path: Path, rng: Random, steps: int = 900) -> None:
    lines = []
    for step in range(1, steps + 1):
        loss = 0.11 + 2.6 * math.exp(-step / 70) + 0.5 * math.exp(-step / 400) + rng.gauss(0, 0.02)
        rate = 1e-3 * min(1.0, step / 45) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        line = {"step": step, "loss": max(0.05, loss), "lr": rate, "tokens": 8192 * step, "seconds": step / 9}
        if step % 50 == 0:
            line["held_out"] = 0.16 + 2.6 * math.exp(-step / 75) + 0.48 * math.exp(-step / 410)
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")


def _question(rng: Random, family: str, number: int) -> dict[str, Any]:
    name = rng.choice(["Mira Tolek", "Santo Berson", "Kalen Lindward", "Resha Marov", "Divin Gareman"])
    item = rng.choice(["blue lamp", "steel kettle", "folding table", "wireless keyboard", "oak chair"])
    order, a, b = f"{rng.choice('BDKRT')}{rng.randint(1000, 9999)}", rng.randint(2, 9), rng.randint(3, 40)
    day, goods = rng.randint(1, 27), a * (b + 0.5)
    questions = {
        "extract": (
            f"A mail came in. Dear desk, order {order} is late. I bought a {item}. {name}, Ashford. Give"
            " name, item and order as JSON.",
            json.dumps({"name": name, "item": item, "order": order}),
        ),
        "route": (f"Which team gets this? The {item} of order {order} arrived broken.", "returns"),
        "sort": (
            f"Sort by number: {b}, {a}, {b + a}, {abs(b - a)}.",
            ", ".join(map(str, sorted({a, b, a + b}))),
        ),
        "dates": (f"Ordered on {day} March, delivery takes {a + b} days. When does it come?", f"{day} April"),
        "totals": (
            f"{a} × {item} at {b}.50 each and 4.90 for shipping: what is the total?",
            f"{a} × {b}.50 = {goods:.2f}\n{goods:.2f} + 4.90 = {goods + 4.9:.2f}\ntotal: {goods + 4.9:.2f}",
        ),
        "policy": (f"May {name} return a {item} after {b} days?", "yes" if b < 30 else "no"),
        "reply": (
            f"Write a short reply: the {item} of order {order} ships on {day} May.",
            f"Dear {name.split()[0]}, your {item} (order {order}) ships on {day} May. Kind regards, the desk",
        ),
    }
    text, right = questions[family]
    return {
        "id": f"{family}-{number:04d}",
        "messages": [{"role": "user", "content": text}],
        "family": family,
        "group": f"{family}/{number % (8 if family == 'policy' else 12)}" + ("t" if number >= 1000 else ""),
        "reference": right,
        "scorer": "json" if family == "extract" else "exact",
    }


def _write_prompts(run: RunFolder, test: list[dict[str, Any]], train: list[dict[str, Any]]) -> None:
    write_rows(run.prompts, [{**q, "split": "train"} for q in train] + [{**q, "split": "test"} for q in test])


def _write_samples(run: RunFolder, train: list[dict[str, Any]]) -> None:
    rows = [
        {
            "id": f"{q['id']}#0",
            "messages": q["messages"],
            "completion": q["reference"],
            "family": q["family"],
            "group": q["group"],
            "teacher": "embedded:desk",
            "leaves": [index],
        }
        for index, q in enumerate(train)
    ]
    write_rows(run.samples, rows, {"leaves": pa.list_(pa.int64())})
    answers = {
        "truncated": "The total is 4 × 12.50 = 50.00, then we add",
        "refusal": "I am sorry, but I cannot help with that.",
        "empty": "",
    }
    dropped = [
        {**row, "completion": answers.get(reason, row["completion"]), "reason": reason}
        for reason in REASONS
        for row in rows[:4]
    ]
    write_rows(run.dropped, dropped, {"leaves": pa.list_(pa.int64())})


def _predictions(rng: Random, test: list[dict[str, Any]]) -> list[Prediction]:
    rows = []
    for question in test:
        luck = rng.random()
        for index, system in enumerate(SYSTEMS):
            share = RIGHT[question["family"]][index]
            if share is None:
                continue
            # the same luck for both, mostly: teacher and student fail on the same prompts
            good = (luck if rng.random() < 0.7 else rng.random()) < share
            wrong = _wrong(rng, system, question)
            unscored = system == "student" and rng.random() < 0.004
            rows.append(
                Prediction(
                    prompt_id=question["id"],
                    family=question["family"],
                    group=question["group"],
                    system=system,
                    answer=question["reference"] if good else wrong,
                    score=None if unscored else float(good),
                    reason="the reference is not JSON" if unscored else "",
                    prompt_tokens=60,
                    completion_tokens=30,
                    finish_reason="stop",
                    logprob=-abs(rng.gauss(0.02 if good else 0.4, 0.2)) if "student" in system else None,
                )
            )
    return rows


def _wrong(rng: Random, system: str, question: dict[str, Any]) -> str:
    right: str = question["reference"]
    if system == "student_before":
        return "the desk the order the"
    if question["family"] in ("route", "policy"):
        return {"returns": "shipping", "yes": "no", "no": "yes"}[right]
    digits = [i for i, c in enumerate(right) if c.isdigit()]
    if not digits:
        return right.upper()
    at = rng.choice(digits[-3:])
    return right[:at] + str((int(right[at]) + 1 + rng.randint(0, 7)) % 10) + right[at + 1 :]


def _evaluation(rows: list[Prediction]) -> dict[str, Any]:
    """The figures by the stage's own code; computing, as it would measure it, and what the run adds."""
    measured = {
        **summarise(rows),
        "fidelity": {
            "divergence": {"value": 0.0312, "low": 0.0287, "high": 0.0341, "n": 256, "places": 7911},
            **fidelity_figures(rows, ["policy"], 17, 300),
        },
        "battery": _battery(),
        "further": {
            "seeds": {
                "rows": [
                    {"seed": 17 + more, "score": 0.921 + change, "low": 0.89, "high": 0.945, "n": 840}
                    for more, change in enumerate((0.0, -0.011, 0.006))
                ],
                "mean": 0.9193,
                "low": 0.8980,
                "high": 0.9407,
                "sd": 0.0086,
                "lowest": 0.910,
                "highest": 0.927,
            },
            "hard_labels": {
                "score": 0.874,
                "low": 0.84,
                "high": 0.9,
                "n": 840,
                "samples": 2710,
                "ahead": {"value": 0.047, "low": 0.026, "high": 0.068, "n": 837},
            },
            "sizes": [
                {
                    "label": label,
                    "parameters": size,
                    "flops": flops,
                    "score": score,
                    "n": 840,
                    "retention": {"value": score / 0.96, "low": score - 0.02, "high": score + 0.06, "n": 837},
                }
                for label, size, flops, score in (
                    ("from_teacher, layers 0, 3", 310_000, 2.2e7, 0.71),
                    ("", 561_000, 4.07e7, 0.921),
                )
            ],
            "curve": [
                {"samples": samples, "score": score, "low": score - 0.03, "high": score + 0.025, "n": 840}
                for samples, score in ((500, 0.61), (1000, 0.79), (2805, 0.921))
            ],
        },
        "harness": {
            "version": "0.4.13",
            "limit": 200,
            "tasks": {
                "arc_easy": {
                    "version": "1.0",
                    "n": 200,
                    "metrics": {
                        "acc": {
                            "student_before": {"value": 0.265, "error": 0.031},
                            "student": {"value": 0.25, "error": 0.031},
                        }
                    },
                }
            },
            "failed": {},
        },
        "flops_share": {"value": 4.07e7 / 4.21e8, "low": 0.0951, "high": 0.0984, "n": 840},
        "latency": {
            "teacher": {"median": 0.214, "slowest": 0.391, "n": 9},
            "student": {"median": 0.041, "slowest": 0.077, "n": 9},
        },
        "tokens_per_second": {"teacher": 5210.0, "student": 29400.0},
    }
    known = Ledgered(None, True, None, 0.0, 48.2, 131.4)
    return {
        **measured,
        "economics": economics(rows, measured, known, 17, 300),
        "flops": {"teacher": 4.21e8, "student_before": 4.07e7, "student": 4.07e7},
        "flops_ratio": 4.07e7 / 4.21e8,
        "flops_per_token": {"teacher": 4.7e6, "student_before": 4.5e5, "student": 4.5e5},
        "flops_prompts": 840,
        "parameters": {"teacher": 5_640_000, "student_before": 561_000, "student": 561_000},
        "scored_by": ["exact", "json"],
        "seconds": {"collect": 48.2, "curate": 1.9, "train": 131.4, "evaluate": 39.0, "total": 220.5},
        "exchanges": {"sent": 3842, "reused": 0, "failed": 2, "unknown": 0},
        "versions": {"stillhouse": "1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    }


def _battery() -> dict[str, Any]:
    rows = []
    for system, gone in (("student_before", 5), ("student", 3)):
        for place, prompt in enumerate(battery_prompts()):
            right = float(place % gone != 0)
            rows.append(
                Prediction(prompt.id, prompt.family, "", system, "an answer", right, "", 20, 5, "stop")
            )
    return battery_figures(rows)


def _judge(run: RunFolder, rng: Random, rows: list[Prediction]) -> dict[str, Any]:
    """A judge that sees what is right nine times out of ten."""
    better = {(row.prompt_id, row.system): row.score or 0.0 for row in rows}

    def ask(pairs: Any) -> list[Judged]:
        said = []
        for pair in pairs:
            change = better[pair.prompt_id, "student"] - better[pair.prompt_id, "teacher"]
            outcome = "tie" if change == 0 else "first" if change > 0 else "second"
            odd = rng.choice(["first", "second", "inconsistent", "unscored"])
            outcome = odd if rng.random() < 0.1 else outcome
            said.append(Judged(pair.prompt_id, outcome, "A", "B", "no verdict", (1, 2)))  # type: ignore[arg-type]
        return said

    prompts = [
        Prompt(row.prompt_id, (Message("user", "?"),), row.family, row.group)
        for row in rows
        if row.system == "teacher"
    ]
    judged = judge_pairs(rows, prompts, ask)
    write_judgements(run.judgements, judged)
    return {"model": "a-judge-of-another-house", **preference_figures(judged, 17, 300)}


def asked(answered: int, failed: int, **more: Any) -> dict[str, Any]:
    """What collect and evaluate say of their questions."""
    return {
        "sent": answered + failed,
        "answered": answered,
        "reused": 0,
        "failed": failed,
        "failures": {"timeout": failed} if failed else {},
        "attempts": {"answered": answered, "failed": failed, "unknown": 0},
        "unknown": 0,
        "prompt_tokens": 61 * answered,
        "completion_tokens": 32 * answered,
        "cost": {"low": 0.0, "expected": None, "high": 0.0},
        **more,
    }


def _results() -> dict[str, dict[str, Any]]:
    kept = 2998 - sum(REASONS.values())
    families = {family: kept // len(RIGHT) for family in RIGHT}
    trained = TrainResult(
        steps=900,
        epochs=6.0,
        tokens=1_683_000,
        target_tokens=702_000,
        seconds=131.4,
        train_loss=0.14,
        held_out_loss=0.21,
        rows=kept - 91,
        rows_held_out=90,
        rows_left_out={"too long": 1},
        parameters=561_000,
        trainable=561_000,
        dtype="bfloat16",
        device="cpu",
        tokenizer="7c" * 32,
        objective="sequence",
        shards=[],
        bytes_per_token=None,
    )
    return {
        "collect": {
            "recipe": recipe_digest(recipe()),
            "teacher": "embedded:desk",
            "endpoint": "local",
            "revision": "sha256:5c1e0f7a",
            "decision": 4,
            "prompts": 3000,
            "broken_lines": 0,
            "leaked": 0,
            "exchanges": 2998,
            "answered_by": [account("embedded:desk", {"embedded:desk": 2998}, {"": 2998}, None, 2998)],
            "digest": "d1" * 32,
            **asked(2998, 2),
        },
        "curate": asdict(Curated(2998, kept, REASONS, families, digest="c4" * 32, transform=6003)),
        "train": {**asdict(trained), "weights": "3f" * 32},
        "evaluate": {"predictions": "9e" * 32, **asked(840, 0)},
        "release": {
            "folder": "release",
            "leaf": 8996,
            "files": {
                "model.safetensors": "3f" * 32,
                "config.json": "a1" * 32,
                "tokenizer.json": "77" * 32,
                "README.md": "0c" * 32,
            },
            "checkpoint": {"size": 8997, "root": "q0kWm3iE4Pp1S0rT0JQ5mTn2m1c9w8Vw2y0S7h0lD5E="},
            "anchored": False,
        },
    }


if __name__ == "__main__":
    from stillhouse.report import write_report

    sys.stdout.write(f"{write_report(write_sample_run(Path(sys.argv[1])))}\n")
