"""The losses that look at few ids, in one Triton kernel: what a GPU runs in place of a dozen passes of torch.

A program takes one position's row of logits. It goes through the row twice: once for the largest logit and
the sum of powers, once to write the derivative in the logit's place. Named ids are read before and written
after. `fused` has the same loss in torch, of which this is one case, and uses this where
`selftest.try_kernels` found the two equal. Importing this module takes Triton, which torch for CUDA brings.

Shapes: C positions, V the vocabulary, K entries of a sparse target.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stillhouse.train.losses.divergence import Objective
from stillhouse.train.losses.heads import Head
from stillhouse.train.losses.targets import SparseTargets

# 16 logits for each thread of 32 warps: in the code for sm_80 and sm_90 they stay in registers, but for a few
# of the capped tail's with a second softmax. What is fastest was not measured.
BLOCK_LOGITS, WARP_LOGITS = 1 << 14, 512
LEAST = tl.constexpr(-1e30)  # as in `whole`
OUT = tl.constexpr(-3.3895313892515355e38)  # the least number of bfloat16: a logit that is not of the sum


def row_losses(
    logits_CV: Tensor,
    head: Head,
    targets: SparseTargets | None,
    objective: Objective,
    ids_C: Tensor | None,
    learns: bool,
) -> Tensor:
    """Loss (C,) of each position in nats, float32, of logits in float32 or bfloat16 before scale and cap.
    Where the student `learns`, they become the derivative of the loss by them; else they are spoilt.

    `targets` are for the forward KL, and None stands for cross-entropy alone. An id that is not below V makes
    its position's loss NaN.
    """
    rows, vocabulary = logits_CV.shape
    losses_C = torch.empty(rows, dtype=torch.float32, device=logits_CV.device)
    if not rows:
        return losses_C
    soft, temperature, entries, tail_C = 0.0, 1.0, 0, None
    # What a kernel is given in place of a tensor that there is none of, it never reads
    weights_CK, labels_C = losses_C, ids_C
    if targets is not None:
        soft, temperature, entries = objective.soft_scale, objective.temperature, targets.ids_NK.shape[1]
        weights_CK, tail_C = targets.log_weights_NK.contiguous(), targets.log_tail_N
        labels_C = targets.ids_NK if ids_C is None else ids_C
    assert labels_C is not None, "cross-entropy needs the tokens"
    block = min(triton.next_power_of_2(vocabulary), BLOCK_LOGITS)
    with torch.cuda.device_of(logits_CV):
        _row[(rows,)](
            logits_CV,
            logits_CV.stride(0),
            losses_C,
            labels_C.contiguous(),
            labels_C if targets is None else targets.ids_NK.contiguous(),
            weights_CK,
            losses_C if tail_C is None else tail_C.contiguous(),
            vocabulary,
            entries,
            head.scale,
            head.softcap or 1.0,
            1.0 / temperature,
            soft,
            objective.hard,
            TAIL=tail_C is not None,
            WARM=temperature != 1.0 and objective.hard > 0.0,
            CAPPED=head.softcap is not None,
            LEARNS=learns,
            ENTRIES=triton.next_power_of_2(entries + 1),
            BLOCK=block,
            num_warps=min(max(block // WARP_LOGITS, 1), 32),
        )
    return losses_C


@triton.jit  # type: ignore[untyped-decorator]
def _row(  # noqa: PLR0915 (one pass over a row is one piece)
    logits: tl.tensor,
    stride: tl.tensor,
    losses: tl.tensor,
    labels: tl.tensor,
    ids: tl.tensor,
    log_weights: tl.tensor,
    log_tails: tl.tensor,
    vocabulary: tl.tensor,
    entries: tl.tensor,
    scale: tl.tensor,
    cap: tl.tensor,
    per_temperature: tl.tensor,
    soft: tl.tensor,
    hard: tl.tensor,
    TAIL: tl.constexpr,  # the mass of ids that are not named is a target as well
    WARM: tl.constexpr,  # the cross-entropy has another temperature, and so a softmax of its own
    CAPPED: tl.constexpr,
    LEARNS: tl.constexpr,
    ENTRIES: tl.constexpr,  # a power of 2 above `entries`: the label is one more
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    entry = tl.arange(0, ENTRIES)
    log_t = tl.load(log_weights + row * entries + entry, mask=entry < entries, other=float("-inf"))
    log_t = log_t.to(tl.float32)
    named = log_t > float("-inf")
    label = (entry == entries) & (hard > 0.0)
    id_ = tl.load(ids + row * entries + entry, mask=entry < entries, other=0)
    id_ = tl.where(label, tl.load(labels + row, mask=hard > 0.0, other=0), id_)
    real = (named | label) & (id_ >= 0) & (id_ < vocabulary)
    near = tl.load(logits + id_, mask=real, other=float("nan")).to(tl.float32)
    near = _finished(near, scale, cap, CAPPED)
    near_soft = near * per_temperature
    if TAIL:
        tl.debug_barrier()  # a thread may hold a copy of what another one overwrites
        tl.store(logits + id_, OUT, mask=real & named)
        tl.debug_barrier()

    rest_top, rest_sum = float("-inf"), 0.0  # of the ids that are not OUT
    hard_top, hard_sum = float("-inf"), 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        raw = tl.load(logits + at, mask=at < vocabulary, other=OUT).to(tl.float32)
        z = tl.where(raw == OUT, float("-inf"), _finished(raw, scale, cap, CAPPED))
        rest_top, rest_sum = _summed(rest_top, rest_sum, z * per_temperature)
        if WARM:
            hard_top, hard_sum = _summed(hard_top, hard_sum, z)
    top, total = rest_top, rest_sum
    if TAIL:
        top, total = _summed(rest_top, rest_sum, tl.where(named, near_soft, float("-inf")))
        if WARM:
            hard_top, hard_sum = _summed(hard_top, hard_sum, tl.where(named, near, float("-inf")))
    if not WARM:
        hard_top, hard_sum = top, total

    t = tl.where(named, tl.exp(log_t), 0.0)
    logp = _bounded(near_soft - top - tl.log(total))
    loss = soft * tl.sum(tl.where(named, t * (log_t - logp), 0.0), 0)
    loss -= hard * tl.sum(tl.where(label, near - hard_top - tl.log(hard_sum), 0.0), 0)
    push = soft * tl.sum(t, 0)  # every logit, by its p
    if not WARM:
        push += hard
    on_rest = push / rest_sum
    if TAIL:
        log_tail = tl.load(log_tails + row).to(tl.float32)
        tail = tl.exp(log_tail)
        log_q = _bounded(rest_top - top + tl.log(rest_sum) - tl.log(total))
        loss += tl.where(tail > 0.0, soft * tail * (log_tail - log_q), 0.0)
        push += soft * tail
        # p / q comes from the rest's own sum, as q may be too small a number
        on_rest = tl.where(rest_sum == 0.0, 0.0, (push * tl.exp(log_q) - soft * tail) / rest_sum)
        rest_top = tl.where(rest_top == float("-inf"), 0.0, rest_top)
    tl.store(losses + row, loss)

    if LEARNS:
        at_hard = hard / hard_sum if WARM else 0.0
        # An id may be named twice and be the label: each of its entries writes one and the same sum
        same = (id_[:, None] == id_[None, :]) & real[None, :]
        pull = tl.sum(tl.where(same, soft * t[None, :], 0.0), 1)
        pull_hard = tl.sum(tl.where(same & label[None, :], hard, 0.0), 1)
        is_named = tl.sum(tl.where(same & named[None, :], 1, 0), 1) > 0
        of_rest = on_rest * tl.exp(near_soft - rest_top)
        slope = tl.where(is_named, push / total * tl.exp(near_soft - top) - pull, of_rest) * per_temperature
        if WARM:
            slope += at_hard * tl.exp(near - hard_top)
        slope = (slope - pull_hard) * _steepness(near, scale, cap, CAPPED)
        for start in range(0, vocabulary, BLOCK):
            at = start + tl.arange(0, BLOCK)
            raw = tl.load(logits + at, mask=at < vocabulary, other=OUT).to(tl.float32)
            z = _finished(raw, scale, cap, CAPPED)
            rest = on_rest * tl.exp(z * per_temperature - rest_top) * per_temperature
            if WARM:
                rest += at_hard * tl.exp(z - hard_top)
            rest *= _steepness(z, scale, cap, CAPPED)
            tl.store(logits + at, rest.to(logits.dtype.element_ty), mask=at < vocabulary)
        tl.debug_barrier()
        tl.store(logits + id_, slope.to(logits.dtype.element_ty), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def _finished(raw: tl.tensor, scale: tl.tensor, cap: tl.tensor, CAPPED: tl.constexpr) -> tl.tensor:
    """As `Head.finish`. The tanh is made of exp, as Triton's own is no part of its interpreter, and near 0,
    where that would lose digits, of its series, whose next term is below 6e-8 of it."""
    z = raw * scale
    if CAPPED:
        u = z / cap
        small = u * (1.0 + u * u * (-1.0 / 3 + u * u * (2.0 / 15 - u * u * (17.0 / 315))))
        power = tl.exp(-2.0 * tl.abs(u))
        large = (1.0 - power) / (1.0 + power)
        z = cap * tl.where(tl.abs(u) < 0.2, small, tl.where(u < 0.0, -large, large))
    return z


@triton.jit  # type: ignore[untyped-decorator]
def _steepness(z: tl.tensor, scale: tl.tensor, cap: tl.tensor, CAPPED: tl.constexpr) -> tl.tensor:
    """The derivative of `_finished`, by what it gave."""
    steep = scale
    if CAPPED:
        steep = scale * (1.0 - (z / cap) * (z / cap))
    return steep


@triton.jit  # type: ignore[untyped-decorator]
def _summed(top: tl.tensor, total: tl.tensor, z: tl.tensor) -> tl.tensor:
    """The largest, and the sum of exp(z - largest), with some more; -inf adds 0, also where all are."""
    higher = tl.maximum(top, tl.max(z, 0))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(top - base) + tl.sum(tl.exp(z - base), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _bounded(logp: tl.tensor) -> tl.tensor:
    """As `forward_kl` does with -inf; NaN stays."""
    return tl.where(logp < LEAST, LEAST, logp)
