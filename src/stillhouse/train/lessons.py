"""Lessons: whose probabilities a student learns, and how it gets those of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers

from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger.targets import Binding, TargetReader, holds_chunks
from stillhouse.ledger.targets import Targets as PackedTargets
from stillhouse.models import preflight
from stillhouse.models.local import LocalModel, load_model
from stillhouse.models.reading import Reader
from stillhouse.recipe import Distil, Measure
from stillhouse.train.forward import scores_at, states_at
from stillhouse.train.losses import (
    ChunkTargets,
    Divergence,
    Objective,
    Targets,
    TeacherStates,
    divergence,
    head_of,
    unpacked,
    whole_distributions,
    with_text,
)
from stillhouse.train.rows import Batch, Row

Shards = tuple[Binding, tuple[str, ...]]  # digests (hex) of shards that are bound alike


@dataclass(frozen=True, slots=True)
class Lesson:
    """`targets` gives those of a batch's N places, in their order, of rows that `has` them. `vocabulary` is
    the number of real ids; `shards` (digests) is what was read from, empty where nothing was stored, and
    `name` tells one source of probabilities from another."""

    name: str
    objective: Objective
    vocabulary: int
    has: Callable[[Row], bool]
    targets: Callable[[Sequence[Row], Batch], Targets | ChunkTargets]
    shards: tuple[str, ...] = ()
    bytes_per_token: float | None = None


def objective_of(settings: Measure, hard: float = 0.0) -> Objective:
    chosen: dict[str, Divergence] = {
        "forward_kl": divergence.forward_kl,
        "reverse_kl": divergence.reverse_kl,
        "jensen_shannon": partial(divergence.jensen_shannon, beta=settings.beta),
        "skew_kl": partial(divergence.skew_kl, skew=settings.skew),
        "skew_reverse_kl": partial(divergence.skew_reverse_kl, skew=settings.skew),
    }
    return Objective(chosen[settings.divergence], settings.temperature, hard)


def open_teacher(folder: str | None, student: Reader) -> LocalModel:
    """The teacher, to read the student's rows itself.

    Raises UsageError unless both read and write the same ids: what is compared is what the ids spell, and not
    how many there are or what the tokenizer is called.
    """
    if folder is None:
        raise _not_here()
    teacher = load_model(folder)
    preflight.check(student, teacher.reader)
    return teacher


def open_any_teacher(folder: str | None, student: Reader) -> LocalModel:
    """The teacher, to read the answers in its own tokens, by its own template. Raises UsageError where that
    cannot be."""
    if folder is None:
        raise _not_here()
    teacher = load_model(folder)
    preflight.check_chunks(student, teacher.reader)
    return teacher


def _not_here() -> UsageError:
    return UsageError(
        "the teacher cannot read the training rows",
        "its weights are not on this machine",
        'set train.distil.targets = "answers" with collect.top_logprobs, where its server tells them',
    )


def without_answers() -> UsageError:
    return UsageError(
        "there are no probabilities to learn",
        "the answers of this run came without",
        "set `collect.top_logprobs` in the recipe and collect: it is part of what is asked, so answers that "
        "came without are asked anew",
    )


def captured(teacher: LocalModel, name: str, revision: str, settings: Distil) -> Binding:
    """How shards are bound that hold what this teacher says."""
    vocabulary = teacher.reader.vocabulary()
    return Binding(
        name,
        revision,
        vocabulary.digest,
        teacher.reader.template,
        min(len(vocabulary.raw), teacher.model.get_output_embeddings().weight.shape[0]),
        *settings.kept,
        f"transformers {transformers.__version__}, torch {torch.__version__}, {teacher.model.dtype}",
        settings.temperature if any(settings.kept) else 1.0,
    )


def online(teacher: LocalModel, revision: str, settings: Measure, hard: float = 0.0) -> Lesson:
    """The teacher reads every batch: its whole distributions, a chunk at a time, and nothing is stored."""
    model, head = teacher.model.eval(), head_of(teacher.model)
    vocabulary = len(teacher.reader.vocabulary().raw)

    def targets(rows: Sequence[Row], batch: Batch) -> Targets:
        with torch.no_grad(), torch.autocast(batch.ids_BT.device.type, enabled=False):
            if head is None:
                return scores_at(model, batch)
            return TeacherStates(states_at(model, batch), head)

    objective = objective_of(settings, hard)
    return Lesson(f"online {revision}", objective, vocabulary, lambda row: True, targets)


def stored(folder: Path, sources: Sequence[Shards], student: Reader, settings: Distil) -> Lesson:
    """The probabilities in these shards, which must be of the student's tokenizer and chat template.

    A row has targets where a shard holds its answer with just these ids; an answer whose text was changed
    since has none. Raises LedgerError for shards that are missing, damaged, or of another tokenizer or
    template, and ValueError for an objective that they cannot serve.
    """
    whole, sampled = any(bound.whole for bound, _ in sources), any(bound.draws for bound, _ in sources)
    temperature = max((bound.temperature for bound, _ in sources), default=1.0)  # all have one
    found: dict[str, Place] = {}
    readers = readers_of(folder, sources, student, chunks=False)

    def has(row: Row) -> bool:
        if (place := place_of(row, readers)) is not None:
            found[row.id] = place
        return place is not None

    def targets(rows: Sequence[Row], batch: Batch) -> Targets:
        packed = read([found[row.id] for row in rows])
        if whole:
            return whole_distributions(packed).to(batch.ids_BT.device)
        return with_text(unpacked(packed, sampled, temperature).to(batch.ids_BT.device), batch.targets_N)

    objective = objective_of(settings, settings.hard)
    return of_shards(objective, len(student.vocabulary().raw), has, targets, readers)


Place = tuple[TargetReader, int]  # where the targets of a row are


def of_shards(
    objective: Objective,
    vocabulary: int,
    has: Callable[[Row], bool],
    targets: Callable[[Sequence[Row], Batch], Targets | ChunkTargets],
    readers: Sequence[TargetReader],
) -> Lesson:
    shards = [shard for reader in readers for shard in reader.shards]
    digests = tuple(shard.path.stem for shard in shards)
    size = sum(len(shard.data) for shard in shards)
    each = size / max(1, sum(reader.positions for reader in readers))
    return Lesson(" ".join(digests), objective, vocabulary, has, targets, digests, each)


def readers_of(folder: Path, sources: Sequence[Shards], student: Reader, chunks: bool) -> list[TargetReader]:
    """Raises LedgerError for shards that are missing, damaged, of another tokenizer or template, or of
    another unit than `chunks` says."""
    if any(holds_chunks(bound) != chunks for bound, _ in sources):
        raise LedgerError(
            "the targets of this run are of another unit than the recipe asks for",
            f"they are of {'tokens' if chunks else 'chunks'}",
            "collect again: the shards are written anew from the ledger, and nobody is asked",
        )
    tokenizer, template = student.vocabulary().digest, student.template
    return [
        TargetReader(folder, digests, replace(bound, tokenizer=tokenizer, template=template))
        for bound, digests in sources
    ]


def place_of(row: Row, readers: Sequence[TargetReader]) -> Place | None:
    """None where no shard holds this row, or one holds it with other ids: its answer was changed since."""
    for reader in readers:
        if row.id in reader:
            try:
                return reader, reader.locate(row.id, row.ids, len(row.ids) - row.start)
            except LedgerError:
                return None
    return None


def read(places: Sequence[Place]) -> PackedTargets:
    """The targets of rows, which stand in shards of several teachers at worst."""
    if len({id(reader) for reader, _ in places}) == 1:
        return places[0][0].read([number for _, number in places])
    return joined([reader.read([number]) for reader, number in places])


def joined(parts: Sequence[PackedTargets]) -> PackedTargets:
    """The targets of several rows, one row after the other."""
    ends = np.cumsum([part.offsets_N1[-1] for part in parts])
    starts = [0, *ends[:-1].tolist()]
    offsets = [part.offsets_N1[:-1] + start for part, start in zip(parts, starts, strict=True)]
    return PackedTargets(
        np.concatenate([*offsets, ends[-1:]]),
        np.concatenate([part.ids_E for part in parts]),
        np.concatenate([part.logprobs_E for part in parts]),
        np.concatenate([part.log_tail_N for part in parts]),
    )
