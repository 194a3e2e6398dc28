"""One step of training: what is read, the loss and its gradient, the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from stillhouse.train import health
from stillhouse.train.lessons import Lesson
from stillhouse.train.loss import batch_loss
from stillhouse.train.losses import ChunkTargets, Head, Targets
from stillhouse.train.losses.whole import counted
from stillhouse.train.on_policy import OwnText
from stillhouse.train.processes import ALONE, Processes
from stillhouse.train.rows import Batch, Row, collate, epoch_batches, pack, to_device
from stillhouse.train.shards import Shards

SCORES = 1 << 28  # most logits (rows times vocabulary) made at once: 1 GiB in float32

Precision = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Way:
    """How a batch's loss is made: of a lesson's targets, or of the text itself where `lesson` is None. `head`
    is the student's, where it can be used apart from the rest, so that only the places which predict have
    logits. `packed` rows stand one behind another. `own` marks text of the student's, which is examined, and
    `weight` is what each token counts."""

    lesson: Lesson | None
    head: Head | None
    packed: bool = False
    own: bool = False
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """What every step works with. `model` holds the weights that learn and `causal` is the language model in
    it: the same, or an adapter and what it is added to. `vocabulary` is the width of the logits, `clip` the
    largest norm of a gradient, `most` the most tokens worked at once, and `shards` the model where the
    processes have a part of it each."""

    model: Any
    causal: Any
    optimisers: Sequence[torch.optim.Optimizer]
    clip: float
    precision: Precision
    vocabulary: int
    most: int | None = None
    processes: Processes = ALONE
    shards: Shards | None = None


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
    groups = _weighed(read, way)
    if own is None or not writes:
        return Turn(groups, sum(len(row.ids) for row in read), None)
    answered = [rows[number] for number in writes]
    with precision():
        written = own.write(answered, writes, step)
    mine = Way(own.lesson, way.head, way.packed, own=True)
    for batch in epoch_batches([len(row.ids) for row in written], own.batch_tokens, 0, 0, way.packed):
        groups.append(([written[number] for number in batch], mine))
    tokens = sum(len(row.ids) for row in [*read, *written])
    return Turn(groups, tokens, health.figures(answered, written, own.student.stop_ids))


def _weighed(rows: Sequence[Row], way: Way) -> list[Group]:
    """The rows in groups of one weight each."""
    weights = dict.fromkeys(row.weight for row in rows)
    return [([row for row in rows if row.weight == each], replace(way, weight=each)) for each in weights]


def train_step(work: Work, groups: Sequence[Group], halves: Executor | None = None) -> Stepped:
    """One optimiser step over the rows of all `groups`, and over those of the other processes.

    A group is cut into parts where it is longer than may be worked at once, or has too many logits; each
    part's loss is divided by the tokens of the whole, each counted by its weight, so the gradient is that of
    one batch. With `halves`, an executor of two threads, a batch that need not be cut is worked in two parts
    at once; not under a bound on the tokens worked at once, which is there to save memory. A step whose loss
    or gradient is not finite changes nothing.
    """
    halves = halves if work.most is None else None
    halved = halves is not None and len(groups) == 1
    cut = [part for group in groups for part in _parts(*group, work, halved)]
    lessons = [(way, *_prepared(rows, way, work.causal.device)) for rows, way in cut]
    numbers = [number for *_, number in lessons]
    weighed = sum(way.weight * number for (way, *_), number in zip(lessons, numbers, strict=True))
    count, read = work.processes.total(weighed, sum(numbers))
    own = [at for at, (_, way) in enumerate(cut) if way.own]

    def backward(part: int) -> tuple[Tensor, Tensor | None]:
        way, batch, targets, _ = lessons[part]
        with work.precision():
            total, seen = _loss(work, batch, targets, way)
            loss = total / ((count or 1) / way.weight)
        loss.backward()
        return loss.detach(), seen

    _keep_company(work, len(cut))
    if halves is not None and len(cut) == 2:
        done = list(halves.map(backward, range(2)))  # a + b = b + a: which half ends first changes nothing
    else:
        done = [backward(part) for part in range(len(cut))]
    losses = [loss for loss, _ in done]
    trainable = [parameter for parameter in work.model.parameters() if parameter.requires_grad]
    if work.shards is None:  # else each pass has summed its own
        work.processes.sum_gradients(trainable)
    norm = _clip(trainable, work.clip)
    value = work.processes.total(float(torch.stack(losses).sum()) if losses else 0.0)[0]
    if math.isfinite(value) and math.isfinite(norm):
        each_at_once = map if halves is None else halves.map
        list(each_at_once(methodcaller("step"), work.optimisers))
    for optimiser in work.optimisers:
        optimiser.zero_grad(set_to_none=True)
    if not own:
        return Stepped(value, norm, round(read))
    bearing = sum(lessons[part][-1] for part in own)
    loss = float(torch.stack([losses[part] for part in own]).sum()) * count / max(bearing, 1)
    sums = torch.stack([seen for _, seen in done if seen is not None]).sum(0)
    return Stepped(value, norm, round(read), {"loss": loss, **health.agreed(sums)})


def _parts(rows: Sequence[Row], way: Way, work: Work, halved: bool) -> list[Group]:
    lengths = [len(row.ids) for row in rows]
    tokens = sum(lengths) if way.packed else len(rows) * max(lengths)
    predicting = sum(len(row.ids) - row.start for row in rows)
    scores = (predicting if way.head is not None else tokens) * work.vocabulary
    needed = max(math.ceil(scores / SCORES), math.ceil(tokens / (work.most or tokens)))
    number = min(len(rows), max(needed, 2) if halved else needed)
    return [(rows[part::number], way) for part in range(number)]


def measure(work: Work, rows: Sequence[Row], batch_tokens: int, way: Way) -> float:
    """Mean loss over the rows' target tokens, in nats per token, without touching the model. The processes
    read a part of them each."""
    work.model.eval()
    total, count = 0.0, 0.0
    with torch.no_grad(), work.precision():
        batches = epoch_batches([len(row.ids) for row in rows], batch_tokens, 0, 0, way.packed)
        mine = work.processes.share(batches)
        _keep_company(work, len(mine))
        for chosen in mine:
            batch, targets, n = _prepared([rows[i] for i in chosen], way, work.causal.device)
            total, count = total + float(_loss(work, batch, targets, way)[0]), count + n
    if work.shards is not None:
        work.shards.reshard()  # which is left to a way back, and there is none
    work.model.train()
    total, count = work.processes.total(total, count)
    return total / max(count, 1)


def _prepared(rows: Sequence[Row], way: Way, device: Any) -> tuple[Batch, Targets | ChunkTargets | None, int]:
    """A batch, what the lesson has for it, and how many of its places bear a loss."""
    batch = to_device(pack(rows) if way.packed else collate(rows), device)
    if way.lesson is None:
        return batch, None, len(batch.targets_N)
    targets = way.lesson.targets(rows, batch)
    return batch, targets, counted(targets, way.lesson.objective, len(batch.targets_N))


def _clip(trainable: Sequence[Tensor], most: float) -> float:
    """The gradient's norm, before it is brought down to `most`."""
    norm = get_total_norm([each.grad for each in trainable if each.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    clip_grads_with_norm_(trainable, most, norm)
    return float(norm)


def _keep_company(work: Work, passes: int) -> None:
    """A pass over a model in parts is one of all processes together, so one that has fewer before it than
    another begins with passes over two tokens that teach nothing."""
    if work.shards is None:
        return
    nothing = to_device(collate([Row(np.zeros(2, np.int32), 1, "")]), work.causal.device)
    for _ in range(max(work.processes.gather(passes)) - passes):
        with work.precision():
            loss = work.shards(nothing)[0] * 0.0
        if loss.requires_grad:
            loss.backward()


def _loss(
    work: Work, batch: Batch, targets: Targets | ChunkTargets | None, way: Way
) -> tuple[Tensor, Tensor | None]:
    """The sum over the batch's places, in nats; for the student's own text `health.agreement` beside it."""
    if work.shards is not None:
        return work.shards(batch, targets, way.lesson)[0], None
    total, states_ND = batch_loss(work.causal, batch, way.head, targets, way.lesson)
    if not way.own or way.lesson is None or targets is None or isinstance(targets, ChunkTargets):
        return total, None
    return total, health.agreement(states_ND, way.head, targets, way.lesson.vocabulary)
