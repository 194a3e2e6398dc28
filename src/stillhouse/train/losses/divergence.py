"""How far a student's distribution lies from a teacher's: pure functions on log-probabilities.

Shapes: N positions, V outcomes. V is the vocabulary, the classes of a classifier, or the buckets of a sparse
target (its K ids and the tail that holds all others). Each function takes the student's `logp_NV` and the
teacher's `logt_NV`, both normalised over V and in nats, and gives the loss of each position. All are 0 where
the two are equal and never negative, and -inf is a probability of 0 on either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]

_FLOOR = -1e30  # stands for -inf: its exp is 0, and 0 times it is 0 and not NaN


def forward_kl(logp_NV: Tensor, logt_NV: Tensor) -> Tensor:
    """KL(t || p) = sum t (log t - log p); Hinton, Vinyals and Dean 2015 up to the teacher's entropy."""
    logp_NV, logt_NV = _finite(logp_NV, logt_NV)
    return (logt_NV.exp() * (logt_NV - logp_NV)).sum(-1)


def reverse_kl(logp_NV: Tensor, logt_NV: Tensor) -> Tensor:
    """KL(p || t) = sum p (log p - log t); MiniLLM, Gu et al. 2023, for whole distributions.

    Where the student gives weight to what the teacher calls impossible the loss is as large as numbers go.
    """
    return forward_kl(logt_NV, logp_NV)


def jensen_shannon(logp_NV: Tensor, logt_NV: Tensor, beta: float = 0.5) -> Tensor:
    """(beta KL(t || m) + (1 - beta) KL(p || m)) / (beta (1 - beta)) with m = beta t + (1 - beta) p.

    The generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2023), divided so that it runs into the
    forward KL as `beta` goes to 0 and into the reverse KL as it goes to 1; undivided it runs into 0 there.
    At beta 0.5 it is four times the undivided one. Exact to about 1e-6 / beta nats in float32.
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must lie in [0, 1] and is {beta}")
    if beta in (0.0, 1.0):
        return (reverse_kl if beta else forward_kl)(logp_NV, logt_NV)
    logp_NV, logt_NV = _finite(logp_NV, logt_NV)
    logm_NV = _mixed(logt_NV, beta, logp_NV)
    of_teacher_N = (logt_NV.exp() * (logt_NV - logm_NV)).sum(-1)
    of_student_N = (logp_NV.exp() * (logp_NV - logm_NV)).sum(-1)
    return of_teacher_N / (1.0 - beta) + of_student_N / beta


def skew_kl(logp_NV: Tensor, logt_NV: Tensor, skew: float = 0.1) -> Tensor:
    """KL(t || skew t + (1 - skew) p); DistiLLM, Ko et al. 2024, with the teacher's entropy. Bounded by
    -log skew, so no single token that the student calls impossible rules the gradient."""
    logp_NV, logt_NV = _finite(logp_NV, logt_NV)
    return forward_kl(_mixed(logt_NV, _share(skew), logp_NV), logt_NV)


def skew_reverse_kl(logp_NV: Tensor, logt_NV: Tensor, skew: float = 0.1) -> Tensor:
    """KL(p || skew p + (1 - skew) t); DistiLLM, Ko et al. 2024."""
    logp_NV, logt_NV = _finite(logp_NV, logt_NV)
    return forward_kl(_mixed(logp_NV, _share(skew), logt_NV), logp_NV)


@dataclass(frozen=True, slots=True)
class Objective:
    """What a position's loss is: (1 - hard) T^2 divergence(p_T, t_T) + hard cross-entropy(p, token).

    p_T and t_T are the two models' distributions at `temperature` T, each after its own scale and cap. T^2
    keeps the gradient's size as T grows (Hinton, Vinyals and Dean 2015, section 2); it multiplies the very
    number that is differentiated. The cross-entropy is at temperature 1.
    """

    divergence: Divergence = forward_kl
    temperature: float = 1.0
    hard: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"a temperature is above 0 and not {self.temperature}")
        if not 0.0 <= self.hard <= 1.0:
            raise ValueError(f"`hard` is a share and not {self.hard}")

    @property
    def soft_scale(self) -> float:
        return (1.0 - self.hard) * self.temperature**2


def _finite(logp_NV: Tensor, logt_NV: Tensor) -> tuple[Tensor, Tensor]:
    return logp_NV.clamp(min=_FLOOR), logt_NV.clamp(min=_FLOOR)


def _mixed(one_NV: Tensor, share: float, other_NV: Tensor) -> Tensor:
    """Log of share * exp(one) + (1 - share) * exp(other)."""
    return torch.logaddexp(one_NV + math.log(share), other_NV + math.log1p(-share))


def _share(skew: float) -> float:
    if not 0.0 < skew < 1.0:
        raise ValueError(f"skew must lie between 0 and 1 and is {skew}")
    return skew
