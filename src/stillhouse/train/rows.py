"""From samples to token ids, from token ids to batches.

The shift is done once, here: a target is a token id together with the flat place of the token before it,
whose hidden state predicts it. A row's prompt and its completion are tokenised apart and joined, so the
border between them is exact; the student meets the same border when it answers.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.errors import UsageError
from stillhouse.models.local import LocalModel
from stillhouse.models.reading import end_id, row_ids
from stillhouse.records import Message

READ = 1024  # samples read from the file at once
COLUMNS = ["id", "messages", "completion", "rationale", "group", "leaves", "reason"]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Token ids of prompt and completion; tokens from `start` on are trained, each with `weight` in the loss.
    `group` ties rows together, and `id` is the leaf of the answer, by which its targets are found and erased;
    the sample's own where there is none."""

    ids: NDArray[np.int32]
    start: int
    group: str
    id: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids_BT` is padded on the right, where a causal model never looks. `places_N` are flat indices into
    (B, T) of the positions that predict, `targets_N` the token ids that they should predict. `positions_BT`
    are each token's place in its own row, where several rows stand in one line; else None."""

    ids_BT: Tensor
    places_N: Tensor
    targets_N: Tensor
    positions_BT: Tensor | None = None


def read_rows(path: Path, student: LocalModel, max_length: int) -> tuple[list[Row], dict[str, int]]:
    """Rows in file order, and how many samples were left out for which reason.

    Raises UsageError when the file holds no samples, or the student has no token that ends an answer.
    """
    rows: list[Row] = []
    left_out: dict[str, int] = {}
    for sample in samples(path):
        row = row_of(sample, student, max_length)
        if isinstance(row, Row):
            rows.append(row)
        else:
            left_out[row] = left_out.get(row, 0) + 1
    if not rows and not left_out:
        raise UsageError(
            "there is nothing to train on",
            f"{path} holds no samples" if path.is_file() else f"{path} does not exist",
            "curate first, and see in dropped.parquet why rows were dropped",
        )
    return rows, left_out


def samples(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a file, in its order; none where there is no file."""
    from pyarrow import parquet

    if path.is_file():
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(READ, columns=COLUMNS):
                yield from batch.to_pylist()


def row_of(sample: dict[str, Any], student: LocalModel, max_length: int) -> Row | str:
    """The row, or why there is none."""
    limit, end = min(max_length, student.context or max_length), end_id(student.reader)
    messages = [Message(m["role"], m["content"]) for m in sample["messages"]]
    made = row_ids(student.reader, messages, sample["completion"], end)
    if isinstance(made, str):
        return made
    ids, start = made
    # Several answers to one prompt are no independent rows: none may be held out while another is learned
    group = sample["group"] or sample["id"].rpartition("#")[0] or sample["id"]
    return "too long" if len(ids) > limit else Row(ids, start, group, row_id(sample))


def row_id(sample: dict[str, Any]) -> str:
    """The leaf of the answer that a sample holds, or its own name where there is none."""
    return str(sample["leaves"][0]) if sample["leaves"] else str(sample["id"])


def split_held_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, whole groups each, in an order drawn by the seed.

    A group enters the second part only while that stays within `share` of the rows, so that part may be
    smaller than asked, and is empty where every group is larger.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    room = math.ceil(share * len(rows)) if len(groups) > 1 else 0
    held: set[str] = set()
    for group in sorted(groups, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest()):
        if len(groups[group]) <= room and len(held) < len(groups) - 1:
            held.add(group)
            room -= len(groups[group])
    return [r for r in rows if r.group not in held], [r for r in rows if r.group in held]


def together(rows: Sequence[Row], beside: Sequence[Row]) -> list[list[int]]:
    """For each of the rows the numbers, in both lists one behind the other, of what is learned in one batch:
    its own, and that of the first row `beside` with its id that none before it has."""
    left: dict[str, deque[int]] = {}
    for number, row in enumerate(beside, len(rows)):
        left.setdefault(row.id, deque()).append(number)
    return [
        [number, left[row.id].popleft()] if left.get(row.id) else [number] for number, row in enumerate(rows)
    ]


def epoch_batches(
    lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int, packed: bool = False
) -> list[list[int]]:
    """Row numbers of each batch of an epoch: rows of like length together, in a random order of batches.

    A batch holds at most `batch_tokens` tokens, padding included, of which rows that are `packed` have none;
    a longer row is a batch of its own.
    The number of batches is the same for every epoch, and the order depends on seed and epoch alone.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda row: -lengths[row])  # stable: rows of one length stay shuffled
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if not batches or room < lengths[row if packed else batches[-1][0]]:
            batches.append([])
            room = batch_tokens
        batches[-1].append(row)
        room -= lengths[row if packed else batches[-1][0]]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]


def collate(rows: Sequence[Row], padding: int = 0) -> Batch:
    """Rows as tensors; T is the longest row's length plus `padding`."""
    width = max(len(row.ids) for row in rows) + padding
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
    return Batch(torch.from_numpy(ids), *_predicting(rows, range(0, ids.size, width)))


def pack(rows: Sequence[Row]) -> Batch:
    """Rows one behind another as one line (1, T) without padding. Where the positions begin at 0 again,
    transformers masks all that stands before."""
    lengths = [len(row.ids) for row in rows]
    ids = np.concatenate([row.ids for row in rows]).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths])
    first = np.cumsum([0, *lengths[:-1]])
    return Batch(
        torch.from_numpy(ids[None]), *_predicting(rows, first.tolist()), torch.from_numpy(positions[None])
    )


def _predicting(rows: Sequence[Row], first: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Places and targets of rows whose first tokens have these flat indices."""
    spans = zip(rows, first, strict=True)
    places = np.concatenate([np.arange(at + row.start, at + len(row.ids)) - 1 for row, at in spans])
    targets = np.concatenate([row.ids[row.start :] for row in rows]).astype(np.int64)
    return torch.from_numpy(places), torch.from_numpy(targets)


def to_device(batch: Batch, device: Any) -> Batch:
    positions = None if batch.positions_BT is None else batch.positions_BT.to(device)
    return Batch(batch.ids_BT.to(device), batch.places_N.to(device), batch.targets_N.to(device), positions)
