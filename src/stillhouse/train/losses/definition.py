"""The losses once more, as their formulas stand on paper: float64, plain numpy, one position after another.

This is what the self-test measures against, so nothing here is shared with what is measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stillhouse.train.losses.divergence import Objective
from stillhouse.train.losses.targets import SparseTargets

Values = NDArray[np.float64]
Formula = Callable[[Values, Values], float]


def kl(a_V: Values, b_V: Values) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(a_V, b_V, strict=True) if a > 0))


def jensen_shannon(p_V: Values, t_V: Values, beta: float) -> float:
    m_V = beta * t_V + (1 - beta) * p_V
    return (beta * kl(t_V, m_V) + (1 - beta) * kl(p_V, m_V)) / (beta * (1 - beta))


def softmax(logits_V: Values, temperature: float) -> Values:
    powers_V = np.exp((logits_V - logits_V.max()) / temperature)
    return np.asarray(powers_V / powers_V.sum())


def loss(
    formula: Formula,
    logits_NV: Values,
    targets: Values | SparseTargets,
    objective: Objective,
    ids_N: NDArray[np.int64],
) -> float:
    """Sum over the positions; `targets` are a teacher's logits or sparse, `formula` takes p and t."""
    total = 0.0
    for n, logits_V in enumerate(logits_NV):
        p_V = softmax(logits_V, objective.temperature)
        if isinstance(targets, SparseTargets):
            soft = formula(*_buckets(p_V, targets, n))
        else:
            soft = formula(p_V, softmax(targets[n], objective.temperature))
        hard = -np.log(softmax(logits_V, 1.0)[ids_N[n]])
        total += (1 - objective.hard) * objective.temperature**2 * soft + objective.hard * float(hard)
    return total


def _buckets(p_V: Values, targets: SparseTargets, n: int) -> tuple[Values, Values]:
    entries = zip(targets.ids_NK[n].tolist(), targets.log_weights_NK[n].tolist(), strict=True)
    named = [(number, np.exp(weight)) for number, weight in entries if weight > -np.inf]
    p, t = [p_V[number] for number, _ in named], [weight for _, weight in named]
    if targets.log_tail_N is not None:
        p.append(sum(p_V[v] for v in set(range(len(p_V))) - {number for number, _ in named}))
        t.append(np.exp(float(targets.log_tail_N[n])))
    return np.array(p), np.array(t)
