"""From samples to token ids, from token ids to batches.

The shift is done once, here: a target is a token id together with the flat place of the token before it,
whose hidden state predicts it. A row's prompt and its completion are tokenised apart and joined, so the
border between them is exact; the student meets the same border when it answers.
"""

from __future__ import annotations

import hashlib
import math
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


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Token ids of prompt and completion; tokens from `start` on are trained. `group` ties rows together.
    `id` is the leaf of the answer, by which its targets are found and erased; the sample's own where there is
    none."""

    ids: NDArray[np.int32]
    start: int
    group: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids_BT` is padded on the right, where a causal model never looks. `places_N` are flat indices into
    (B, T) of the positions that predict, `targets_N` the token ids that they should predict."""

    ids_BT: Tensor
    places_N: Tensor
    targets_N: Tensor


def read_rows(path: Path, student: LocalModel, max_length: int) -> tuple[list[Row], dict[str, int]]:
    """Rows in file order, and how many samples were left out for which reason.

    Raises UsageError when the file holds no samples, or the student has no token that ends an answer.
    """
    limit, end = min(max_length, student.context or max_length), end_id(student.reader)
    rows: list[Row] = []
    left_out: dict[str, int] = {}
    for sample in _samples(path):
        row = _row(sample, student, limit, end)
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


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    if path.is_file():
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(READ, columns=["id", "messages", "completion", "group", "leaves"]):
                yield from batch.to_pylist()


def _row(sample: dict[str, Any], student: LocalModel, limit: int, end: int) -> Row | str:
    """The row, or why there is none."""
    messages = [Message(m["role"], m["content"]) for m in sample["messages"]]
    made = row_ids(student.reader, messages, sample["completion"], end)
    if isinstance(made, str):
        return made
    ids, start = made
    fits = len(ids) <= limit
    return Row(ids, start, sample["group"] or sample["id"], row_name(sample)) if fits else "too long"


def row_name(sample: dict[str, Any]) -> str:
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


def epoch_batches(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers of each batch of an epoch: rows of like length together, in a random order of batches.

    A batch holds at most `batch_tokens` tokens, padding included; a longer row is a batch of its own.
    The number of batches is the same for every epoch, and the order depends on seed and epoch alone.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda row: -lengths[row])  # stable: rows of one length stay shuffled
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]


def collate(rows: Sequence[Row], padding: int = 0) -> Batch:
    """Rows as tensors; T is the longest row's length plus `padding`."""
    width = max(len(row.ids) for row in rows) + padding
    ids = np.zeros((len(rows), width), dtype=np.int64)
    places = []
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
        first = number * width - 1
        places.append(np.arange(first + row.start, first + len(row.ids)))
    targets = np.concatenate([row.ids[row.start :] for row in rows]).astype(np.int64)
    return Batch(*(torch.from_numpy(part) for part in (ids, np.concatenate(places), targets)))
