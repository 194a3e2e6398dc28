"""Vectors: what enters a teacher's head is kept once, and its head makes whole distributions of it again.

The head is that of the teacher's folder and never a copy: a shard is bound to its digest, and its other
weights are let go before training begins.

Shapes: N positions, D the teacher's hidden width, V the vocabulary, B rows of T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.errors import UsageError
from stillhouse.ledger.targets import Binding
from stillhouse.models.local import LocalModel
from stillhouse.models.reading import Reader
from stillhouse.recipe import Distil
from stillhouse.train.capture import no_probabilities, read_apart
from stillhouse.train.lessons import Lesson, Shards, captured, objective_of, of_shards, place_of, readers_of
from stillhouse.train.losses import Head, TeacherStates, head_of
from stillhouse.train.rows import Batch, Row

HELD = 1 << 28  # bytes of vectors that wait for their turn in a shard


def readout(teacher: LocalModel) -> Head:
    """The teacher's head, which keeps none of its other weights alive.

    Tried, not looked up: raises UsageError where what the head makes of the last hidden states is not what
    the teacher says, and ModelError where its weights are no numbers.
    """
    model = teacher.model.eval()
    if not bool(torch.isfinite(model.get_output_embeddings().weight).all()):
        raise no_probabilities("any text")
    head = head_of(model)
    if head is None or not _makes_its_logits(model, head):
        raise UsageError(
            'the vectors of this teacher cannot be kept by `keep = "vectors"`',
            f"what a {type(model).__name__} says is not made by its output layer alone",
            'set `train.distil.keep = "all"` or "some", or `train.distil.online = true`',
        )
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return Head(head.weight_VD.detach(), bias_V, head.scale, head.softcap)


def _makes_its_logits(model: Any, head: Head) -> bool:
    ids_BT = torch.tensor([[1, 5, 3, 2, 7, 4]], device=model.device) % len(head.weight_VD)
    with torch.no_grad():
        made = head.logits(model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state)
        own = model(input_ids=ids_BT, use_cache=False).logits
    return bool((made - own).abs().max() <= 1e-4 * own.abs().max())


def bound(teacher: LocalModel, head: Head, name: str, revision: str, settings: Distil) -> Binding:
    """How shards are bound that hold this teacher's vectors: as others are, and to its head. Left out, the
    numbers are of the type that it computes in, and nothing is rounded."""
    own = "bfloat16" if teacher.model.dtype == torch.bfloat16 else "float32"
    return replace(
        captured(teacher, name, revision, settings),
        width=head.weight_VD.shape[1],
        dtype=settings.vectors or own,
        readout=digest(head),
    )


def digest(head: Head) -> str:
    """SHA-256 (hex) over all that turns a vector into logits."""
    found = hashlib.sha256(repr((head.scale, head.softcap)).encode())
    for part in (head.weight_VD, head.bias_V):
        if part is not None:
            found.update(f"{tuple(part.shape)} {part.dtype}\0".encode())
            found.update(part.contiguous().view(torch.uint8).numpy(force=True).data)
    return found.hexdigest()


def read(
    model: Any, rows: Sequence[Row], binding: Binding, batch_tokens: int
) -> Iterator[tuple[Row, NDArray[np.float32]]]:
    """Each row with the vectors (N, D) of its trained positions, in the order in which they were given.

    `model` is a causal language model of transformers. Raises ModelError for vectors that are no numbers.
    """

    def states(batch: Batch) -> Tensor:
        ids_BT = batch.ids_BT.to(model.device)
        hidden_BTD: Tensor = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden_BTD

    for some in _at_once(rows, 4 * binding.width):
        found: dict[int, NDArray[np.float32]] = {}
        for at, hidden_ND in read_apart(states, some, batch_tokens):
            if not bool(torch.isfinite(hidden_ND).all()):
                raise no_probabilities(f"the sample {some[at].id!r}")
            found[at] = hidden_ND.float().numpy(force=True).copy()  # and not a view of the whole batch
        for at, row in enumerate(some):
            yield row, found.pop(at)


def _at_once(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """The rows in parts whose positions, each of `size` bytes, take about `HELD` bytes."""
    first, held = 0, 0
    for number, row in enumerate(rows, 1):
        held += size * (len(row.ids) - row.start)
        if held >= HELD or number == len(rows):
            yield rows[first:number]
            first, held = number, 0


def told(folder: Path, source: Shards, student: Reader, settings: Distil, head: Head) -> Lesson:
    """Whole distributions, made a chunk at a time of the vectors in these shards: for every divergence and
    at every temperature. Raises LedgerError as `lessons.stored` does."""
    (reader,) = readers = readers_of(folder, [source], student, chunks=False)
    found: dict[str, int] = {}

    def has(row: Row) -> bool:
        if (place := place_of(row, readers)) is not None:
            found[row.id] = place[1]
        return place is not None

    def targets(rows: Sequence[Row], batch: Batch) -> TeacherStates:
        vectors_ND = torch.from_numpy(reader.vectors([found[row.id] for row in rows]))
        return TeacherStates(vectors_ND.to(batch.ids_BT.device), head)

    objective = objective_of(settings, settings.hard)
    return of_shards(objective, len(student.vocabulary().raw), has, targets, readers)
