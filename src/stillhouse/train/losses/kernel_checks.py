"""How far the Triton kernel lies from torch on a device: `head_loss` with the one and with the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from stillhouse.train.losses.checks import SEED, Case, apart, highest, run
from stillhouse.train.losses.divergence import Objective
from stillhouse.train.losses.fused import KERNELS, Kernel, head_loss
from stillhouse.train.losses.heads import Head
from stillhouse.train.losses.targets import SparseTargets, stratified

POSITIONS, WIDTH = 24, 16
SIZES = 17_391, 32_768  # rows in more than one block, not aligned in memory and aligned


@contextmanager
def using(kernel: Kernel | None, device: torch.device) -> Iterator[None]:
    """Within, `head_loss` uses this kernel on such devices, or none, whatever it used before."""
    before = KERNELS.pop(device.type, None)
    if kernel is not None:
        KERNELS[device.type] = kernel
    try:
        yield
    finally:
        KERNELS.pop(device.type, None)
        if before is not None:
            KERNELS[device.type] = before


def kernel_apart(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative difference of the losses and of the gradients, over both sizes of vocabulary, the
    kinds of targets, temperatures, shares of cross-entropy, caps, and positions of which nothing is known."""
    worst = 0.0
    for vocabulary in SIZES:
        case, logt_NV = _case(vocabulary, device, dtype)
        for head, draws, objective, scale, cap in (
            (0, 0, Objective(hard=1.0), 1.0, None),
            (4, 8, Objective(), 1.0, None),
            (4, 8, Objective(temperature=2.0, hard=0.3), 0.5, None),
            (20, 0, Objective(hard=0.3), 1.0, None),
            (20, 0, Objective(temperature=2.0, hard=0.3), 2.0, 5.0),
        ):
            made = replace(case, head=replace(case.head, scale=scale, softcap=cap))
            targets = None
            if head:
                generator = torch.Generator(device).manual_seed(SEED)
                targets = _less_one(stratified(logt_NV, head, draws, generator), objective.temperature)
            with using(None, device):
                want = run(head_loss, made, targets, objective)
            with using(kernel, device):
                worst = highest(worst, apart(want, run(head_loss, made, targets, objective)))
    return worst


def _case(vocabulary: int, device: torch.device, dtype: torch.dtype) -> tuple[Case, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    hidden_ND = torch.randn(POSITIONS, WIDTH, generator=generator).to(device, dtype)
    weight_VD = torch.randn(vocabulary, WIDTH, generator=generator).to(device, dtype)
    bias_V = torch.randn(vocabulary, generator=generator).to(device, dtype)
    teacher_NV = (3.0 * torch.randn(POSITIONS, vocabulary, generator=generator)).to(device)
    ids_N = torch.randint(vocabulary, (POSITIONS,), generator=generator).to(device)
    return Case(hidden_ND, Head(weight_VD, bias_V), teacher_NV, ids_N), teacher_NV.log_softmax(-1)


def _less_one(targets: SparseTargets, temperature: float) -> SparseTargets:
    """As of this temperature, and without what is known of the first position."""
    weights_NK, tail_N = targets.log_weights_NK.clone(), targets.log_tail_N
    weights_NK[0] = -torch.inf
    if tail_N is not None:
        tail_N = torch.cat([torch.zeros_like(tail_N[:1]), tail_N[1:]])
    return SparseTargets(targets.ids_NK, weights_NK, tail_N, temperature)
