"""What a student learns beside the text of its samples: who teaches, where from, and along which text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.recipe import Recipe
from stillhouse.records import Progress, Watch
from stillhouse.train.processes import Processes
from stillhouse.workspace import RunFolder

if TYPE_CHECKING:
    from stillhouse.ask.scores import Readings
    from stillhouse.ledger.targets import Binding
    from stillhouse.models.local import LocalModel
    from stillhouse.train.lessons import Lesson
    from stillhouse.train.on_policy import OwnText
    from stillhouse.train.rows import Row


@dataclass(frozen=True, slots=True)
class Source:
    """Where probabilities come from: the workspace's folder of shards, those that collecting wrote of the
    run's answers (binding and digests), and what the teacher is called and its weights. `remote` is a
    teacher at an endpoint, that reads the rows there."""

    folder: Path
    answers: Sequence[tuple[Binding, tuple[str, ...]]] = ()
    teacher: str = ""
    revision: str = ""
    remote: Readings | None = None


@dataclass(frozen=True, slots=True)
class Taught:
    """`rows` are those that something is known of, with the `lesson` of them; with `own` the student writes
    itself to some of them. `notices` are for whoever asked for the training."""

    rows: Sequence[Row]
    lesson: Lesson | None = None
    own: OwnText | None = None
    notices: list[str] = field(default_factory=list)


def teach(
    run: RunFolder,
    recipe: Recipe,
    student: LocalModel,
    rows: Sequence[Row],
    left_out: dict[str, int],
    teacher_folder: str | None,
    source: Source,
    watch: Watch,
    processes: Processes,
) -> Taught:
    """Find or make what the recipe's objective learns of these rows; others are counted in `left_out`.

    Raises what `train` does.
    """
    from stillhouse.train.forward import check_packing

    own, notices = None, list[str]()
    teacher = _teacher(recipe, student, teacher_folder, source)
    if recipe.train.objective == "on_policy":
        own = _own_text(recipe, student, rows, teacher, source)
        limit = own.limit
        rows = _kept(rows, left_out, "too long for the teacher", lambda row: len(row.ids) <= limit)
    with processes.first_before_others():
        lesson = _lesson(run, recipe, student, rows, teacher, source, watch, notices)
    along = recipe.train.objective == "on_policy" or recipe.train.distil.online
    if recipe.train.packing and along and teacher is not None:  # else it reads rows apart, and once
        check_packing(teacher.model, "teacher")
    return Taught(_kept(rows, left_out, "no targets", lesson.has), lesson, own, notices)


def _kept(
    rows: Sequence[Row], left_out: dict[str, int], reason: str, fits: Callable[[Row], bool]
) -> list[Row]:
    """The rows that fit; the others are counted in `left_out`."""
    kept = [row for row in rows if fits(row)]
    if without := len(rows) - len(kept):
        left_out[reason] = left_out.get(reason, 0) + without
    return kept


def _teacher(recipe: Recipe, student: LocalModel, folder: str | None, source: Source) -> LocalModel | None:
    """The teacher itself, where it has to read here what is learned."""
    from stillhouse.models import preflight
    from stillhouse.train import lessons, remote

    settings = recipe.train.distil
    if recipe.train.objective == "distil" and settings.targets == "answers":
        return None
    if source.remote is not None:
        remote.check_tokenizer(settings.tokenizer, student.reader)
        return None
    if recipe.train.objective == "distil" and settings.unit == "chunk":
        return lessons.open_any_teacher(folder, student.reader)
    teacher = lessons.open_teacher(folder, student.reader)
    rows = (each.model.get_output_embeddings().weight.shape[0] for each in (student, teacher))
    preflight.check_outputs(len(student.reader.vocabulary().raw), *rows)
    return teacher


def _own_text(
    recipe: Recipe, student: LocalModel, rows: Sequence[Row], teacher: LocalModel | None, source: Source
) -> OwnText:
    """The student as one that writes, no longer than both models can read."""
    from stillhouse.train import lessons, remote
    from stillhouse.train.on_policy import OwnText

    settings, limits = recipe.train.on_policy, [recipe.train.max_length, student.context]
    longest = max((len(row.ids) - row.start for row in rows), default=1)
    if teacher is None:
        assert source.remote is not None
        lesson = remote.read_along(source.remote, student.reader, recipe.train.distil, settings)
    else:
        lesson = lessons.online(teacher, source.revision, settings)
        limits.append(teacher.context)
    return OwnText(
        student,
        lesson,
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
    notices: list[str],
) -> Lesson:
    """What the student learns beside the text of the samples; `notices` is told of rows that have nothing."""
    from stillhouse.train import chunks, lessons, remote, vectors
    from stillhouse.train.capture import capture, read_here

    settings, tokens = recipe.train.distil, recipe.train.batch_tokens
    if settings.targets == "answers":
        if not source.answers:
            raise lessons.without_answers()
        if settings.unit == "chunk":
            return chunks.told(source.folder, source.answers, student.reader, settings.hard)
        return lessons.stored(source.folder, source.answers, student.reader, settings)
    if settings.online:
        assert teacher is not None
        return lessons.online(teacher, source.revision, settings, settings.hard)
    unique = list({row.id: row for row in rows}.values())
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        watch(Progress("train", done, len(unique), "rows", note="the teacher reads them"))

    seed = recipe.run.seed
    if settings.unit == "chunk":
        assert teacher is not None
        binding = chunks.bound(teacher, source.teacher, source.revision, student.reader)
        reads = chunks.reading(teacher, student.reader, run.samples, unique, tokens)
        shards = capture(reads, unique, source.folder, run.captured, binding, None, advance)
        return chunks.told(source.folder, [(binding, tuple(shards))], student.reader, settings.hard)
    if settings.keep == "vectors":
        assert teacher is not None
        head = vectors.readout(teacher)
        binding = vectors.bound(teacher, head, source.teacher, source.revision, settings)
        whole = partial(vectors.read, teacher.model, binding=binding, batch_tokens=tokens)
        shards = capture(whole, unique, source.folder, run.captured, binding, None, advance)
        return vectors.told(source.folder, (binding, tuple(shards)), student.reader, settings, head)
    if there := source.remote:
        unread = remote.have_read(there, unique, settings, run.readings, watch)
        told = remote.not_recalled(there, unique, settings, unread)
        binding = remote.binding_of(there, student.reader, settings)
        reads = partial(remote.read_there, there, student=student.reader, settings=settings, unread=unread)
    else:
        assert teacher is not None
        unread, told = Counter(), unique
        binding = lessons.captured(teacher, source.teacher, source.revision, settings)
        reads = partial(read_here, teacher.model, binding=binding, seed=seed, batch_tokens=tokens)
    shards = capture(reads, told, source.folder, run.captured, binding, seed, advance)
    if unread:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(unread.items()))
        notices.append(f"the teacher told nothing of {unread.total()} of {len(unique)} rows: {reasons}")
    return lessons.stored(source.folder, [(binding, tuple(shards))], student.reader, settings)
