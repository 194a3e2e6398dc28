"""What steps the weights, and how fast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stillhouse import recipe as recipes

OUTER = ("embed", "wte", "wpe", "lm_head")  # in the names of matrices that are tables or heads


def learning_rate(step: int, steps: int, settings: recipes.Train) -> float:
    """Linear rise over the warm-up, then a half cosine down to `final_rate` of the peak at the last step."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - 1 - warm)
    low = settings.final_rate
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_rate(optimisers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate


def make_optimisers(
    trainable: Sequence[tuple[str, Tensor]], settings: recipes.Train
) -> list[torch.optim.Optimizer]:
    """AdamW in one fused kernel, weight decay on matrices only; or Muon for the matrices within the layers
    (Jordan 2024, its rate scaled to AdamW's as by Liu et al. 2025) and AdamW for the rest. Muon takes each
    matrix by itself, so half of them are left to a second one, which can step at the same time."""
    muon = settings.optimiser == "muon"
    inner = [v for n, v in trainable if muon and v.ndim == 2 and not any(part in n for part in OUTER)]
    chosen = {id(value) for value in inner}
    rest = [value for _, value in trainable if id(value) not in chosen]
    groups = [
        {"params": [v for v in rest if v.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [v for v in rest if v.ndim < 2], "weight_decay": 0.0},
    ]
    fused = {value.device.type for value in rest} <= {"cpu", "cuda"}
    rate = settings.learning_rate
    optimisers: list[torch.optim.Optimizer] = []
    if groups := [group for group in groups if group["params"]]:
        optimisers.append(torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=fused))
    for half in (inner[::2], inner[1::2]):
        if half:
            decay = settings.weight_decay
            muons = torch.optim.Muon(half, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            optimisers.append(muons)
    return optimisers
