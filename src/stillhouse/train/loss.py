"""The objectives on a batch: cross-entropy on completion tokens, or a lesson's loss, as a sum.

Whoever calls divides once by the number of tokens of the whole batch, so the result does not depend on
how a batch is cut into parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillhouse.train.forward import scores_at, states_at
from stillhouse.train.lessons import Lesson
from stillhouse.train.losses import (
    ChunkTargets,
    Head,
    Objective,
    Targets,
    cross_entropy,
    distil,
    forward_kl,
    head_loss,
)
from stillhouse.train.losses.chunks import chunk_loss, logprobs_of, token_logprobs
from stillhouse.train.rows import Batch

ATTENTION = "stillhouse_float32"
TEXT = Objective(forward_kl, hard=1.0)  # the tokens of the text and nobody's probabilities


def batch_loss(
    model: Any,
    batch: Batch,
    head: Head | None,
    targets: Targets | ChunkTargets | None = None,
    lesson: Lesson | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the loss in nats over the batch's N places (float32 scalar), see `losses.head_loss`, and what
    the student says at them: its last hidden states (N, D), or its logits (N, V) where `head` is None.

    A `lesson` says how the `targets` are learned; without one it is the cross-entropy with the text itself.
    `model` is a causal language model of transformers, and without a head that can be taken apart all logits
    (B, T, V) are made.
    """
    if lesson is not None and isinstance(targets, ChunkTargets):
        return _chunks_loss(model, batch, head, targets, lesson)
    assert not isinstance(targets, ChunkTargets), "chunks are learned by a lesson"
    objective, vocabulary = (lesson.objective, lesson.vocabulary) if lesson else (TEXT, None)
    if head is not None:
        hidden_ND = states_at(model, batch)
        loss, _ = head_loss(hidden_ND, head, targets, objective, batch.targets_N, vocabulary)
        return loss, hidden_ND.detach()
    scores_NV = scores_at(model, batch)
    if targets is None:
        return cross_entropy(scores_NV, batch.targets_N)[0], scores_NV.detach()
    return distil(scores_NV, targets, objective, batch.targets_N, vocabulary)[0], scores_NV.detach()


def _chunks_loss(
    model: Any, batch: Batch, head: Head | None, targets: ChunkTargets, lesson: Lesson
) -> tuple[Tensor, Tensor]:
    """As `batch_loss`: (1 - hard) times the chunks' loss at the objective's temperature, and hard times the
    cross-entropy with the same tokens. Tokens in no chunk whose likelihood is known are learned from text,
    the end of an answer above all, of which no server tells."""
    if head is None:
        seen = scores_at(model, batch)
        logp_N, border_N = logprobs_of(seen[:, : lesson.vocabulary], batch.targets_N, targets.borders)
    else:
        seen = states_at(model, batch)
        logp_N, border_N = token_logprobs(seen, head, batch.targets_N, targets.borders, lesson.vocabulary)
    soft = chunk_loss(logp_N, border_N, targets, lesson.objective.temperature)[0]
    soft = soft - logp_N[~targets.known_N].sum()
    return (1 - lesson.objective.hard) * soft - lesson.objective.hard * logp_N.sum(), seen.detach()


def attend_in_float32(model: Any) -> None:
    """On a CPU, let attention run in float32 inside a bf16 autocast.

    torch's fused CPU attention is several times slower in bf16 than in float32, chiefly backward (B 80,
    H 7, T 104, D 16, one thread: 158 against 38 ms a layer), which is more than bf16 gains elsewhere.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **kwargs)

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attend)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
