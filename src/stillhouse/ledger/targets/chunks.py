"""Shards of a teacher whose tokenizer is not the student's: how likely it held each chunk of an answer.

The position that ends a chunk has one entry, the student's own token there with the log-probability of the
whole chunk, and the tail is every other text; positions within a chunk have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.ledger.targets.layout import LEAST, Binding, Targets

_MARK = "chunks by "


def chunk_binding(
    teacher: str, revision: str, tokenizer: str, template: str, vocabulary: int, engine: str
) -> Binding:
    """Tokenizer, template and vocabulary are the student's, by whose ids the rows are found."""
    return Binding(teacher, revision, tokenizer, template, vocabulary, 1, engine=_MARK + engine)


def holds_chunks(binding: Binding) -> bool:
    return binding.engine.startswith(_MARK)


def chunk_row(ids_N: NDArray[np.int32], likelihoods: Sequence[float | None]) -> Targets:
    """The targets of a row from what `models.chunks.likelihoods` says of its N trained `ids_N`; -inf, a chunk
    that is not known, is kept as the least number of fp16."""
    ends_N = np.array([value is not None for value in likelihoods])
    held_C = np.array([value for value in likelihoods if value is not None], dtype=np.float64)
    log_tail_N = np.zeros(len(ends_N), dtype=np.float32)
    with np.errstate(divide="ignore"):
        log_tail_N[ends_N] = np.log(-np.expm1(np.minimum(held_C, 0.0)))
    return Targets(
        np.concatenate([[0], np.cumsum(ends_N)]),
        ids_N[ends_N],
        np.clip(held_C, LEAST, 0.0).astype(np.float32),
        log_tail_N,
    )


class Chunks(NamedTuple):
    """Of N positions the number of the chunk that each belongs to, and of the chunk that ends before it; of
    the C chunks that are known the log-probabilities. C stands for no chunk."""

    chunk_N: NDArray[np.int64]
    before_N: NDArray[np.int64]
    logprobs_C: NDArray[np.float32]

    @property
    def known(self) -> int:
        """Positions in chunks that are known."""
        return int((self.chunk_N < len(self.logprobs_C)).sum())


def chunks_of(targets: Targets, sizes: Sequence[int]) -> Chunks:
    """The chunks of rows of these sizes, in positions."""
    row_N, ends_N = np.repeat(np.arange(len(sizes)), sizes), np.diff(targets.offsets_N1) > 0
    known_E = targets.logprobs_E > LEAST
    none = int(known_E.sum())
    number_E1 = np.append(np.where(known_E, np.cumsum(known_E) - 1, none), none)
    row_E1 = np.append(row_N[ends_N], -1)
    at_N = targets.offsets_N1[:-1]  # of each position the entry that ends its chunk, if that is of its row
    chunk_N = np.where(row_E1[at_N] == row_N, number_E1[at_N], none)
    before_N = np.full(len(row_N), none)
    follows_N = np.append(False, ends_N[:-1]) & (np.diff(row_N, prepend=-1) == 0)
    last_N = np.diff(row_N, append=-1) != 0
    follows_N &= ~last_N | (chunk_N < none)  # an end that is not known is no border either
    before_N[follows_N] = chunk_N[np.flatnonzero(follows_N) - 1]
    return Chunks(chunk_N, before_N, targets.logprobs_E[known_E])
