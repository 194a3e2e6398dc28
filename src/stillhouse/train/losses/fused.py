"""Head and loss in one, a chunk at a time: the matrix of positions times vocabulary never exists.

Gradients are made in the forward pass, while a chunk's logits are there. Nothing is computed twice, and what
is kept for backward is a gradient for the hidden states and, unless it is frozen, one for the head. A sparse
target needs of the logits what cross-entropy needs: one softmax, and its own ids. All of it is plain torch.

For losses that look at few ids there is a Triton kernel beside it (`kernels`). It was shown to be equal in
Triton's interpreter, and no GPU had run it where this was written: a GPU uses it only once it was found equal
there (`selftest.try_kernels`).

Shapes: N positions, C of them in a chunk, S of those in a slice, V the vocabulary, D the hidden width, K
entries of a sparse target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.train.losses.divergence import Objective, forward_kl
from stillhouse.train.losses.heads import Head
from stillhouse.train.losses.targets import SparseTargets, Targets, TeacherStates
from stillhouse.train.losses.whole import (
    LEAST,
    bucket_targets,
    check,
    counted,
    exact,
    real_ids,
    teacher_products,
    teacher_scores,
)

CHUNK_LOGITS = 1 << 24  # logits of a chunk: 64 MiB in float32
CHUNK_ROWS = 64, 1024  # but no fewer rows and no more: each chunk goes through the head's weights once
SLICE_LOGITS = 1 << 20  # of a chunk worked on at once, on a CPU: they stay in its cache

# What makes a chunk's losses in place of torch, by type of device: of its products with the head, the head,
# targets of the forward KL or none, objective, tokens, and whether the student learns (`kernels.row_losses`)
Kernel = Callable[[Tensor, Head, SparseTargets | None, Objective, Tensor | None, bool], Tensor]
KERNELS: dict[str, Kernel] = {}
MOST_ENTRIES = 127  # of a sparse target: a kernel compares each with each


class _Asked(NamedTuple):
    head: Head
    targets: Targets | None
    objective: Objective
    ids_N: Tensor | None
    vocabulary: int | None
    chunk: int
    dtype: torch.dtype  # of the products with the head
    learns: bool


def head_loss(
    hidden_ND: Tensor,
    head: Head,
    targets: Targets | None,
    objective: Objective,
    ids_N: Tensor | None = None,
    vocabulary: int | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, int]:
    """Sum of the positions' losses in nats (float32, float64 for float64), and how many positions count.

    The same number and gradient as `distil(head.logits(hidden_ND), ...)`. `targets` None stands for none at
    all: plain cross-entropy with `ids_N`, under an objective whose `hard` is 1. Ids from `vocabulary` on only
    pad the head. `chunk` is the number of positions whose logits are there at once; it changes memory and
    speed. The gradient can be asked for once. Raises ValueError for targets that cannot serve the objective.
    """
    positions, own = len(hidden_ND), head.cut(vocabulary)
    if targets is not None:
        check(targets, objective, ids_N, vocabulary, positions, len(own.weight_VD))
    elif objective.soft_scale or ids_N is None:
        raise ValueError("without targets there is only cross-entropy: `hard` must be 1, with the tokens")
    rows = min(max(CHUNK_LOGITS // len(own.weight_VD), CHUNK_ROWS[0]), CHUNK_ROWS[1])
    kind = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight_VD.dtype
    learns = torch.is_grad_enabled()
    asked = _Asked(own, targets, objective, ids_N, vocabulary, chunk or rows, dtype, learns)
    total: Tensor = _HeadLoss.apply(hidden_ND, own.weight_VD, own.bias_V, asked)
    return total, positions if targets is None else counted(targets, objective, positions)


class _HeadLoss(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, asked: _Asked
    ) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            loss_N, gradients = _walk(hidden_ND, weight_VD, bias_V, asked, ctx.needs_input_grad)
        ctx.save_for_backward(*gradients)
        return loss_N.sum()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # In place, as a second copy for the head may be large; asked twice, autograd notices the change
        made = [None if g is None else g.mul_(scale.to(g.dtype)) for g in ctx.saved_tensors]
        return (*made, None)


def _walk(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, asked: _Asked, needed: tuple[bool, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss of each position, and the gradients for hidden states, weight and bias of their sum."""
    exactly = torch.promote_types(asked.dtype, torch.float32)
    weight = weight_VD.to(asked.dtype)
    loss_N = torch.zeros(len(hidden_ND), dtype=exactly, device=hidden_ND.device)
    for_hidden, for_weight, for_bias = (asked.learns and need for need in needed[:3])
    d_hidden = torch.zeros_like(hidden_ND) if for_hidden else None
    d_weight = torch.zeros_like(weight_VD, dtype=exactly) if for_weight else None
    d_bias = torch.zeros_like(bias_V, dtype=exactly) if for_bias and bias_V is not None else None
    learns, kernel = for_hidden or for_weight or for_bias, _kernel(asked, hidden_ND.device)
    room_CV = weight.new_empty(
        min(asked.chunk, len(hidden_ND)), len(weight_VD)
    )  # the logits, then their gradient
    for start in range(0, len(hidden_ND), asked.chunk):
        part = slice(start, min(start + asked.chunk, len(hidden_ND)))
        hidden_CD = hidden_ND[part].to(asked.dtype)
        chunk_CV = torch.mm(hidden_CD, weight.T, out=room_CV[: len(hidden_CD)])
        if kernel is None:
            loss_N[part] = _in_torch(chunk_CV, bias_V, part, asked, learns, d_bias)
        else:
            if bias_V is not None:
                chunk_CV += bias_V.to(asked.dtype)
            loss_N[part] = kernel(chunk_CV, asked.head, *_of_few_ids(asked, part), learns)
            if d_bias is not None:
                d_bias += chunk_CV.sum(0, dtype=exactly)
        if d_hidden is not None:
            d_hidden[part] = chunk_CV @ weight
        if d_weight is not None and d_weight.dtype == asked.dtype:
            d_weight.addmm_(chunk_CV.T, hidden_CD)
        elif d_weight is not None:
            d_weight += chunk_CV.T @ hidden_CD
    made = [d_hidden, d_weight, d_bias]
    return loss_N, [
        None if d is None or of is None else d.to(of.dtype)
        for d, of in zip(made, (hidden_ND, weight_VD, bias_V), strict=True)
    ]


def _kernel(asked: _Asked, device: torch.device) -> Kernel | None:
    """What was found equal on this kind of device, where it has the loss that is asked for."""
    targets, objective = asked.targets, asked.objective
    if asked.dtype not in (torch.float32, torch.bfloat16):
        return None
    if isinstance(targets, SparseTargets) and objective.soft_scale:
        few = targets.ids_NK.shape[1] <= MOST_ENTRIES
        return KERNELS.get(device.type) if few and objective.divergence is forward_kl else None
    return KERNELS.get(device.type) if targets is None or not objective.soft_scale else None


def _of_few_ids(asked: _Asked, part: slice) -> tuple[SparseTargets | None, Objective, Tensor | None]:
    targets = asked.targets[part] if asked.objective.soft_scale and asked.targets is not None else None
    assert targets is None or isinstance(targets, SparseTargets)
    ids_C = None if asked.ids_N is None or not asked.objective.hard else asked.ids_N[part]
    return targets, asked.objective, ids_C


def _in_torch(
    chunk_CV: Tensor, bias_V: Tensor | None, part: slice, asked: _Asked, learns: bool, d_bias: Tensor | None
) -> Tensor:
    """Losses (C,) of the positions in `part`. The student `learns`: products with the head become the
    derivative by them, and `d_bias` grows by their sum.

    The products are there for a chunk, all else is made for a slice of it, which stays in a CPU's cache
    through its dozen passes, so that only the products pay for large memory.
    """
    size, vocabulary = chunk_CV.shape
    head, taught_CV = asked.head, None
    if isinstance(asked.targets, Tensor | TeacherStates) and asked.objective.soft_scale:
        taught_CV = teacher_products(asked.targets, part, asked.vocabulary)
    rows = max(1, SLICE_LOGITS // vocabulary) if chunk_CV.device.type == "cpu" else size
    losses = []
    for at in range(0, size, rows):
        own = slice(at, min(at + rows, size))
        raw_SV = chunk_CV[own] if bias_V is None else chunk_CV[own] + bias_V.to(asked.dtype)
        logits_SV = head.finish(exact(raw_SV))
        slope_SV = None if head.softcap is None else 1 - (logits_SV / head.softcap) ** 2
        place = slice(part.start + own.start, part.start + own.stop)
        loss_S, d_SV = _losses(logits_SV, None if taught_CV is None else taught_CV[own], place, asked)
        losses.append(loss_S)
        if head.scale != 1.0:
            d_SV *= head.scale
        if slope_SV is not None:
            d_SV *= slope_SV
        if d_bias is not None:
            d_bias += d_SV.sum(0)
        if learns:
            chunk_CV[own] = d_SV
    return torch.cat(losses)


def _losses(
    logits_CV: Tensor, taught_CV: Tensor | None, place: slice, asked: _Asked
) -> tuple[Tensor, Tensor]:
    """Losses of the positions at `place`, and their derivative by the logits, which may be overwritten."""
    objective, targets, ids_C1 = asked.objective, asked.targets, None
    if objective.hard:
        assert asked.ids_N is not None
        ids_C1 = asked.ids_N[place, None]
    if targets is None or not objective.soft_scale:
        return _sparse(logits_CV, None, objective, ids_C1)
    warm = objective.temperature != 1.0
    soft_CV = logits_CV / objective.temperature if warm else logits_CV
    if isinstance(targets, SparseTargets):
        loss_C, d_CV = _sparse(soft_CV, targets[place], objective, None if warm else ids_C1)
    else:
        assert taught_CV is not None
        scores_CV = teacher_scores(targets, taught_CV, objective.temperature).to(soft_CV.dtype)
        dense = _forward_kl if objective.divergence is forward_kl else _dense
        loss_C, d_CV = dense(soft_CV, scores_CV, objective, None if warm else ids_C1)
    if not warm:
        return loss_C, d_CV
    d_CV = d_CV / objective.temperature
    if ids_C1 is not None:
        hard_C, hard_CV = _sparse(logits_CV, None, objective, ids_C1)
        loss_C, d_CV = loss_C + hard_C, d_CV + hard_CV
    return loss_C, d_CV


def _sparse(
    logits_CV: Tensor, targets: SparseTargets | None, objective: Objective, ids_C1: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses that look at few ids: the derivative is a multiple of p everywhere else, and what the ids need
    is added there. With `ids_C1`, the cross-entropy's share is part of it."""
    hard_C1 = None if ids_C1 is None else logits_CV.gather(-1, ids_C1)
    if targets is None:
        d_CV, top_C1, log_C1 = _softmax(logits_CV)
        lse_C1 = top_C1 - log_C1
        loss_C = torch.zeros_like(lse_C1[:, 0])
        if objective.hard != 1.0:
            d_CV *= objective.hard
    else:
        share = 0.0 if ids_C1 is None else objective.hard
        weigh = _weighted if targets.log_tail_N is None else _with_tail
        loss_C, d_CV, lse_C1 = weigh(logits_CV, targets, objective, share)
    if ids_C1 is not None and hard_C1 is not None:
        loss_C = loss_C + objective.hard * (lse_C1 - hard_C1)[:, 0]
        d_CV.scatter_add_(-1, ids_C1, torch.full_like(lse_C1, -objective.hard))
    return loss_C, d_CV


def _weighted(
    logits_CV: Tensor, targets: SparseTargets, objective: Objective, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With g_k the derivative by log p at entry k and G their sum: sum of g_k at an id, less G p at all."""
    ids_CK = targets.ids_NK
    near_CK = logits_CV.gather(-1, ids_CK)
    p_CV, top_C1, log_C1 = _softmax(logits_CV)
    lse_C1 = top_C1 - log_C1
    logp_CK = (near_CK - lse_C1).masked_fill(targets.log_weights_NK == -torch.inf, -torch.inf)
    loss_C, g_CK = _by_logprobs(objective, logp_CK, targets.log_weights_NK.to(logp_CK.dtype))
    p_CV *= share - g_CK.sum(-1, keepdim=True)
    p_CV.scatter_add_(-1, ids_CK, g_CK)
    return loss_C, p_CV, lse_C1


def _with_tail(
    logits_CV: Tensor, targets: SparseTargets, objective: Objective, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with one more entry, the tail of mass q. Its g_tail goes to the ids outside by their share in
    the tail, s = p / q, which is taken from the logits and not from p, for where q is too small a number."""
    ids_CK, known_C1 = real_ids(targets), targets.known_N[:, None]
    near_CK = logits_CV.gather(-1, ids_CK)
    logits_CV.scatter_(-1, ids_CK, torch.where(known_C1, LEAST, near_CK))
    s_CV, top_C1, log_C1 = _softmax(logits_CV)
    lse_rest_C1 = top_C1 - log_C1
    named_CK = near_CK.masked_fill(targets.log_weights_NK == -torch.inf, -torch.inf)
    lse_C1 = torch.logaddexp(lse_rest_C1, named_CK.logsumexp(-1, keepdim=True))
    log_q_C1 = lse_rest_C1 - lse_C1
    logp_CB = torch.cat([named_CK - lse_C1, log_q_C1], -1)
    loss_C, g_CB = _by_logprobs(objective, logp_CB, bucket_targets(targets).to(logp_CB.dtype))
    at_all_C1, at_tail_C1 = share - g_CB.sum(-1, keepdim=True), g_CB[:, -1:]
    s_CV *= at_tail_C1 + at_all_C1 * log_q_C1.exp()
    at_ids_C1 = torch.where(known_C1, at_all_C1, at_all_C1 + at_tail_C1)  # of an unknown one all is tail
    s_CV.scatter_(-1, ids_CK, at_ids_C1 * (near_CK - lse_C1).exp())
    s_CV.scatter_add_(-1, ids_CK, g_CB[:, :-1])
    return loss_C, s_CV, lse_C1


def _softmax(logits_CV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, the largest logit and its log p, which give the logsumexp as their difference: one exp of all,
    where two kernels would take two."""
    p_CV = torch.softmax(logits_CV, -1)
    return p_CV, logits_CV.amax(-1, keepdim=True), p_CV.amax(-1, keepdim=True).log()


def _dense(
    logits_CV: Tensor, teacher_CV: Tensor, objective: Objective, ids_C1: Tensor | None
) -> tuple[Tensor, Tensor]:
    logp_CV = torch.log_softmax(logits_CV, -1)
    hard_C1 = None if ids_C1 is None else logp_CV.gather(-1, ids_C1)
    loss_C, d_CV = _by_logprobs(objective, logp_CV, torch.log_softmax(teacher_CV, -1))
    at_all_C1 = -d_CV.sum(-1, keepdim=True)
    if ids_C1 is not None and hard_C1 is not None:
        loss_C = loss_C - objective.hard * hard_C1[:, 0]
        at_all_C1 += objective.hard
        d_CV.scatter_add_(-1, ids_C1, torch.full_like(hard_C1, -objective.hard))
    return loss_C, d_CV.addcmul_(logp_CV.exp_(), at_all_C1)


def _forward_kl(
    logits_CV: Tensor, teacher_CV: Tensor, objective: Objective, ids_C1: Tensor | None
) -> tuple[Tensor, Tensor]:
    """sum t (z_t - z_p) - lse_t + lse_p with the derivative p - t, and the cross-entropy's share."""
    p_CV, top_p_C1, log_p_C1 = _softmax(logits_CV)
    t_CV, top_t_C1, log_t_C1 = _softmax(teacher_CV)
    hard_C1 = None if ids_C1 is None else logits_CV.gather(-1, ids_C1)
    gap_CV = torch.sub(teacher_CV.clamp(min=LEAST), logits_CV.clamp_(min=LEAST), out=logits_CV)
    gap_C = (t_CV[:, None, :] @ gap_CV[:, :, None])[:, 0, 0]
    lse_gap_C1 = (top_t_C1 - top_p_C1) - (log_t_C1 - log_p_C1)  # small for like models, and exact then
    loss_C = objective.soft_scale * (gap_C - lse_gap_C1[:, 0])
    if objective.soft_scale != 1.0:
        t_CV *= objective.soft_scale
    if ids_C1 is None or hard_C1 is None:
        d_CV = p_CV if objective.soft_scale == 1.0 else p_CV.mul_(objective.soft_scale)
        return loss_C, d_CV.sub_(t_CV)
    d_CV = p_CV.mul_(objective.soft_scale + objective.hard).sub_(t_CV)
    d_CV.scatter_add_(-1, ids_C1, torch.full_like(hard_C1, -objective.hard))
    return loss_C + objective.hard * (top_p_C1 - log_p_C1 - hard_C1)[:, 0], d_CV


def _by_logprobs(objective: Objective, logp_CB: Tensor, logt_CB: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled loss (C,) and its derivative by the log-probabilities, taken each for itself."""
    if objective.divergence is forward_kl:
        return objective.soft_scale * forward_kl(logp_CB, logt_CB), -objective.soft_scale * logt_CB.exp()
    with torch.enable_grad():
        free_CB = logp_CB.detach().requires_grad_()
        loss_C = objective.soft_scale * objective.divergence(free_CB, logt_CB)
        (d_CB,) = torch.autograd.grad(loss_C.sum(), free_CB)
    return loss_C.detach(), d_CB
