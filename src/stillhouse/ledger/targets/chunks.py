"""Shards of a teacher whose tokenizer is not the student's: how likely it held each chunk of an answer.

The position that ends a chunk has one entry, the student's own token there with the log-probability of the
whole chunk, and the tail is every other text; positions within a chunk have none. The last position of a row
ends a chunk, or none does.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def chunks_of(targets: Targets) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of rows with chunks the number of the chunk of each of the N positions, and the log-probabilities (C,)
    of those that are known. Positions of the others have the number C."""
    known_E = targets.logprobs_E > LEAST
    number_E = np.where(known_E, np.cumsum(known_E) - 1, known_E.sum())  # an unknown one is no chunk
    return number_E[targets.offsets_N1[:-1]], targets.logprobs_E[known_E]
