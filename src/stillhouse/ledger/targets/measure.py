"""How good the targets of a run are: what was kept of the teacher's distributions, and what that does to a
student's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.ledger.targets import TargetReader, holds_chunks
from stillhouse.ledger.targets.layout import Binding, Targets

_ROWS = 512  # decoded at once
_STEPS = 10_000  # the kept mass is counted in steps of this part of 1


@dataclass(frozen=True, slots=True)
class Measured:
    """Over the positions that have targets; None where there is none. Of chunks, which are no distributions,
    only `known` and `entries` are told: the positions that end one.

    `kept` is the mean mass that named ids hold, and `kept_p10` what nine tenths of the positions have at
    least (to 1e-4). `bias` bounds how far a position's gradient can lie from that of the whole distribution,
    as total variation (half the sum of absolute differences over the vocabulary), whatever the student is: a
    bucket for the tail leaves open only how the tail is shared out. It is the mean mass of the tail, and 0
    where the tail was drawn from. `variance` is that of independent draws, summed over the vocabulary: 0
    without draws, None where one draw a position cannot tell. Draws that are spread vary less. Vectors name
    no ids and keep everything, but for the rounding of their numbers.
    """

    rows: int
    positions: int
    known: int
    entries: int
    bytes: int
    kept: float | None
    kept_p10: float | None
    bias: float | None
    variance: float | None


def measure(readers: Sequence[TargetReader]) -> Measured:
    """Read every row of the shards. Raises LedgerError for a row that cannot be read."""
    steps_S = np.zeros(_STEPS + 1, dtype=np.int64)
    known, entries, kept, variance, can_tell = 0, 0, 0.0, 0.0, True
    of_tokens = [reader for reader in readers if not holds_chunks(reader.binding)]
    for reader in of_tokens:
        can_tell &= reader.binding.draws != 1
        rows = sum(len(shard.sample_ids) for shard in reader.shards)
        for first in range(0, rows, _ROWS):
            some = range(first, min(first + _ROWS, rows))
            if reader.binding.width:
                whole = sum(len(reader.vectors([row])) for row in some)
                known, kept = known + whole, kept + whole
                steps_S[_STEPS] += whole
                continue
            targets = reader.read(some)
            known_N = np.diff(targets.offsets_N1) > 0
            kept_N = 1.0 - np.exp(targets.log_tail_N[known_N].astype(np.float64))
            steps_S += np.bincount(np.floor(kept_N * _STEPS).astype(np.int64), minlength=_STEPS + 1)
            known += len(kept_N)
            entries += len(targets.ids_E)
            kept += float(kept_N.sum())
            variance += _variance(reader.binding, targets) if reader.binding.draws > 1 else 0.0
    mean = kept / known if known else None
    return Measured(
        rows=sum(len(shard.sample_ids) for reader in readers for shard in reader.shards),
        positions=sum(reader.positions for reader in readers),
        known=sum(reader.known for reader in readers),
        entries=entries + sum(reader.known for reader in readers if reader not in of_tokens),
        bytes=sum(len(shard.data) for reader in readers for shard in reader.shards),
        kept=mean,
        kept_p10=_quantile(steps_S, 0.1) if known else None,
        bias=None if mean is None else 1.0 - mean,
        variance=variance / known if known and can_tell else None,
    )


def _quantile(steps_S: NDArray[np.int64], share: float) -> float:
    """The largest step that at most `share` of what was counted lies below."""
    below_S = np.cumsum(steps_S) - steps_S
    return float(np.flatnonzero(below_S <= share * steps_S.sum())[-1]) / _STEPS


def _variance(binding: Binding, targets: Targets) -> float:
    """The variance of the weights of drawn ids, summed over the vocabulary and the positions.

    n draws from a mass r, of which id i has the share q_i, give a weight r c_i / n with the variance
    r^2 q_i (1 - q_i) / n; an unbiased estimate of 1 - sum q_i^2 is n / (n - 1) (1 - sum (c_i / n)^2).
    """
    sizes_N = np.diff(targets.offsets_N1)
    position_E = np.repeat(np.arange(len(sizes_N)), sizes_N)
    drawn_E = np.arange(len(position_E)) - targets.offsets_N1[position_E] >= binding.head
    weights_E = np.exp(targets.logprobs_E[drawn_E].astype(np.float64))
    rest_N = np.bincount(position_E[drawn_E], weights_E, len(sizes_N))
    squares_N = np.bincount(position_E[drawn_E], weights_E**2, len(sizes_N))
    return float(np.sum(rest_N**2 - squares_N)) / (binding.draws - 1)
