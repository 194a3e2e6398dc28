"""One step of training: what is read, the loss and its gradient, the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillhouse.train import health
from stillhouse.train.lessons import Lesson
from stillhouse.train.loss import sequence_loss, taught_loss, to_device
from stillhouse.train.losses import ChunkTargets, Head, Targets
from stillhouse.train.losses.whole import counted
from stillhouse.train.on_policy import OwnText
from stillhouse.train.rows import Batch, Row, collate, epoch_batches

SCORES = 1 << 28  # most logits (rows times vocabulary) made at once: 1 GiB in float32

Precision = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Way:
    """How a batch's loss is made. `head` is the student's, where a lesson can use it apart from the rest, and
    `gather` says the same of plain cross-entropy. `own` marks text of the student's, which is examined."""

    lesson: Lesson | None
    head: Head | None
    gather: bool
    own: bool = False

    @property
    def narrow(self) -> bool:
        """Whether logits are made of the places that predict, and of no others."""
        return self.gather or self.head is not None


Group = tuple[Sequence[Row], Way]


class Turn(NamedTuple):
    """What a step reads: rows by how they are learned, and what the student's own among them are like."""

    groups: list[Group]
    tokens: int
    figures: dict[str, float] | None


class Stepped(NamedTuple):
    """A step's loss in nats per token, the gradient's norm before clipping, how many tokens bore a loss; of
    the student's own text its loss per token and how it agrees with the teacher, where there was any."""

    loss: float
    norm: float
    tokens: int
    own: dict[str, float] | None = None


def take_turn(
    rows: Sequence[Row],
    numbers: Sequence[int],
    way: Way,
    own: OwnText | None,
    step: int,
    per_epoch: int,
    precision: Precision,
) -> Turn:
    """The rows of these `numbers`, some with an answer of the student's where that has one to write now.

    Own text may be longer than what it stands for, so it is grouped anew into batches.
    """
    writes = own.writes(numbers, len(rows), step, per_epoch) if own else []
    read = [rows[number] for number in numbers if number not in set(writes)]
    groups: list[Group] = [(read, way)] if read else []
    if own is None or not writes:
        return Turn(groups, sum(len(row.ids) for row in read), None)
    answered = [rows[number] for number in writes]
    with precision():
        written = own.write(answered, writes, step)
    mine = Way(own.lesson, way.head, gather=False, own=True)
    for batch in epoch_batches([len(row.ids) for row in written], own.batch_tokens, 0, 0):
        groups.append(([written[number] for number in batch], mine))
    tokens = sum(len(row.ids) for row in [*read, *written])
    return Turn(groups, tokens, health.figures(answered, written, own.student.stop_ids))


def train_step(
    model: Any,
    causal: Any,
    groups: Sequence[Group],
    optimisers: Sequence[torch.optim.Optimizer],
    clip: float,
    precision: Precision,
    vocabulary: int,
    parts: int | None = None,
    halves: Executor | None = None,
) -> Stepped:
    """One optimiser step over the rows of all `groups`.

    A group is cut into parts where all its logits at once would be too many; each part's loss is divided by
    the tokens of the whole, so the gradient is that of one batch. With `halves`, an executor of two threads,
    a batch that need not be cut is worked in two parts at once. A step whose loss or gradient is not finite
    changes nothing.
    """
    halved = halves is not None and len(groups) == 1
    cut = [part for group in groups for part in _parts(*group, vocabulary, parts, halved)]
    lessons = [(way, *_prepared(rows, way, causal.device)) for rows, way in cut]
    count = sum(number for *_, number in lessons)
    own = [at for at, (_, way) in enumerate(cut) if way.own]

    def backward(part: int) -> tuple[Tensor, Tensor | None]:
        way, batch, targets, _ = lessons[part]
        with precision():
            total, seen = _loss(causal, batch, targets, way)
            loss = total / max(count, 1)
        loss.backward()
        return loss.detach(), seen

    if halves is not None and len(cut) == 2:
        done = list(halves.map(backward, range(2)))  # a + b = b + a: which half ends first changes nothing
    else:
        done = [backward(part) for part in range(len(cut))]
    losses = [loss for loss, _ in done]
    total = torch.stack(losses).sum()
    norm = float(torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip))
    value = float(total)
    for optimiser in optimisers:
        if math.isfinite(value) and math.isfinite(norm):
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    if not own:
        return Stepped(value, norm, count)
    bearing = sum(lessons[part][-1] for part in own)
    loss = float(torch.stack([losses[part] for part in own]).sum()) * count / max(bearing, 1)
    sums = torch.stack([seen for _, seen in done if seen is not None]).sum(0)
    return Stepped(value, norm, count, {"loss": loss, **health.agreed(sums)})


def _parts(rows: Sequence[Row], way: Way, vocabulary: int, parts: int | None, halved: bool) -> list[Group]:
    predicting = sum(len(row.ids) - row.start for row in rows)
    wide = predicting if way.narrow else len(rows) * max(len(row.ids) for row in rows)
    needed = parts or math.ceil(wide * vocabulary / SCORES)
    number = min(len(rows), max(needed, 2) if halved else needed)
    return [(rows[part::number], way) for part in range(number)]


def measure(
    model: Any, causal: Any, rows: Sequence[Row], batch_tokens: int, precision: Precision, way: Way
) -> float:
    """Mean loss over the rows' target tokens, in nats per token, without touching the model."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), precision():
        for chosen in epoch_batches([len(row.ids) for row in rows], batch_tokens, 0, 0):
            batch, targets, n = _prepared([rows[i] for i in chosen], way, causal.device)
            total, count = total + float(_loss(causal, batch, targets, way)[0]), count + n
    model.train()
    return total / max(count, 1)


def _prepared(rows: Sequence[Row], way: Way, device: Any) -> tuple[Batch, Targets | ChunkTargets | None, int]:
    """A batch, what the lesson has for it, and how many of its places bear a loss."""
    batch = to_device(collate(rows), device)
    if way.lesson is None:
        return batch, None, len(batch.targets_N)
    targets = way.lesson.targets(rows, batch)
    return batch, targets, counted(targets, way.lesson.objective, len(batch.targets_N))


def _loss(
    causal: Any, batch: Batch, targets: Targets | ChunkTargets | None, way: Way
) -> tuple[Tensor, Tensor | None]:
    """The sum over the batch's places, in nats; for the student's own text `health.agreement` beside it."""
    if way.lesson is None or targets is None:
        return sequence_loss(causal, batch, way.gather)[0], None
    total, states_ND = taught_loss(causal, batch, way.head, targets, way.lesson)
    if not way.own or isinstance(targets, ChunkTargets):
        return total, None
    return total, health.agreement(states_ND, way.head, targets, way.lesson.vocabulary)
