"""Train the student on the samples of a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import UsageError, storage
from stillhouse.recipe import Recipe
from stillhouse.records import Watch, unwatched
from stillhouse.train.processes import Processes, check_shared, in_company, join, launched
from stillhouse.train.teaching import Source, Taught, teach
from stillhouse.workspace import RunFolder

__all__ = ["Source", "TrainResult", "check_shared", "dismiss", "follow", "launched", "train"]

if TYPE_CHECKING:
    from stillhouse.models.local import LocalModel
    from stillhouse.train.preference import Preferred
    from stillhouse.train.rows import Row
    from stillhouse.train.tracking import Track


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training was, JSON-able. Losses are the objective's, in nats per token; `train_loss` is the mean
    over the last epoch, `held_out_loss` the last one measured, None without held-out rows.

    `rows` is what was trained on, `rows_held_out` what only measured the loss, and `rows_left_out` counts the
    rest by reason: together they are the samples. `rationales` says what the second task had, None without
    one (see `rationale.Rationales`); held-out loss is that of answers alone, `train_loss` that of both.
    `tokens` are the tokens read over all epochs without padding, `target_tokens` those of them that bear a
    loss. `trainable` is less than `parameters` for LoRA.

    `preference` says what pairs of answers did after that (see `preference.Preferred`), None without any; its
    steps and losses are its own, and nothing else here is about them but `seconds`.

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
    processes: int = 1
    own: dict[str, float] | None = None
    rationales: dict[str, Any] | None = None
    preference: dict[str, Any] | None = None
    notices: list[str] = field(default_factory=list)


# What the first process tells the others
Task = tuple[RunFolder, Recipe, str | None, Source | None, Path | None]


def train(
    run: RunFolder,
    recipe: Recipe,
    watch: Watch = unwatched,
    teacher_folder: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    source: Source | None = None,
    dropped: Path | None = None,
) -> TrainResult:
    """Train the recipe's student on `run.samples`; write `run.student`, `run.student_before`, `run.losses`.

    With `train.objective` "distil" it learns probabilities, which `source` says where to find or to keep;
    with "on_policy" also along text that it writes itself. With `train.preference` it goes on with pairs of
    answers; wrong ones are those in the file `dropped`, the run's own when left out.

    `run.student_before` is a folder for a student that was made here (`config`, `from_teacher`) and else a
    one-line file with the folder or hub id that it came from. `run.student` is float32 whatever the autocast.
    A training that was stopped goes on from its last checkpoint and ends with the same weights. Under a
    launcher of several processes (see `processes`) this is called by the first; the others `follow`.

    Raises UsageError (nothing to train on, settings that do not fit), ModelError (not a usable model, memory,
    a loss that is no number, own text that runs on without end), LedgerError (shards that are not those of
    these rows), StorageError, Interrupted, and what `ask.ask` raises where the teacher is at an endpoint.
    """
    processes = join()
    check_shared(recipe, source is not None and source.remote is not None, processes.count)
    task: Task = processes.tell((run, recipe, teacher_folder, source, dropped))
    with in_company():
        return _train(task, watch, clock, processes)


def follow() -> None:
    """The part of every process but the first: to share in the training that the first begins, if it does.
    Raises what `train` does."""
    processes = join()
    if task := processes.tell(None):
        with in_company():
            _train(task, unwatched, time.monotonic, processes)


def dismiss() -> None:
    """Tell the processes that follow that there is nothing to train."""
    join().tell(None)


def _train(task: Task, watch: Watch, clock: Callable[[], float], processes: Processes) -> TrainResult:
    from stillhouse.train import checkpoint, health, loop, pruning, rationale, shards, standing
    from stillhouse.train import rows as row
    from stillhouse.train import student as students
    from stillhouse.train.forward import check_packing
    from stillhouse.train.losses import kernel_notices, sound, try_kernels
    from stillhouse.train.tracking import tracked

    run, recipe, teacher_folder, source, dropped = task
    divided = recipe.train.shard and processes.count > 1
    student = students.initial_student(recipe, teacher_folder, "cpu" if divided else None)
    rows, left_out = row.read_rows(run.samples, student, recipe.train.max_length)
    taught, tried = Taught(rows), try_kernels(student.model.device)
    if recipe.train.objective != "sequence":
        if source is None:
            raise ValueError("to learn probabilities, say where they are kept")
        sound(shards.place() if divided else student.model.device)  # before anything depends on the losses
        taught = teach(run, recipe, student, rows, left_out, teacher_folder, source, watch, processes)
    lesson, own = taught.lesson, taught.own
    learnt, held_out = row.split_held_out(taught.rows, recipe.train.held_out, recipe.run.seed)
    if not learnt:
        raise UsageError(
            "there is nothing to train on",
            f"all samples were left out: {left_out}",
            "raise `train.max_length`, or see what curate kept",
        )
    if recipe.student.pruned:
        pruning.prune(student.model, recipe.student, learnt, recipe.train.batch_tokens, recipe.run.seed)
    why = None
    if recipe.train.rationale is not None:
        weight = recipe.train.rationale.weight
        why = rationale.rationales(run.samples, student, learnt, recipe.train.max_length, weight)
    tokenizer = students.tokenizer_digest(student.tokenizer)
    weights = students.weights_of(student.model)
    lessons = [each.name for each in (lesson, own and own.lesson) if each]
    key = _key(run.samples, recipe, tokenizer, weights, " ".join(lessons))
    if processes.first:
        students.save_before(student, run.student_before)

    parameters = sum(p.numel() for p in student.model.parameters())
    if recipe.train.packing:
        check_packing(student.model, "student")
    model = students.with_adapter(recipe.student, student.model, recipe.run.seed)
    with processes.first_before_others():
        checkpoints = checkpoint.folder_of(run.checkpoints, key)
    tracker = recipe.train.track if processes.first else None
    with tracked(tracker, run.root.name, run.logs / "tensorboard") as track:
        trained = loop.fit(
            model,
            learnt,
            held_out,
            recipe.train,
            recipe.run.seed,
            checkpoints,
            run.losses,
            key,
            watch,
            clock,
            lesson,
            own,
            processes,
            track,
            why.rows if why else (),
        )
        preferred = None
        if recipe.train.preference is not None:
            wrong = dropped or run.dropped
            preferred = _prefer(
                model, student, learnt, held_out, recipe, trained.dtype, run, wrong, key, watch, clock, track
            )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    device = student.model.device.type
    whole = shards.gathered(model.state_dict(keep_vars=True), processes.first) if divided else None
    if processes.first:
        students.save_student(student, model, run.student, whole)
    return TrainResult(
        steps=trained.steps,
        epochs=trained.epochs,
        tokens=trained.tokens,
        target_tokens=trained.target_tokens,
        seconds=trained.seconds + (preferred.seconds if preferred else 0.0),
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
        processes=processes.count,
        own=trained.own,
        rationales=why.record() if why else None,
        preference=preferred.record() if preferred else None,
        notices=[
            *kernel_notices(tried),
            *taught.notices,
            *standing.notices(trained.best, trained.steps, recipe.train.patience),
            *health.notices(trained.own),
        ],
    )


def _prefer(
    model: Any,
    student: LocalModel,
    learnt: Sequence[Row],
    held_out: Sequence[Row],
    recipe: Recipe,
    dtype: str,
    run: RunFolder,
    dropped: Path,
    key: str,
    watch: Watch,
    clock: Callable[[], float],
    track: Track,
) -> Preferred:
    """Let the trained student learn from pairs; held-out rows make the pairs that only measure."""
    from stillhouse.train import checkpoint, pairs
    from stillhouse.train.preference import prefer

    settings, seed = recipe.train, recipe.run.seed
    assert settings.preference is not None
    if settings.preference.pairs == "answers":
        limit = settings.max_length
        better, measured = (
            pairs.ranked(rows, run.samples, dropped, student, limit) for rows in (learnt, held_out)
        )
    else:
        longest = max(len(row.ids) - row.start for row in learnt)
        limit = min(settings.max_length, student.context or settings.max_length)
        ids = len(student.reader.vocabulary().raw)
        better, measured = (
            pairs.own(rows, student, 2 * longest, limit, ids, seed) for rows in (learnt, held_out)
        )
    how = settings.preference.model_dump_json()
    about = f"{key} {how} {better.digest} {measured.digest} trl {version('trl')}"
    whole = hashlib.sha256(about.encode()).hexdigest()
    return prefer(
        model,
        student.tokenizer,
        better,
        measured,
        settings,
        seed,
        dtype,
        checkpoint.folder_of(checkpoint.folder_of(run.checkpoints, key) / "preference", whole),
        run.losses,
        whole,
        watch,
        clock,
        track,
    )


def _key(samples: Path, recipe: Recipe, tokenizer: str, weights: str, lesson: str) -> str:
    """What a checkpoint must share to be continued: samples, student, targets, settings, seed, libraries."""
    import torch
    import transformers

    with storage("read", samples), samples.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = recipe.train.model_dump(mode="json", exclude={"checkpoint_seconds", "track", "preference"})
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
