"""A real public character model as teacher, a student of a quarter of its size, on real stories.

    .venv/bin/python benchmarks/characters.py [--quick] [--json FILE]

The teacher (EN10/BabyLlama, 969,216 parameters) continues the openings of stories over HTTP; the student
learns from these continuations alone. Its peer has the same architecture, seed, openings and steps, but
learns how the stories really go on, cut to the length of the teacher's continuation. All three are scored by
nats per character on held-out stories.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rows import DATA, Row, arguments, header, need, show

from stillhouse.collect import PromptSet
from stillhouse.curate import SAMPLES
from stillhouse.models.local import load_model, parameters, score, text_ids
from stillhouse.pipeline import run
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.records import Message, Prompt
from stillhouse.train import train
from stillhouse.workspace import RunFolder, init_workspace

SEED = 5
OPENING = 48  # characters of a story that the teacher is given
LENGTH = 240  # characters of a row, opening included; the teacher's context is 256


def stories() -> list[str]:
    text = need(DATA / "text" / "tinystories_sample_2MB.txt").read_text(errors="ignore")
    parts = (part.strip() for part in text.split("<|endoftext|>"))
    return [part.replace("\n", " ") for part in parts if len(part) > 2 * LENGTH]


def recipe(teacher: Path, quick: bool) -> Recipe:
    config = {
        "hidden_size": 64,
        "intermediate_size": 144,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    terms = {"document": str(DATA / "README.md"), "read_on": "2026-11-20", "declared_by": "the benchmark"}
    return parse_recipe(
        {
            "run": {"name": "characters", "seed": SEED},
            "teacher": {"model": str(teacher), "terms": terms},
            "prompts": {"source": "stories"},
            "collect": {"temperature": 1.0, "max_tokens": LENGTH - OPENING, "concurrency": 64},
            "curate": {"truncated": False},
            "student": {"init": "config", "config": config},
            "train": {"epochs": 2 if quick else 8, "batch_tokens": 8192, "learning_rate": 4e-3},
            "evaluate": {"baseline": False, "count": 20},
        }
    )


def nats_per_character(folder: str, texts: list[str]) -> float:
    model = load_model(folder)
    rows = [text_ids(model, text[:LENGTH]) for text in texts]
    scored = [token for row in score(model, rows) for token in row if token is not None]
    return -sum(token.logprob for token in scored) / len(scored)  # a token is a character here


def main() -> None:
    options = arguments(__doc__ or "")
    teacher = need(DATA / "models" / "babyllama361")
    told = stories()
    test, learn = told[:150], told[150:]
    learn = learn[: 200 if options.quick else 1500]
    pieces = [
        (story[at : at + OPENING], story[at + OPENING : at + LENGTH]) for story in learn for at in (0, LENGTH)
    ]
    prompts = tuple(
        Prompt(f"s{i:05d}", (Message("user", opening),), group=f"story{i // 2}")
        for i, (opening, _) in enumerate(pieces)
    )
    asked = PromptSet(
        prompts, tuple(Prompt(f"t{i}", (Message("user", s[:OPENING]),)) for i, s in enumerate(test[:20]))
    )
    with tempfile.TemporaryDirectory() as folder:
        workspace = init_workspace(Path(folder))
        settings = recipe(teacher, options.quick)
        done = run(settings, workspace, prompts=asked)
        steps = json.loads(done.run.marker("train").read_bytes())["result"]["steps"]
        alone = _without_teacher(workspace.runs / "alone", settings, pieces, done.run, str(teacher))
        figures = {
            "teacher": nats_per_character(str(teacher), test),
            "student": nats_per_character(str(done.run.student), test),
            "alone": nats_per_character(str(workspace.runs / "alone" / "student"), test),
        }
        size = parameters(load_model(str(done.run.student))) / parameters(load_model(str(teacher)))
    rows = [
        Row("teacher, held-out stories", figures["teacher"], "nats/character"),
        Row(
            "student of the teacher's continuations, held-out stories",
            figures["student"],
            "nats/character",
            peer="teacher",
            peer_value=figures["teacher"],
            ratio=figures["student"] / figures["teacher"],
        ),
        Row(
            "the same student without a teacher, same rows and steps",
            figures["alone"],
            "nats/character",
            peer="with the teacher",
            peer_value=figures["student"],
            ratio=figures["alone"] / figures["student"],
        ),
        Row("student's parameters, share of the teacher's", size, ""),
        Row(
            "optimiser steps with the teacher",
            steps,
            "",
            peer="without",
            peer_value=alone["steps"],
            ratio=steps / alone["steps"],
        ),
    ]
    show(header(SEED, ["stillhouse", "torch", "transformers"]), rows, options.json)


def _without_teacher(
    folder: Path, settings: Recipe, pieces: list[tuple[str, str]], taught: RunFolder, teacher: str
) -> dict[str, Any]:
    """Train on the rows of `taught` with each continuation replaced by the story's own of the same length."""
    rows = pq.read_table(taught.samples).to_pylist()
    for row in rows:
        number = int(row["id"].split("#")[0].removeprefix("s"))
        row["completion"] = pieces[number][1][: len(row["completion"])]
        row["teacher"] = "none"
    folder.mkdir()
    made = RunFolder(folder)
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES), made.samples)
    return asdict(train(made, settings, teacher_folder=teacher))


if __name__ == "__main__":
    main()
