"""The losses examine themselves, in under a second, before anything is trained with them.

Every check is a number and the most that it may be. What is examined is given as functions, so that the tests
can plant known bugs in their place, and so that a compiled or sharded path can be examined before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stillhouse.errors import ModelError
from stillhouse.train.losses import checks
from stillhouse.train.losses.fused import head_loss
from stillhouse.train.losses.targets import places


@dataclass(frozen=True, slots=True)
class Check:
    """`value` may be at most `limit`; both are relative errors unless `what` says otherwise."""

    what: str
    value: float
    limit: float
    error: str = ""

    @property
    def holds(self) -> bool:
        return not self.error and self.value <= self.limit  # NaN is not


def self_test(
    path: checks.LossPath = head_loss,
    predicting: Callable[[Tensor], Tensor] = places,
    device: str | torch.device = "cpu",
) -> tuple[Check, ...]:
    """Examine `path`, and `predicting`, which finds the positions that predict; see the checks' names.

    A check that raises does not hold and carries the error. Random numbers are drawn apart from torch's own.
    """
    here = torch.device(device)
    case = checks.make_case(here, torch.float32)
    fine = checks.make_case(here, torch.float64) if here.type != "mps" else None
    cases: list[tuple[str, float, Callable[[], float]]] = [
        *(
            (
                f"student = teacher, {kind}: loss and gradient",
                1e-5,
                partial(checks.equal_models, path, case, kind),
            )
            for kind in ("dense", "states", "tail bucket")
        ),
        *(
            (f"{name} by its definition", 1e-5, partial(checks.by_definition, path, case, name))
            for name in checks.FORMULAS
        ),
        ("drawn ids: mean gradient, in standard errors", 4.0, partial(checks.drawn, path, case, 0, 12)),
        (
            "head and drawn ids: mean gradient, in standard errors",
            4.0,
            partial(checks.drawn, path, case, 4, 4),
        ),
        ("all ids as sparse targets are dense targets", 1e-5, partial(checks.all_named, path, case)),
        ("Jensen-Shannon runs into the KLs at its ends", 0.05, partial(checks.ends, path, case)),
        ("chunks of 1, 5 and all positions", 1e-5, partial(checks.chunks, path, case)),
        ("micro-batches of unequal size", 1e-5, partial(checks.micro_batches, path, case, 1)),
        ("two processes that average their gradients", 1e-5, partial(checks.micro_batches, path, case, 2)),
        ("whole logits, as of a classifier", 1e-5, partial(checks.whole, path, case)),
        ("rows of a shard in another order", 1e-5, partial(checks.shard_order, path, case)),
        (
            "padded left, right, packed; one-token answers",
            1e-5,
            partial(checks.layouts, path, predicting, case),
        ),
        ("no position that counts: loss and gradient", 0.0, partial(checks.nothing, path, case)),
        ("unknown positions", 1e-5, partial(checks.unknown, path, case)),
        ("padded vocabulary", 1e-5, partial(checks.padded_vocabulary, path, case)),
        ("tokens that have no share in the loss", 0.0, partial(checks.no_share, path, case)),
        ("final softcap and logit scale", 1e-5, partial(checks.capped, path, case)),
        ("bfloat16 products, all else in float32", 1e-4, partial(checks.bfloat16, path, case)),
        ("logits of tens of thousands", 1e-5, partial(checks.extreme, path, case)),
    ]
    if fine is not None:  # MPS has no float64, and float32 has too few digits for differences
        cases.append(("reported loss is applied gradient", 1e-5, partial(checks.differences, path, fine)))
    return tuple(_checked(*each) for each in cases)


def sound(device: str | torch.device = "cpu") -> None:
    """Raises ModelError where a check does not hold on this machine: nothing should be trained then."""
    if failed := [check for check in self_test(device=device) if not check.holds]:
        raise ModelError(
            f"the losses are wrong on {device}: {failed[0].what}",
            failed[0].error or f"off by {failed[0].value:.2g}, where {failed[0].limit:.2g} is allowed",
            "install the torch of requirements.lock, and report what `stillhouse doctor --losses` says",
        )


def _checked(what: str, limit: float, measure: Callable[[], float]) -> Check:
    try:
        return Check(what, measure(), limit)
    except Exception as error:  # of whatever kind: what is examined may be anything
        return Check(what, math.nan, limit, f"{type(error).__name__}: {error}")
