"""On-policy distillation: the student writes, and learns at each of its own tokens how the teacher goes on.

A student that only ever read its teacher's answers has not seen its own mistakes, which is where it will
stand when it answers. Here it writes to the prompts of the samples with the weights of the very step, drawing
from its whole distribution (temperature 1, no nucleus: anything else would be the text of another policy),
and the divergence from the teacher's distribution is taken at each of the places (GKD, Agarwal et al. 2023).
The gradient goes through the distributions and not through what was drawn.

Token ids go in and token ids come out: what the student wrote is never turned to text and read again, and
its own tokens are never the labels of a cross-entropy.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from stillhouse.errors import ModelError
from stillhouse.models.local import Generation, LocalModel, Request, generate
from stillhouse.recipe import OnPolicy
from stillhouse.train.health import Window, collapsed
from stillhouse.train.lessons import Lesson
from stillhouse.train.rows import Row


@dataclass(frozen=True, slots=True)
class OwnText:
    """Who writes, what is learned of it, and how long it may be: answers have at most `max_tokens` tokens,
    rows at most `limit` with their prompts, and batches `batch_tokens`."""

    student: LocalModel
    lesson: Lesson
    settings: OnPolicy
    max_tokens: int
    limit: int
    batch_tokens: int
    seed: int

    def writes(self, numbers: Sequence[int], rows: int, step: int, per_epoch: int) -> list[int]:
        """Those of a batch's row `numbers` to whose prompts the student writes at this step."""
        if step < round(self.settings.after * per_epoch):
            return []
        chosen = drawn(rows, self.settings.share, self.seed, step // per_epoch)
        return [number for number in numbers if number in chosen]

    def write(self, rows: Sequence[Row], numbers: Sequence[int], step: int) -> list[Row]:
        """The rows with answers of the student's, as it is now, in place of their own.

        Each draws from a seed of its own, which follows from the run's seed, the step and the row's number.
        """
        seeds = [seed_of(self.seed, step, number) for number in numbers]
        vocabulary = self.lesson.vocabulary
        return answered(self.student, rows, seeds, self.max_tokens, self.limit, vocabulary, len(rows))


def answered(
    student: LocalModel,
    rows: Sequence[Row],
    seeds: Sequence[int],
    max_tokens: int,
    limit: int,
    vocabulary: int,
    batch: int,
) -> list[Row]:
    """The rows with answers that the student draws from its whole distribution in place of their own, each by
    its seed. Answers have at most `max_tokens` tokens, rows at most `limit`, and ids from `vocabulary` on,
    which only pad the head, are never drawn."""
    requests = [
        Request(row.ids[: row.start].tolist(), min(max_tokens, limit - row.start), temperature=1.0, seed=seed)
        for row, seed in zip(rows, seeds, strict=True)
    ]
    model = student.model
    was_training = model.training
    model.eval()
    try:
        with _real_ids(model, vocabulary):
            answers = generate(student, requests, batch=batch)
    finally:
        model.train(was_training)
    return [
        replace(row, ids=np.array([*asked.prompt_ids, *said.token_ids, *_end(said)], dtype=np.int32))
        for row, asked, said in zip(rows, requests, answers, strict=True)
    ]


@lru_cache(maxsize=2)
def drawn(rows: int, share: float, seed: int, epoch: int) -> frozenset[int]:
    """Numbers of the rows that the student answers in an epoch: `share` of them, others in each epoch."""
    source = random.Random(f"{seed}:{epoch}:own text")
    return frozenset(source.sample(range(rows), max(1, round(share * rows))))


def check_health(window: Window, step: int) -> None:
    """Raises ModelError where the student has ceased to end its answers."""
    if not collapsed(window):
        return
    raise ModelError(
        f"the student's own answers run on without end at step {step}",
        f"{window.truncated:.0%} of the last {window.answers} were cut at the longest length, and once only "
        f"{window.least:.0%} were: it learns from its own text to write ever longer",
        "lower `train.on_policy.share` or `train.learning_rate`, or see whether the teacher itself ends its "
        "answers with the student's end token; the last checkpoint is intact",
    )


def _end(said: Generation) -> list[int]:
    return [] if said.end is None else [said.end]


def seed_of(*parts: int | str) -> int:
    """A seed that follows from these alone."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


@contextmanager
def _real_ids(model: Any, vocabulary: int) -> Iterator[None]:
    """Within, the model has logits for real ids alone: rows that only pad its head learn nothing, so that
    they would be drawn now and then."""
    head = model.get_output_embeddings()
    if head is None or head.weight.shape[0] <= vocabulary:
        yield
        return

    def narrow(_: Any, inputs: Any, logits: Tensor) -> Tensor:
        return logits[..., :vocabulary]

    hook = head.register_forward_hook(narrow)
    try:
        yield
    finally:
        hook.remove()
