"""What a student is to learn at N positions: whole distributions of a teacher, or few weighted ids of each.

Shapes: N positions, V the vocabulary, K entries of a position, D a hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillhouse.ledger.targets import LEAST_TAIL
from stillhouse.ledger.targets import Targets as PackedTargets
from stillhouse.train.losses.heads import Head


@dataclass(frozen=True, slots=True, eq=False)
class TeacherStates:
    """A teacher's last hidden states (N, D') and its head: whole distributions, made a chunk at a time."""

    hidden_ND: Tensor
    head: Head

    def __len__(self) -> int:
        return len(self.hidden_ND)

    def __getitem__(self, part: slice | Tensor) -> TeacherStates:
        return TeacherStates(self.hidden_ND[part], self.head)

    def to(self, device: torch.device | str) -> TeacherStates:
        return TeacherStates(self.hidden_ND.to(device), self.head)


@dataclass(frozen=True, slots=True, eq=False)
class SparseTargets:
    """K weighted ids for each of N positions. `log_weights_NK` are in nats, -inf where an entry is none.

    With `log_tail_N` the weights are probabilities, the ids of a position differ, and the tail holds the mass
    of all other ids: a distribution over K + 1 buckets, for any divergence. Its value is a lower bound of the
    whole one, and both are least at the same student on the ids that are named.

    Without, the weights are a sample: their expectation is the teacher's distribution, so the forward KL has
    an unbiased gradient, and no other divergence has. An id may stand twice. The value holds the entropy of
    the sample in place of the teacher's, which is no larger on average, and the value so no smaller.

    `temperature` is the one that the weights are of. Another cannot be had from them, as the mass of the tail
    at another temperature is not known.
    """

    ids_NK: Tensor
    log_weights_NK: Tensor
    log_tail_N: Tensor | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.ids_NK)

    def __getitem__(self, part: slice | Tensor) -> SparseTargets:
        tail_N = None if self.log_tail_N is None else self.log_tail_N[part]
        return SparseTargets(self.ids_NK[part], self.log_weights_NK[part], tail_N, self.temperature)

    @property
    def known_N(self) -> Tensor:
        """Whether anything is known of a position."""
        return (self.log_weights_NK > -torch.inf).any(-1)

    def to(self, device: torch.device | str) -> SparseTargets:
        tail_N = None if self.log_tail_N is None else self.log_tail_N.to(device)
        return SparseTargets(self.ids_NK.to(device), self.log_weights_NK.to(device), tail_N, self.temperature)


@dataclass(frozen=True, slots=True, eq=False)
class ChunkTargets:
    """How likely a teacher of any tokenizer held C stretches of the student's text, each with a border after
    it, in nats. `chunk_N` is the number of the chunk that each of N positions belongs to, and `before_N` that
    of the chunk whose border is its token's place; C is none. `borders` are the ids that make a border. They
    say nothing of other texts, so only `losses.chunks` can learn from them."""

    chunk_N: Tensor
    before_N: Tensor
    logprobs_C: Tensor
    borders: Tensor

    def __len__(self) -> int:
        return len(self.chunk_N)

    @property
    def known_N(self) -> Tensor:
        return self.chunk_N < len(self.logprobs_C)

    def to(self, device: torch.device | str) -> ChunkTargets:
        parts = self.chunk_N, self.before_N, self.logprobs_C, self.borders
        return ChunkTargets(*(part.to(device) for part in parts))


Targets = Tensor | TeacherStates | SparseTargets  # a Tensor is a teacher's logits (N, V)


def stratified(
    logt_NV: Tensor, head: int, draws: int, generator: torch.Generator | None = None
) -> SparseTargets:
    """Few ids for whole distributions: the `head` likeliest exactly, and `draws` drawn from the others.

    `draws` 0 gives the likeliest and the mass of the tail, `head` 0 the counts of "Sparse Logit Sampling"
    (Anshumann et al. 2025), both the stratified form: each drawn id weighs the tail's mass over `draws`.
    """
    top = logt_NV.topk(head, -1)
    left_NV = logt_NV.exp().scatter(-1, top.indices, 0.0)
    log_tail_N = left_NV.sum(-1).log()
    if not draws:
        return SparseTargets(top.indices, top.values, log_tail_N)
    drawable_NV = left_NV.masked_fill(log_tail_N[:, None] == -torch.inf, 1.0)  # weighs nothing then
    drawn_NK = torch.multinomial(drawable_NV, draws, replacement=True, generator=generator)
    weights_NK = (log_tail_N - float(np.log(draws)))[:, None].expand(-1, draws)
    return SparseTargets(torch.cat([top.indices, drawn_NK], -1), torch.cat([top.values, weights_NK], -1))


def unpacked(packed: PackedTargets, sampled: bool, temperature: float = 1.0) -> SparseTargets:
    """What a shard's reader gives, as rectangles; `sampled` where its binding has draws, and `temperature` as
    there. A position with no entries stays unknown. Each mass is made 1 again, which rounding to fp16 moved
    by some 1e-4."""
    sizes_N = np.diff(packed.offsets_N1)
    filled = np.arange(int(sizes_N.max(initial=1)))[None, :] < sizes_N[:, None]
    ids_NK = np.zeros(filled.shape, dtype=np.int64)
    weights_NK = np.full(filled.shape, -np.inf, dtype=np.float32)
    ids_NK[filled], weights_NK[filled] = packed.ids_E, packed.logprobs_E
    log_weights_NK, log_tail_N = torch.from_numpy(weights_NK), torch.from_numpy(packed.log_tail_N)
    mass_N = torch.cat([log_weights_NK, log_tail_N[:, None]], -1).logsumexp(-1)  # unknown: all is tail, 0
    log_weights_NK -= mass_N[:, None]
    log_tail_N = log_tail_N - mass_N
    return SparseTargets(
        torch.from_numpy(ids_NK), log_weights_NK, None if sampled else log_tail_N, temperature
    )


def with_text(targets: SparseTargets, ids_N: Tensor) -> SparseTargets:
    """Of a position that nothing is known of, the text's own token holds all, but for `LEAST_TAIL`.

    Servers tell nothing of the token that ends an answer, for one: a student that learned only what is told
    would never stop.
    """
    known_N1 = targets.known_N[:, None]
    first_1K = torch.arange(targets.ids_NK.shape[1], device=ids_N.device)[None] == 0
    ids_NK = torch.where(known_N1 | ~first_1K, targets.ids_NK, ids_N[:, None])
    weights_NK = torch.where(known_N1 | ~first_1K, targets.log_weights_NK, 0.0)
    tail_N = targets.log_tail_N
    if tail_N is not None:
        tail_N = torch.where(targets.known_N, tail_N, math.log(LEAST_TAIL))
    return SparseTargets(ids_NK, weights_NK, tail_N, targets.temperature)


def whole_distributions(packed: PackedTargets) -> Tensor:
    """Log-probabilities (N, V) of shards that hold all ids, which serve as logits do: at every temperature
    and for every divergence."""
    return torch.from_numpy(packed.logprobs_E.reshape(len(packed.log_tail_N), -1))


def places(trained_BT: Tensor) -> Tensor:
    """Flat indices into (B, T) of the positions that predict the tokens marked in `trained_BT`.

    The one shift there is: whether a position counts is asked of the token that it predicts. The same mask
    picks the token ids themselves, `ids_BT[trained_BT]`. Raises ValueError where nothing stands before a
    marked token.
    """
    if bool(trained_BT[:, 0].any()):
        raise ValueError("the first token of a row is marked, and nothing comes before it to predict it")
    return trained_BT.flatten().nonzero().squeeze(-1) - 1
