"""Train the student on the samples of a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.errors import UsageError, storage
from stillhouse.recipe import Recipe
from stillhouse.records import Progress, Watch, unwatched
from stillhouse.workspace import RunFolder

if TYPE_CHECKING:
    from stillhouse.ledger.targets import Binding
    from stillhouse.models.local import LocalModel
    from stillhouse.train.lessons import Lesson
    from stillhouse.train.on_policy import OwnText
    from stillhouse.train.rows import Row


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training was, JSON-able. Losses are the objective's, in nats per token; `train_loss` is the mean
    over the last epoch, `held_out_loss` the last one measured, None without held-out rows.

    `rows` is what was trained on, `rows_held_out` what only measured the loss, and `rows_left_out` counts the
    rest by reason: together they are the samples. `tokens` are the tokens read over all epochs without
    padding, `target_tokens` those of them that bear a loss. `trainable` is less than `parameters` for LoRA.

    `own` is what the student's own text was like in the last epoch (see `health`), None where it wrote none,
    and `notices` are for whoever asked for the training.
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
    objective: str
    shards: list[str]
    bytes_per_token: float | None
    own: dict[str, float] | None = None
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Source:
    """Where probabilities come from: the workspace's folder of shards, those that collecting wrote of the
    run's answers (binding and digests), and what the teacher is called and its weights."""

    folder: Path
    answers: Sequence[tuple[Binding, tuple[str, ...]]] = ()
    teacher: str = ""
    revision: str = ""


def train(
    run: RunFolder,
    recipe: Recipe,
    watch: Watch = unwatched,
    teacher_folder: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    source: Source | None = None,
) -> TrainResult:
    """Train the recipe's student on `run.samples`; write `run.student`, `run.student_before`, `run.losses`.

    With `train.objective` "distil" it learns probabilities, which `source` says where to find or to keep;
    with "on_policy" also along text that it writes itself.

    `run.student_before` is a folder for a student that was made here (`config`, `from_teacher`) and else a
    one-line file with the folder or hub id that it came from. `run.student` is float32 whatever the autocast.
    A training that was stopped goes on from its last checkpoint and ends with the same weights.

    Raises UsageError (nothing to train on, settings that do not fit), ModelError (not a usable model, memory,
    a loss that is no number, own text that runs on without end), LedgerError (shards that are not those of
    these rows), StorageError, Interrupted.
    """
    from stillhouse.train import checkpoint, health, loop
    from stillhouse.train import rows as row
    from stillhouse.train import student as students
    from stillhouse.train.losses import sound

    student = students.initial_student(recipe, teacher_folder)
    rows, left_out = row.read_rows(run.samples, student, recipe.train.max_length)
    lesson = own = None
    if recipe.train.objective != "sequence":
        if source is None:
            raise ValueError("to learn probabilities, say where they are kept")
        sound(student.model.device)  # before anything depends on the losses
        teacher = _teacher(recipe, student, teacher_folder)
        if recipe.train.objective == "on_policy":
            assert teacher is not None
            own = _own_text(recipe, student, rows, teacher, source.revision)
            rows = _kept(rows, left_out, "too long for the teacher", lambda row: len(row.ids) <= own.limit)
        lesson = _lesson(run, recipe, student, rows, teacher, source, watch)
        rows = _kept(rows, left_out, "no targets", lesson.has)
    learnt, held_out = row.split_held_out(rows, recipe.train.held_out, recipe.run.seed)
    if not learnt:
        raise UsageError(
            "there is nothing to train on",
            f"all samples were left out: {left_out}",
            "raise `train.max_length`, or see what curate kept",
        )
    tokenizer = students.tokenizer_digest(student.tokenizer)
    weights = students.weights_of(student.model)
    lessons = [each.name for each in (lesson, own and own.lesson) if each]
    key = _key(run.samples, recipe, tokenizer, weights, " ".join(lessons))
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
        lesson,
        own,
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
        objective=recipe.train.objective,
        shards=list(lesson.shards) if lesson else [],
        bytes_per_token=lesson.bytes_per_token if lesson else None,
        own=trained.own,
        notices=health.notices(trained.own),
    )


def _kept(
    rows: Sequence[Row], left_out: dict[str, int], reason: str, fits: Callable[[Row], bool]
) -> list[Row]:
    """The rows that fit; the others are counted in `left_out`."""
    kept = [row for row in rows if fits(row)]
    if without := len(rows) - len(kept):
        left_out[reason] = left_out.get(reason, 0) + without
    return kept


def _teacher(recipe: Recipe, student: LocalModel, folder: str | None) -> LocalModel | None:
    """The teacher itself, where it has to read what is learned."""
    from stillhouse.models import preflight
    from stillhouse.train import lessons

    settings = recipe.train.distil
    if recipe.train.objective == "distil" and settings.targets == "answers":
        return None
    if recipe.train.objective == "distil" and settings.unit == "chunk":
        return lessons.open_any_teacher(folder, student.reader)
    teacher = lessons.open_teacher(folder, student.reader)
    rows = (each.model.get_output_embeddings().weight.shape[0] for each in (student, teacher))
    preflight.check_outputs(len(student.reader.vocabulary().raw), *rows)
    return teacher


def _own_text(
    recipe: Recipe, student: LocalModel, rows: Sequence[Row], teacher: LocalModel, revision: str
) -> OwnText:
    """The student as one that writes, no longer than both models can read."""
    from stillhouse.train import lessons
    from stillhouse.train.on_policy import OwnText

    settings, limits = recipe.train.on_policy, (recipe.train.max_length, student.context, teacher.context)
    longest = max((len(row.ids) - row.start for row in rows), default=1)
    return OwnText(
        student,
        lessons.online(teacher, revision, settings),
        settings,
        settings.max_tokens or 2 * longest,
        min(limit for limit in limits if limit),
        recipe.train.batch_tokens,
        recipe.run.seed,
    )


def _lesson(
    run: RunFolder,
    recipe: Recipe,
    student: LocalModel,
    rows: Sequence[Row],
    teacher: LocalModel | None,
    source: Source,
    watch: Watch,
) -> Lesson:
    """What the student learns beside the text of the samples."""
    from stillhouse.train import chunks, lessons
    from stillhouse.train.capture import capture

    settings, tokens = recipe.train.distil, recipe.train.batch_tokens
    if settings.targets == "answers":
        if not source.answers:
            raise lessons.without_answers()
        if settings.unit == "chunk":
            return chunks.told(source.folder, source.answers, student.reader, settings.hard)
        return lessons.stored(source.folder, source.answers, student.reader, settings)
    assert teacher is not None
    if settings.online:
        return lessons.online(teacher, source.revision, settings, settings.hard)
    unique = list({row.id: row for row in rows}.values())
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        watch(Progress("train", done, len(unique), "rows", note="the teacher reads them"))

    if settings.unit == "chunk":
        binding = chunks.bound(teacher, source.teacher, source.revision, student.reader)
        shards = chunks.capture(
            teacher,
            student.reader,
            run.samples,
            unique,
            source.folder,
            run.captured,
            binding,
            tokens,
            advance,
        )
        return chunks.told(source.folder, [(binding, tuple(shards))], student.reader, settings.hard)
    binding = lessons.captured(teacher, source.teacher, source.revision, settings)
    shards = capture(
        teacher.model, unique, source.folder, run.captured, binding, recipe.run.seed, tokens, advance
    )
    return lessons.stored(source.folder, [(binding, tuple(shards))], student.reader, settings)


def _key(samples: Path, recipe: Recipe, tokenizer: str, weights: str, lesson: str) -> str:
    """What a checkpoint must share to be continued: samples, student, targets, settings, seed, libraries."""
    import torch
    import transformers

    with storage("read", samples), samples.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = recipe.train.model_dump(mode="json", exclude={"checkpoint_seconds"})
    parts = [
        digest,
        tokenizer,
        weights,
        lesson,
        settings,
        recipe.student.model_dump(mode="json"),
        recipe.run.seed,
    ]
    return hashlib.sha256(
        json.dumps([*parts, torch.__version__, transformers.__version__], sort_keys=True).encode()
    ).hexdigest()
