"""What the self-test measures of the loss across tokenizers; beside it the loss as it stands on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stillhouse.train.losses.checks import Case, Run, apart, as_numpy, highest
from stillhouse.train.losses.chunks import chunk_loss, token_logprobs
from stillhouse.train.losses.heads import Head
from stillhouse.train.losses.targets import ChunkTargets

CHUNKS = [0, 0, 0, 1, 2, 2, 4, 4, 3, 3, 3, 4]  # of 12 positions; 4 is none
BEFORE = [4, 4, 4, 0, 1, 4, 4, 4, 4, 4, 4, 3]
BORDERS = [0, 3, 8, 21]


def equal_chunks(case: Case) -> float:
    """A student that holds each chunk as likely as its teacher: no loss, and no gradient beside another's."""
    held_C = torch.tensor(_sums(case)).to(case.hidden_ND)
    same, other = run(case, held_C), run(case, 2 * held_C)
    return highest(abs(same.loss / other.loss), float(same.slope.norm() / other.slope.norm()))


def chunks_by_definition(case: Case) -> float:
    worst, held_C = 0.0, [0.3, 1.7, 0.9, 1.2] * np.array(_sums(case))
    for temperature in (1.0, 100.0):
        want = 0.0
        for own, held in zip(_sums(case), held_C, strict=True):
            p, t = np.exp(own / temperature), np.exp(held / temperature)
            want += temperature * (t * np.log(t / p) + (1 - t) * np.log((1 - t) / (1 - p)))
        found = run(case, torch.tensor(held_C).to(case.hidden_ND), temperature)
        worst = highest(worst, abs(found.loss / want - 1))
    return worst


def chunk_differences(case: Case) -> float:
    """Central differences along a random direction of the states, through the border too."""
    way_ND = torch.randn(case.hidden_ND.shape, generator=torch.Generator().manual_seed(1)).to(case.hidden_ND)
    held_C, step = 0.6 * torch.tensor(_sums(case)).to(case.hidden_ND), 1e-5
    up, down = (
        run(replace(case, hidden_ND=case.hidden_ND + by * way_ND), held_C).loss for by in (step, -step)
    )
    slope = float(run(case, held_C).slope[: way_ND.numel()] @ way_ND.flatten())
    return abs((up - down) / (2 * step) / slope - 1)


def chunk_layouts(case: Case) -> float:
    """In pieces of one position, with padded rows of the head, and with positions of no chunk beside."""
    vocabulary, width = case.head.weight_VD.shape
    held_C = 0.6 * torch.tensor(_sums(case)).to(case.hidden_ND)
    want = run(case, held_C)
    junk_VD = torch.full((8, width), 9.0).to(case.hidden_ND)
    wide = replace(case, head=Head(torch.cat([case.head.weight_VD, junk_VD]), _padded(case.head.bias_V)))
    made = run(wide, held_C, vocabulary=vocabulary)
    cut = made.slope.split([case.hidden_ND.numel(), junk_VD.numel() + vocabulary * width, vocabulary + 8])
    real = torch.cat([cut[0], cut[1][: vocabulary * width], cut[2][:vocabulary]])
    return highest(apart(want, run(case, held_C, chunk=1)), apart(want, replace(made, slope=real)))


def run(
    case: Case, held_C: Tensor, temperature: float = 100.0, vocabulary: int | None = None, chunk: int = 5
) -> Run:
    leaves = [leaf.detach().requires_grad_() for leaf in (case.hidden_ND, case.head.weight_VD)]
    assert case.head.bias_V is not None
    leaves.append(case.head.bias_V.detach().requires_grad_())
    head = replace(case.head, weight_VD=leaves[1], bias_V=leaves[2])
    here = case.hidden_ND.device
    edges = torch.tensor(BORDERS, device=here)
    logp_N, border_N = token_logprobs(leaves[0], head, case.ids_N, edges, vocabulary, chunk)
    chunk_N, before_N = (torch.tensor(each, device=here) for each in (CHUNKS, BEFORE))
    targets = ChunkTargets(chunk_N, before_N, held_C, edges)
    total, count = chunk_loss(logp_N, border_N, targets, temperature)
    slopes = torch.autograd.grad(total, leaves)
    return Run(float(total.detach()), torch.cat([slope.flatten() for slope in slopes]), count)


def _sums(case: Case) -> list[float]:
    """What the student holds of each chunk and its border, by the softmax itself."""
    logits_NV, sums = as_numpy(case.logits()), [0.0] * 4
    for n, logits_V in enumerate(logits_NV):
        p_V = np.exp(logits_V) / np.exp(logits_V).sum()
        if CHUNKS[n] < 4:
            sums[CHUNKS[n]] += float(np.log(p_V[int(case.ids_N[n])]))
        if BEFORE[n] < 4:
            sums[BEFORE[n]] += float(np.log(p_V[BORDERS].sum()))
    return sums


def _padded(bias_V: Tensor | None) -> Tensor:
    assert bias_V is not None
    return torch.cat([bias_V, torch.full((8,), 9.0).to(bias_V)])
