"""The loss where all logits are there: classifiers, and models whose head cannot be taken apart.

Shapes: N positions (or examples), V the vocabulary (or classes), K entries of a sparse target.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import linear

from stillhouse.train.losses.divergence import Objective, forward_kl
from stillhouse.train.losses.targets import ChunkTargets, SparseTargets, Targets, TeacherStates

LEAST = -1e30  # the logit of what is left out


def cross_entropy(logits_NV: Tensor, ids_N: Tensor, vocabulary: int | None = None) -> tuple[Tensor, int]:
    """Sum of -log p(id) in nats, and N."""
    return F.cross_entropy(exact(logits_NV[:, :vocabulary]), ids_N, reduction="sum"), len(ids_N)


def distil(
    logits_NV: Tensor,
    targets: Targets,
    objective: Objective,
    ids_N: Tensor | None = None,
    vocabulary: int | None = None,
) -> tuple[Tensor, int]:
    """Sum of the positions' losses in nats, and how many positions count: see `position_losses`."""
    loss_N = position_losses(logits_NV, targets, objective, ids_N, vocabulary)
    return loss_N.sum(), counted(targets, objective, len(logits_NV))


def position_losses(
    logits_NV: Tensor,
    targets: Targets,
    objective: Objective,
    ids_N: Tensor | None = None,
    vocabulary: int | None = None,
) -> Tensor:
    """The loss (N,) of each position in nats, in float32 (float64 for float64), differentiable.

    `ids_N` are the tokens or labels of the cross-entropy, not looked at where `objective.hard` is 0. Logits
    from `vocabulary` on only pad a model's output and are left out on both sides. Raises ValueError for
    targets that cannot serve the objective.
    """
    scores_NV = exact(logits_NV[:, :vocabulary])
    check(targets, objective, ids_N, vocabulary, *scores_NV.shape)
    loss_N = torch.zeros_like(scores_NV[:, 0])
    if objective.soft_scale:
        logp_NV = torch.log_softmax(scores_NV / objective.temperature, -1)
        if isinstance(targets, SparseTargets):
            loss_N = objective.divergence(*_buckets(logp_NV, targets))
        else:
            with torch.no_grad():
                products_NV = teacher_products(targets, slice(None), vocabulary)
                teacher_NV = teacher_scores(targets, products_NV, objective.temperature)
            loss_N = objective.divergence(logp_NV, torch.log_softmax(teacher_NV.to(logp_NV.dtype), -1))
        loss_N = objective.soft_scale * loss_N
    if objective.hard:
        assert ids_N is not None
        loss_N = loss_N + objective.hard * F.cross_entropy(scores_NV, ids_N, reduction="none")
    return loss_N


def counted(targets: Targets | ChunkTargets, objective: Objective, positions: int) -> int:
    """Positions that bear a loss: all, less unknown ones where there is no cross-entropy either. Text in no
    known chunk has one."""
    if isinstance(targets, SparseTargets) and not objective.hard:
        return int(targets.known_N.sum())
    return positions


def normalised(total: Tensor, count: int, processes: int = 1) -> Tensor:
    """What to call `backward` on: `total` over the `count` positions of the whole step.

    `count` is summed over all micro-batches and all processes, never a mean of means. `processes` undoes the
    averaging of gradients in data parallel training; it is 1 where gradients are summed.
    """
    return total * (processes / max(count, 1))


def check(
    targets: Targets,
    objective: Objective,
    ids_N: Tensor | None,
    vocabulary: int | None,
    positions: int,
    outcomes: int,
) -> None:
    """Raises ValueError for targets that do not fit the student's outputs or cannot serve the objective."""
    if len(targets) != positions:
        raise ValueError(f"there are targets for {len(targets)} positions, and {positions} predict")
    if objective.hard and ids_N is None:
        raise ValueError("a share of cross-entropy needs the tokens")
    if not isinstance(targets, SparseTargets):
        rows = targets.shape[1] if isinstance(targets, Tensor) else len(targets.head.weight_VD)
        if (rows if vocabulary is None else min(rows, vocabulary)) != outcomes:
            raise ValueError(
                f"the teacher has {rows} outputs and the student {outcomes}: "
                "where both only pad one vocabulary, say how many ids it has"
            )
        return
    if not objective.soft_scale:
        return
    if targets.temperature != objective.temperature:
        raise ValueError(
            f"the targets are of temperature {targets.temperature}, the objective asks for "
            f"{objective.temperature}, and one cannot be had from the other"
        )
    if targets.log_tail_N is None and objective.divergence is not forward_kl:
        raise ValueError("sampled targets serve the forward KL only: any other gradient would be biased")


def teacher_products(targets: Tensor | TeacherStates, part: slice, vocabulary: int | None) -> Tensor:
    """What the teacher's head makes (C, V) of some positions, not yet scaled and capped; or its logits."""
    if isinstance(targets, Tensor):
        return targets[part, :vocabulary]
    head = targets.head.cut(vocabulary)
    return linear(targets.hidden_ND[part].to(head.weight_VD.dtype), head.weight_VD, head.bias_V)


def teacher_scores(targets: Tensor | TeacherStates, products_CV: Tensor, temperature: float) -> Tensor:
    """Its logits at a temperature, in float32 at least."""
    scores_CV = exact(products_CV)
    scores_CV = scores_CV if isinstance(targets, Tensor) else targets.head.finish(scores_CV)
    return scores_CV if temperature == 1.0 else scores_CV / temperature


def exact(values: Tensor) -> Tensor:
    """float32 at least: sums over a vocabulary are never made in less."""
    return values if values.dtype == torch.float64 else values.float()


def real_ids(targets: SparseTargets) -> Tensor:
    """`ids_NK` with the first entry's id in place of every entry that is none, so that none is taken out of
    the tail that is not named."""
    return torch.where(targets.log_weights_NK > -torch.inf, targets.ids_NK, targets.ids_NK[:, :1])


def bucket_targets(targets: SparseTargets) -> Tensor:
    """The teacher's log-probabilities over the buckets, (N, K + 1) or (N, K)."""
    if targets.log_tail_N is None:
        return targets.log_weights_NK
    return torch.cat([targets.log_weights_NK, targets.log_tail_N[:, None]], -1)


def _buckets(logp_NV: Tensor, targets: SparseTargets) -> tuple[Tensor, Tensor]:
    ids_NK, logt_NB = real_ids(targets), bucket_targets(targets).to(logp_NV.dtype)
    none_NK = targets.log_weights_NK == -torch.inf
    near_NK = logp_NV.gather(-1, ids_NK).masked_fill(none_NK, -torch.inf)
    if targets.log_tail_N is None:
        return near_NK, logt_NB
    # The tail is summed and not taken as 1 minus the rest, which would lose all digits of a small one
    tail_N = logp_NV.scatter(-1, ids_NK, LEAST).logsumexp(-1)
    tail_N = tail_N.where(targets.known_N, 0.0)  # of an unknown position all is tail
    return torch.cat([near_NK, tail_N[:, None]], -1), logt_NB
