"""Capture: a local teacher reads the training rows once, and its probabilities are packed into shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.errors import ModelError
from stillhouse.ledger.targets import (
    Binding,
    ShardWriter,
    Targets,
    ids_digest,
    whole_targets,
)
from stillhouse.train.rows import Batch, Row, collate
from stillhouse.workspace import write_json

SHARD_ROWS = 4096  # rows of a shard: what a killed capture may have to read again

# From rows to those that something is known of, each with its targets or vectors, in the order of the rows
Reads = Callable[[Sequence[Row]], Iterator[tuple[Row, Targets | NDArray[np.float32]]]]


def sparse_targets(logits_NV: Tensor, head: int, draws: int, uniform_ND: Tensor | None = None) -> Targets:
    """The `head` likeliest ids of each position with their probabilities, and `draws` ids drawn, with
    replacement, from the rest; a drawn id weighs the mass of the rest times its share of the draws.

    The weights of a position sum to 1 and their mean over draws is the whole distribution, so that a loss
    which is linear in them has the gradient of full distillation on average. The head adds no variance;
    `head` 0 with independent draws is "Sparse Logit Sampling" (Anshumann et al. 2025, arXiv:2503.16870), and
    `spread` makes draws that vary far less. Without draws the rest is given as the mass of the tail.

    `uniform_ND` holds numbers in [0, 1), N positions by `draws`, that decide what is drawn; float64.
    """
    logprobs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    kept_NK, ids_NK = logprobs_NV.topk(min(head, logprobs_NV.shape[1]), dim=-1)
    rest_NV = logprobs_NV.scatter(1, ids_NK, -torch.inf)
    log_rest_N = rest_NV.logsumexp(-1)  # -inf where the head is all there is
    sizes_N = np.full(len(logits_NV), ids_NK.shape[1], dtype=np.int64)
    parts = [(np.repeat(np.arange(len(sizes_N)), sizes_N), _flat(ids_NK), _flat(kept_NK))]
    if draws:
        assert uniform_ND is not None
        place_D, ids_D, counts_D = _drawn(rest_NV, log_rest_N, uniform_ND)
        shares = np.log(counts_D / draws).astype(np.float32)
        parts.append((place_D, ids_D, shares + log_rest_N.numpy(force=True)[place_D]))
        sizes_N += np.bincount(place_D, minlength=len(sizes_N))
    places, ids, logprobs = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(places, kind="stable")  # a position's head stays before what was drawn for it
    tail_N = np.full(len(sizes_N), -np.inf, np.float32) if draws else log_rest_N.numpy(force=True)
    return Targets(
        np.concatenate([[0], np.cumsum(sizes_N)]),
        ids[order].astype(np.int32),
        np.minimum(logprobs[order], 0.0).astype(np.float32),
        np.minimum(tail_N, 0.0).astype(np.float32),
    )


def spread(start_N1: Tensor, draws: int) -> Tensor:
    """`draws` numbers in [0, 1) for each in `start_N1`, all of one position 1 / `draws` apart (systematic
    sampling, Madow 1949): an id of probability q is drawn `draws` q times, rounded up or down by chance.

    The mean count is that of independent draws and its variance never more: below 1/4, where theirs is
    `draws` q (1 - q).
    """
    return (start_N1 + torch.arange(draws, dtype=start_N1.dtype)) / draws


def _drawn(rest_NV: Tensor, log_rest_N: Tensor, uniform_ND: Tensor) -> tuple[Any, Any, Any]:
    """Place, id and count of every id that was drawn; none where nothing is left beside the head."""
    some_M = torch.nonzero(log_rest_N > -torch.inf).flatten()
    shares_MV = (rest_NV[some_M] - log_rest_N[some_M, None]).double().exp()
    sums_MV = shares_MV.cumsum(-1)
    points_MD = uniform_ND.to(sums_MV)[some_M] * sums_MV[:, -1:]
    ids_MD = torch.searchsorted(sums_MV, points_MD, right=True)
    last_M = (shares_MV > 0).double().cumsum(-1).argmax(-1)  # rounding may point past what can be drawn
    ids_MD = torch.minimum(ids_MD, last_M[:, None])
    width = rest_NV.shape[1]
    cells, counts = torch.unique(some_M[:, None] * width + ids_MD, return_counts=True)
    cells_D = cells.numpy(force=True)
    return cells_D // width, cells_D % width, counts.numpy(force=True)


def _flat(values: Tensor) -> Any:
    return values.flatten().numpy(force=True)


def capture(
    reads: Reads,
    rows: Sequence[Row],
    folder: Path,
    record: Path,
    binding: Binding,
    seed: int | None,
    advance: Callable[[int], None],
) -> list[str]:
    """Have all rows read and write what there is of targets into shards in `folder`; their digests (hex).

    `record` names the shards that are whole, so that a capture which was stopped goes on after them, and one
    of the same rows, binding and seed that is done reads nothing; `advance` is told of rows that are done.
    `seed` is None where nothing is drawn.
    """
    asked = {"binding": asdict(binding), "seed": seed, "rows": _digest(rows)}
    sealed = _sealed(record, asked, folder)
    done = sum(taken for _, taken in sealed)
    advance(done)
    while some := rows[done : done + SHARD_ROWS]:
        with ShardWriter(folder, binding) as writer:
            for row, targets in reads(some):
                writer.add(row.id, row.ids, targets)
                advance(1)
            sealed.append((writer.seal().stem, len(some)))
        done += len(some)
        shards, taken = zip(*sealed, strict=True)
        write_json(record, asked | {"shards": shards, "rows_read": taken})
    return [digest for digest, _ in sealed]


def _sealed(record: Path, asked: dict[str, Any], folder: Path) -> list[tuple[str, int]]:
    """The shards that an earlier capture of the same sealed, as far as they are there, each with how many
    rows were read for it."""
    try:
        found = json.loads(record.read_bytes())
        sealed = list(zip(found.pop("shards"), found.pop("rows_read"), strict=True))
    except (OSError, ValueError, KeyError):
        return []
    if found != asked:
        return []
    return list(takewhile(lambda each: (folder / f"{each[0]}.targets").is_file(), sealed))


def _digest(rows: Sequence[Row]) -> str:
    whole = hashlib.sha256()
    for row in rows:
        whole.update(f"{row.id}\0{row.start}\0".encode() + ids_digest(row.ids))
    return whole.hexdigest()


def read_here(
    teacher: Any, rows: Sequence[Row], binding: Binding, seed: int, batch_tokens: int
) -> Iterator[tuple[Row, Targets]]:
    """Rows of like length together, and each with its targets, in the order in which they were given.

    `teacher` is a causal language model of transformers. What is drawn for a row depends on the seed and its
    ids alone.
    """

    def logits(batch: Batch) -> Tensor:
        made_BTV: Tensor = teacher(input_ids=batch.ids_BT.to(teacher.device), use_cache=False).logits
        return made_BTV

    found: dict[int, Targets] = {}
    for at, scores_NV in read_apart(logits, rows, batch_tokens):
        row, logits_NV = rows[at], scores_NV[:, : binding.vocabulary].float()
        if binding.temperature != 1.0:
            logits_NV = logits_NV / binding.temperature
        if not bool(torch.isfinite(logits_NV).all()):
            raise no_probabilities(f"the sample {row.id!r}")
        if binding.whole:
            found[at] = whole_targets(torch.log_softmax(logits_NV, -1).numpy(force=True))
            continue
        found[at] = sparse_targets(logits_NV, binding.head, binding.draws, _uniform(row, binding, seed))
    for at in range(len(rows)):
        yield rows[at], found.pop(at)


def read_apart(
    says: Callable[[Batch], Tensor], rows: Sequence[Row], batch_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """The number of each row with what a model `says` (B, T, X) of it at the places that predict its trained
    tokens, (N, X): rows of like length together, the shortest first."""
    for chosen in by_length([len(row.ids) for row in rows], batch_tokens):
        batch = collate([rows[at] for at in chosen])
        with torch.no_grad():
            said_BTX = says(batch)
        for number, at in enumerate(chosen):
            yield at, said_BTX[number, rows[at].start - 1 : len(rows[at].ids) - 1]


def no_probabilities(of: str) -> ModelError:
    return ModelError(
        "the teacher gives no probabilities",
        f"its logits for {of} are not finite",
        "load it in float32 or bfloat16, and look at its weights",
    )


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of rows of like length, as many at a time as fit into `batch_tokens` with their padding."""
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    while order:
        taken = 1
        while taken < len(order) and (taken + 1) * lengths[order[taken]] <= batch_tokens:
            taken += 1
        yield order[:taken]
        order = order[taken:]


def _uniform(row: Row, binding: Binding, seed: int) -> Tensor:
    name = hashlib.sha256(f"{seed}:".encode() + ids_digest(row.ids)).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(name[:16], "little")))
    return spread(torch.from_numpy(generator.random((len(row.ids) - row.start, 1))), binding.draws)
