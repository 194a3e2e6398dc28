"""The objectives on a batch: cross-entropy on completion tokens, or a lesson's loss, as a sum.

Whoever calls divides once by the number of tokens of the whole batch, so the result does not depend on
how a batch is cut into parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stillhouse.train.forward import scores_at, states_at
from stillhouse.train.lessons import Lesson
from stillhouse.train.losses import ChunkTargets, Head, Targets, distil, head_loss
from stillhouse.train.losses.chunks import chunk_loss, logprobs_of, token_logprobs
from stillhouse.train.rows import Batch, Row, collate

ATTENTION = "stillhouse_float32"


def sequence_loss(model: Any, batch: Batch, gather: bool) -> tuple[Tensor, int]:
    """Sum of -log p(target) in nats over the N targets (float32 scalar), and N.

    `model` is a causal language model of transformers. With `gather` its head sees only the hidden states
    that predict a target; without, all logits (B, T, V) are made and the same rows taken from them.
    """
    scores_NV = _gathered(model, batch) if gather else scores_at(model, batch)
    return F.cross_entropy(scores_NV.float(), batch.targets_N, reduction="sum"), batch.targets_N.numel()


def taught_loss(
    model: Any, batch: Batch, head: Head | None, targets: Targets | ChunkTargets, lesson: Lesson
) -> tuple[Tensor, Tensor]:
    """Sum of the lesson's loss in nats over the places that `targets` are of (float32 scalar), see
    `losses.head_loss`, and what the student says at them: its last hidden states (N, D). Without a `head`
    that can be taken apart all logits are made, and those of the places (N, V) are given."""
    if isinstance(targets, ChunkTargets):
        return _chunks_taught(model, batch, head, targets, lesson)
    how = targets, lesson.objective, batch.targets_N, lesson.vocabulary
    if head is None:
        scores_NV = scores_at(model, batch)
        return distil(scores_NV, *how)[0], scores_NV.detach()
    hidden_ND = states_at(model, batch)
    return head_loss(hidden_ND, head, *how)[0], hidden_ND.detach()


def _chunks_taught(
    model: Any, batch: Batch, head: Head | None, targets: ChunkTargets, lesson: Lesson
) -> tuple[Tensor, Tensor]:
    """As `taught_loss`: (1 - hard) times the chunks' loss at the objective's temperature, and hard times the
    cross-entropy with the same tokens."""
    if head is None:
        seen = scores_at(model, batch)
        logp_N, border_N = logprobs_of(seen[:, : lesson.vocabulary], batch.targets_N, targets.borders)
    else:
        seen = states_at(model, batch)
        logp_N, border_N = token_logprobs(seen, head, batch.targets_N, targets.borders, lesson.vocabulary)
    soft = chunk_loss(logp_N, border_N, targets, lesson.objective.temperature)[0]
    return (1 - lesson.objective.hard) * soft - lesson.objective.hard * logp_N.sum(), seen.detach()


def can_gather(model: Any) -> bool:
    """Whether this architecture's logits are its head applied to its last hidden state, position by position.

    Tried, not looked up: models that scale or cap their logits give another result and are not gathered.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = np.array([1, 5, 3, 2, 7, 4], dtype=np.int32) % vocabulary
    batch = to_device(collate([Row(ids, 2, "")]), model.device)
    head = model.get_output_embeddings()
    if head is None:
        return False
    # Enlarged, so that a cap shows even in an untrained model whose logits are all near zero
    enlarged = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1e3, *inputs[1:]))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            gathered, taken = _gathered(model, batch), scores_at(model, batch)
        return bool((gathered - taken).abs().max() <= 1e-4 * taken.abs().max())
    except (AttributeError, TypeError, RuntimeError):
        return False
    finally:
        enlarged.remove()
        model.train(was_training)


def _gathered(model: Any, batch: Batch) -> Tensor:
    scores_NV: Tensor = model.get_output_embeddings()(states_at(model, batch))
    return scores_NV


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


def to_device(batch: Batch, device: Any) -> Batch:
    return Batch(batch.ids_BT.to(device), batch.places_N.to(device), batch.targets_N.to(device))
