"""The tail of what a server names: too small to be told from rounding, and never nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.ledger.targets import LEAST_TAIL, Binding
from stillhouse.models.scores import Scores
from stillhouse.train.losses import Objective, SparseTargets, distil, divergence, unpacked, with_text
from stillhouse.train.remote import _likeliest

N, V, K = 2000, 5000, 20
NAMES = ("forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl")


def told(logits_NV: Tensor) -> SparseTargets:
    """As a server tells the likeliest: logs of float32, whose exponentials may come to more than 1."""
    values_NK, ids_NK = torch.log_softmax(logits_NV, -1).topk(K, -1)
    offsets_N1 = np.arange(len(logits_NV) + 1) * K
    scores = Scores(offsets_N1, ids_NK.flatten().numpy(), values_NK.flatten().double().numpy())
    binding = Binding("teacher", "", "", "", logits_NV.shape[1], K + 1)
    return unpacked(_likeliest(scores, binding), sampled=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_is_sure_teaches_within_bounds(name: str):
    generator = torch.Generator().manual_seed(1)
    teacher_NV = torch.randn(N, V, generator=generator) * 12
    student_NV = (teacher_NV + 0.1 * torch.randn(N, V, generator=generator)).requires_grad_()
    named = torch.log_softmax(teacher_NV, -1).topk(K, -1).values.double().exp().sum(-1)
    assert (named > 1 - 1e-9).any(), "the case that this is about"
    loss, _ = distil(student_NV, told(teacher_NV), Objective(getattr(divergence, name)), None, V)
    (gradient_NV,) = torch.autograd.grad(loss, student_NV)
    assert 0 <= loss.item() < 0.1 * N
    assert gradient_NV.abs().max() < 1


@pytest.mark.parametrize("name", NAMES)
def test_a_position_of_which_nothing_was_told_pulls_at_its_token_whatever_the_divergence(name: str):
    unknown = SparseTargets(torch.tensor([[0, 0]]), torch.full((1, 2), -torch.inf), torch.zeros(1))
    logits_NV = torch.tensor([[1.0, 0.0, 2.0, -1.0]], requires_grad=True)
    targets = with_text(unknown, torch.tensor([3]))
    loss, _ = distil(logits_NV, targets, Objective(getattr(divergence, name)), None, 4)
    (gradient_NV,) = torch.autograd.grad(loss, logits_NV)
    assert loss.item() < -np.log(LEAST_TAIL)
    assert gradient_NV.abs().max() < -np.log(LEAST_TAIL)
    assert gradient_NV[0, 3] == gradient_NV.min() < 0
