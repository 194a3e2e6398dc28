"""What a student learns across tokenizers from the likelihood of chunks, beside what it learns from text.

    .venv/bin/python benchmarks/alm.py [--quick] [--json FILE]

Two public models: a teacher that writes characters (EN10/BabyLlama, 969,216 parameters, 361 symbols) and a
student that reads pieces (karpathy/stories260K, 512 pieces). The teacher continues the openings of real
stories at temperature 1. From these continuations the student learns, from one start and for as many steps
over the same batches,

    text       the tokens of the continuations (train.objective = "sequence")
    chunks     how likely the teacher held each chunk of them (train.distil.unit = "chunk")
    both       half of each (train.distil.hard = 0.5)

Distance is the mean of log t(x) - log p(x) over continuations that no student saw, in nats per character: as
they were drawn from the teacher, an unbiased estimate of the KL divergence from teacher to student. The end
of a continuation, which is where it was cut, is left out of it. Beside it stands what the student makes of
how the stories really go on, which nobody taught it here. The learning rate is the one of 2e-3, 5e-4 and
1.5e-4 that was best for text, by one seed. Intervals are by Student's t over seeds, which draw the order of
the batches and are pairs where two are compared.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rows import DATA, Row, arguments, header, interval, need, show

from stillhouse.curate import SAMPLES
from stillhouse.models.local import LocalModel, Request, generate, load_model, prompt_ids, score
from stillhouse.models.reading import end_id, row_ids
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.records import Message, unwatched
from stillhouse.train import chunks, loop, rows
from stillhouse.train.capture import capture
from stillhouse.train.lessons import Lesson
from stillhouse.train.student import initial_student

SEEDS = 3
OPENING = 48  # characters of a story that the teacher is given
WRITTEN = 180  # and that it writes; its context is 256
WAYS = {"text": None, "chunks": 0.0, "both": 0.5}  # the share of cross-entropy beside the chunks


@dataclass(frozen=True, slots=True)
class Text:
    """An opening, and how it goes on."""

    opening: str
    rest: str


@dataclass(frozen=True, slots=True)
class Task:
    """`told` are continuations by the teacher, `real` the stories' own, neither seen by a student."""

    recipe: Recipe
    start: LocalModel
    learned: Sequence[rows.Row]
    lessons: dict[str, Lesson | None]
    told: Sequence[Text]
    real: Sequence[Text]
    teacher_told: float  # nats per character
    teacher_real: float


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = learning(options.quick, Path(folder))
    show(header(0, ["stillhouse", "torch", "transformers", "numpy"]), found, options.json)


def learning(quick: bool, folder: Path) -> list[Row]:
    task = prepared(quick, folder)
    before = nats(task.start, task.told) - task.teacher_told, nats(task.start, task.real)
    seeds = [{way: one(task, way, seed, folder) for way in WAYS} for seed in range(1 if quick else SEEDS)]
    return figures(task, before, seeds)


def prepared(quick: bool, folder: Path) -> Task:
    teacher = load_model(str(need(DATA / "models" / "babyllama361")))
    student = need(DATA / "models" / "stories260K")
    stories = (
        need(DATA / "text" / "tinystories_sample_2MB.txt").read_text(errors="ignore").split("<|endoftext|>")
    )
    real = [cut(part) for part in stories if len(part) > 2 * (OPENING + WRITTEN)]
    taught, tested = (48, 24) if quick else (400, 160)
    asked = real[: taught + tested]
    told = [Text(text.opening, answer) for text, answer in zip(asked, answered(teacher, asked), strict=True)]
    recipe = recipe_of(teacher, student, quick)
    start = initial_student(recipe, None)
    samples = folder / "samples.parquet"
    write(samples, told[:taught])
    learned, _ = rows.read_rows(samples, start, recipe.train.max_length)
    binding = chunks.bound(teacher, "babyllama361", "", start.reader)
    reads = chunks.reading(teacher, start.reader, samples, learned, 4096)
    shards = capture(reads, learned, folder, folder / "captured.json", binding, None, lambda _: None)
    lessons: dict[str, Lesson | None] = {
        way: None if hard is None else chunks.told(folder, [(binding, tuple(shards))], start.reader, hard)
        for way, hard in WAYS.items()
    }
    for lesson in filter(None, lessons.values()):
        assert all(lesson.has(row) for row in learned)
    held_out, going_on = told[taught:], real[taught + tested : taught + 2 * tested]
    return Task(
        recipe, start, learned, lessons, held_out, going_on, nats(teacher, held_out), nats(teacher, going_on)
    )


def cut(story: str) -> Text:
    """At a blank, which the tokenizers put before each part by themselves."""
    text = " ".join(story.split())
    at = text.index(" ", OPENING)
    return Text(text[:at], text[at + 1 : at + 1 + WRITTEN].rsplit(" ", 1)[0])


def answered(teacher: LocalModel, asked: Sequence[Text]) -> list[str]:
    prompts = [prompt_ids(teacher, [Message("user", text.opening)]) for text in asked]
    requests = [
        Request(prompt, min(WRITTEN, 250 - len(prompt)), temperature=1.0, seed=at)
        for at, prompt in enumerate(prompts)
    ]
    return [answer.text.strip() for answer in generate(teacher, requests, batch=64)]


def recipe_of(teacher: LocalModel, student: Path, quick: bool) -> Recipe:
    return parse_recipe(
        {
            "run": {"name": "alm"},
            "teacher": {"model": teacher.source},
            "prompts": {"source": "stories"},
            "student": {"init": str(student)},
            "train": {
                "objective": "distil",
                "distil": {"unit": "chunk"},
                "dtype": "float32",
                "optimiser": "muon",
                "learning_rate": 1.5e-4,
                "epochs": 1 if quick else 3,
                "batch_tokens": 2048,
            },
        }
    )


def write(path: Path, texts: Sequence[Text]) -> None:
    found = [
        {
            "id": f"s{at}",
            "messages": [{"role": "user", "content": text.opening}],
            "completion": text.rest,
            "teacher": "babyllama361",
            "leaves": [at],
        }
        for at, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(found, schema=SAMPLES), path)


def one(task: Task, way: str, seed: int, folder: Path) -> tuple[float, float]:
    """What a student of this way came to: its distance from the teacher, and its nats on real stories."""
    run = task.recipe.run.model_copy(update={"seed": seed})
    student = initial_student(task.recipe.model_copy(update={"run": run}), None)
    model = student.model.requires_grad_(True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        where = Path(place)
        log, key = where / "losses.jsonl", f"{way} {seed}"
        began = time.process_time()
        loop.fit(
            model,
            task.learned,
            [],
            task.recipe.train,
            seed,
            where / "steps",
            log,
            key,
            unwatched,
            time.monotonic,
            task.lessons[way],
        )
    seconds = time.process_time() - began
    learned = replace(student, model=model.eval())
    found = nats(learned, task.told) - task.teacher_told, nats(learned, task.real)
    print(f"seed {seed}, {way}: {found}, {seconds:.0f} s of a core", file=sys.stderr, flush=True)
    return found


def nats(model: LocalModel, texts: Sequence[Text]) -> float:
    """-log p of the continuations, given their openings, per character."""
    made: list[Any] = [
        row_ids(model.reader, [Message("user", text.opening)], text.rest, end_id(model.reader))
        for text in texts
    ]
    scored = score(model, [ids[:-1].tolist() for ids, _ in made])
    lost = [
        -sum(token.logprob for token in row[start:] if token)
        for row, (_, start) in zip(scored, made, strict=True)
    ]
    return math.fsum(lost) / sum(len(text.rest) for text in texts)


def figures(
    task: Task, before: tuple[float, float], seeds: Sequence[dict[str, tuple[float, float]]]
) -> list[Row]:
    unit = "nats/character"
    lesson = task.lessons["chunks"]
    assert lesson is not None
    made = [
        Row("the teacher's own entropy, on its continuations", task.teacher_told, unit),
        Row("student before: distance from the teacher", before[0], unit),
        Row("student before: real stories", before[1], unit, peer="teacher", peer_value=task.teacher_real,
            ratio=before[1] / task.teacher_real),
        Row("size of the targets", lesson.bytes_per_token, "bytes/token of the student"),
    ]  # fmt: skip
    for at, what in enumerate(("distance from the teacher", "real stories")):
        of = {way: np.array([found[way][at] for found in seeds]) for way in WAYS}
        text = float(of["text"].mean())
        for way in WAYS:
            row = interval(f"{way}: {what}", of[way], unit)
            peer = {} if way == "text" else {"peer": "text", "peer_value": text}
            made.append(replace(row, **peer, ratio=None if way == "text" else (row.value or 0.0) / text))
        for way in ("chunks", "both"):
            less = interval(f"{what}, {way} less text", of[way] - of["text"], unit)
            target = {"target": "< 0", "holds": less.high is not None and less.high < 0} if at == 0 else {}
            made.append(replace(less, **target))
    return made


if __name__ == "__main__":
    main()
