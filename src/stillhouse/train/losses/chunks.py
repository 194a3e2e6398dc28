"""The loss across tokenizers: how likely teacher and student hold the same stretches of a text.

"Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching" (ALM; Minixhofer, Vulic and Ponti
2025, arXiv:2503.20083), for chunks that end with a word. Which those are, and what the teacher holds of them,
`models.chunks` says.

Shapes: N positions of the student, C chunks, V the vocabulary, D the hidden width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stillhouse.train.losses.heads import Head
from stillhouse.train.losses.targets import ChunkTargets

LEAST = 1e-10  # how near to 0 a log-probability over the temperature comes: float32 knows none but 0 nearer


def chunk_loss(
    logp_N: Tensor, border_N: Tensor, targets: ChunkTargets, temperature: float = 100.0
) -> tuple[Tensor, int]:
    """Sum of the chunks' losses in nats, see `chunk_losses`, and C. `logp_N` are the student's
    log-probabilities of its own tokens of the text, and `border_N` of a border in their place; differentiable
    both."""
    size = len(targets.logprobs_C)
    sums_C = logp_N.new_zeros(size + 1).index_add(0, targets.chunk_N, logp_N)
    sums_C = sums_C.index_add(0, targets.before_N, border_N)[:size]
    return chunk_losses(sums_C, targets.logprobs_C.to(logp_N), temperature).sum(), size


def chunk_losses(logp_C: Tensor, logt_C: Tensor, temperature: float = 100.0) -> Tensor:
    """T KL(Bernoulli(t^(1/T)) || Bernoulli(p^(1/T))) of each chunk, in nats: the binarised forward KL between
    "this chunk" and "any other text", where the teacher gives the chunk the log-probability `logt_C` and the
    student `logp_C`.

    All other outcomes, which cannot be listed, are one. At T = 1 a chunk that neither holds likely teaches
    next to nothing. As T grows the loss runs into a log(a/b) - a + b with a = -log t and b = -log p, whose
    gradient by log p is a/b - 1: that of cross-entropy where the teacher is certain, less where it is not,
    and 0 where p = t. The factor T, which the paper leaves out, keeps that size at every temperature.
    """
    logt_C, logp_C = ((value / temperature).clamp(max=-LEAST) for value in (logt_C, logp_C))
    this_C = logt_C.exp() * (logt_C - logp_C)
    other_C = -torch.expm1(logt_C) * (log1mexp(logt_C) - log1mexp(logp_C))
    return temperature * (this_C + other_C)


def log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012), with finite gradients."""
    near = values > -math.log(2.0)
    by_expm1 = torch.log(-torch.expm1(torch.where(near, values, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, values)))
    return torch.where(near, by_expm1, by_log1p)


def token_logprobs(
    hidden_ND: Tensor,
    head: Head,
    ids_N: Tensor,
    borders: Tensor,
    vocabulary: int | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """log p(id) of each position (N,), and the log of what `borders` have together, in nats and float32 at
    least. Logits are made for `chunk` positions at a time, and again in the backward pass, so that (N, V)
    never exists."""
    own = head.cut(vocabulary)

    def some(hidden_CD: Tensor, ids_C: Tensor) -> tuple[Tensor, Tensor]:
        return logprobs_of(own.logits(hidden_CD), ids_C, borders)

    parts = [
        checkpoint(some, hidden_CD, ids_C, use_reentrant=False)
        for hidden_CD, ids_C in zip(hidden_ND.split(chunk), ids_N.split(chunk), strict=True)
    ]
    return torch.cat([logp for logp, _ in parts]), torch.cat([border for _, border in parts])


def logprobs_of(logits_NV: Tensor, ids_N: Tensor, borders: Tensor) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, from logits."""
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    lse_N = logits_NV.logsumexp(-1)
    border_N = logits_NV[:, borders].logsumexp(-1) - lse_N
    return logits_NV.gather(-1, ids_N[:, None])[:, 0] - lse_N, border_N
