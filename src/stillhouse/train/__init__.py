"""Train the student on the samples of a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import UsageError, storage
from stillhouse.recipe import Recipe
from stillhouse.records import Watch, unwatched
from stillhouse.workspace import RunFolder


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training was, JSON-able. Losses in nats per token; `train_loss` is the mean over the last epoch,
    `held_out_loss` the last one measured, None without held-out rows.

    `rows` is what was trained on, `rows_held_out` what only measured the loss, and `rows_left_out` counts the
    rest by reason: together they are the samples. `tokens` are the tokens read over all epochs without
    padding, `target_tokens` those of them that bear a loss. `trainable` is less than `parameters` for LoRA.
    """

    steps: int
    epochs: float
    tokens: int
    target_tokens: int
    seconds: float
    train_loss: float
    held_out_loss: float | None
    rows: int
    rows_held_out: int
    rows_left_out: dict[str, int]
    parameters: int
    trainable: int
    dtype: str
    device: str
    tokenizer: str


def train(
    run: RunFolder,
    recipe: Recipe,
    watch: Watch = unwatched,
    teacher_folder: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Train the recipe's student on `run.samples`; write `run.student`, `run.student_before`, `run.losses`.

    `run.student_before` is a folder for a student that was made here (`config`, `from_teacher`) and else a
    one-line file with the folder or hub id that it came from. `run.student` is float32 whatever the autocast.
    A training that was stopped goes on from its last checkpoint and ends with the same weights.

    Raises UsageError (nothing to train on, settings that do not fit), ModelError (not a usable model, memory,
    a loss that is no number), StorageError, Interrupted.
    """
    from stillhouse.train import checkpoint, loop
    from stillhouse.train import rows as row
    from stillhouse.train import student as students

    student = students.initial_student(recipe, teacher_folder)
    rows, left_out = row.read_rows(run.samples, student, recipe.train.max_length)
    learnt, held_out = row.split_held_out(rows, recipe.train.held_out, recipe.run.seed)
    if not learnt:
        raise UsageError(
            "there is nothing to train on",
            f"all samples were left out: {left_out}",
            "raise `train.max_length`, or see what curate kept",
        )
    tokenizer = students.tokenizer_digest(student.tokenizer)
    key = _key(run.samples, recipe, tokenizer, students.weights_of(student.model))
    students.save_before(student, run.student_before)

    parameters = sum(p.numel() for p in student.model.parameters())
    model = students.with_adapter(recipe.student, student.model, recipe.run.seed)
    trained = loop.fit(
        model,
        learnt,
        held_out,
        recipe.train,
        recipe.run.seed,
        checkpoint.folder_of(run.checkpoints, key),
        run.losses,
        key,
        watch,
        clock,
    )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    device = student.model.device.type
    students.save_student(student, model, run.student)
    return TrainResult(
        steps=trained.steps,
        epochs=recipe.train.epochs,
        tokens=trained.tokens,
        target_tokens=trained.target_tokens,
        seconds=trained.seconds,
        train_loss=trained.loss,
        held_out_loss=trained.held_out,
        rows=len(learnt),
        rows_held_out=len(held_out),
        rows_left_out=left_out,
        parameters=parameters,
        trainable=trainable,
        dtype=trained.dtype,
        device=device,
        tokenizer=tokenizer,
    )


def _key(samples: Path, recipe: Recipe, tokenizer: str, weights: str) -> str:
    """What a checkpoint must share to be continued: samples, student, settings, seed, and the libraries."""
    import torch
    import transformers

    with storage("read", samples), samples.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = recipe.train.model_dump(mode="json", exclude={"checkpoint_seconds"})
    parts = [digest, tokenizer, weights, settings, recipe.student.model_dump(mode="json"), recipe.run.seed]
    return hashlib.sha256(
        json.dumps([*parts, torch.__version__, transformers.__version__], sort_keys=True).encode()
    ).hexdigest()
