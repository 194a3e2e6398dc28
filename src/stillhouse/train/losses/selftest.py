"""The losses examine themselves, in under a second, before anything is trained with them.

Every check is a number and the most that it may be. What is examined is given as functions, so that the tests
can plant known bugs in their place, and so that a compiled or sharded path can be examined before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.errors import ModelError
from stillhouse.train.losses import checks, chunk_checks, kernel_checks
from stillhouse.train.losses.fused import KERNELS, head_loss
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

    def on(measure: Callable[..., float], *more: object) -> Callable[[], float]:
        return lambda: measure(path, case, *more)

    equal = ("dense", "states", "tail bucket")
    cases = [
        *((f"student = teacher, {k}: loss and gradient", 1e-5, on(checks.equal_models, k)) for k in equal),
        *((f"{n} by its definition", 1e-5, on(checks.by_definition, n)) for n in checks.FORMULAS),
        ("drawn ids: mean gradient, in standard errors", 4.0, on(checks.drawn, 0, 12)),
        ("head and drawn ids: mean gradient, in standard errors", 4.0, on(checks.drawn, 4, 4)),
        ("all ids as sparse targets are dense targets", 1e-5, on(checks.all_named)),
        ("Jensen-Shannon runs into the KLs at its ends", 0.05, on(checks.ends)),
        ("chunks of 1, 5 and all positions", 1e-5, on(checks.chunks)),
        ("micro-batches of unequal size", 1e-5, on(checks.micro_batches, 1)),
        ("two processes that average their gradients", 1e-5, on(checks.micro_batches, 2)),
        ("whole logits, as of a classifier", 1e-4, on(checks.whole)),
        ("rows of a shard in another order", 1e-5, on(checks.shard_order)),
        ("padded left, right, packed; one-token answers", 1e-5, on(checks.layouts, predicting)),
        ("no position that counts: loss and gradient", 0.0, on(checks.nothing)),
        ("unknown positions", 1e-5, on(checks.unknown)),
        ("padded vocabulary", 1e-5, on(checks.padded_vocabulary)),
        ("tokens that have no share in the loss", 0.0, on(checks.no_share)),
        ("final softcap and logit scale", 1e-5, on(checks.capped)),
        ("bfloat16 products, all else in float32", 1e-4, on(checks.bfloat16)),
        ("logits of tens of thousands", 1e-5, on(checks.extreme)),
        ("student = teacher, chunks: loss and gradient", 1e-5, lambda: chunk_checks.equal_chunks(case)),
        ("chunks by their definition", 1e-4, lambda: chunk_checks.chunks_by_definition(case)),
        ("chunks in any layout", 1e-5, lambda: chunk_checks.chunk_layouts(case)),
    ]
    if here.type != "mps":  # it has no float64, and float32 has too few digits for differences
        fine = checks.make_case(here, torch.float64)
        cases.append(("reported loss is applied gradient", 1e-5, lambda: checks.differences(path, fine)))
        cases.append(("the same of chunks", 1e-5, lambda: chunk_checks.chunk_differences(fine)))
    return tuple(_checked(*each) for each in cases)


def sound(device: str | torch.device = "cpu") -> None:
    """Raises ModelError where a check does not hold on this machine: nothing should be trained then."""
    if failed := [check for check in self_test(device=device) if not check.holds]:
        raise ModelError(
            f"the losses are wrong on {device}: {failed[0].what}",
            failed[0].error or f"off by {failed[0].value:.2g}, where {failed[0].limit:.2g} is allowed",
            "install the torch of requirements.lock, and report what `stillhouse doctor --losses` says",
        )


def try_kernels(device: str | torch.device) -> tuple[Check, ...]:
    """Let `head_loss` run the Triton kernel on CUDA GPUs from now on, if it is equal to torch on this one.

    The two checks that decide it; none on another device, for which there is no kernel. One that cannot be
    imported, compiled or run does not hold, and all goes on in torch. Compiles some twenty kernels, which
    Triton keeps for the next time.
    """
    here = torch.device(device)
    if here.type != "cuda":
        return ()
    KERNELS.pop(here.type, None)
    done = kernels_equal(here)
    if all(check.holds for check in done):
        from stillhouse.train.losses.kernels import row_losses

        KERNELS[here.type] = row_losses
    return done


def kernels_equal(device: torch.device) -> tuple[Check, ...]:
    """What `try_kernels` decides by. A derivative in bfloat16 may be its neighbour."""

    def apart(dtype: torch.dtype) -> float:
        from stillhouse.train.losses.kernels import row_losses  # takes Triton

        return kernel_checks.kernel_apart(row_losses, device, dtype)

    return (
        _checked("Triton kernel beside torch, float32", 1e-5, lambda: apart(torch.float32)),
        _checked("Triton kernel beside torch, bfloat16", 2.0**-7, lambda: apart(torch.bfloat16)),
    )


def kernel_notices(done: tuple[Check, ...]) -> list[str]:
    """What whoever asked for a training should know of `try_kernels`."""
    if not (failed := [check for check in done if not check.holds]):
        return []
    why = failed[0].error or f"off by {failed[0].value:.2g}, where {failed[0].limit:.2g} is allowed"
    return [f"the losses ran in torch: {failed[0].what} on this GPU: {why[:300]}"]


def _checked(what: str, limit: float, measure: Callable[[], float]) -> Check:
    try:
        return Check(what, measure(), limit)
    except Exception as error:  # of whatever kind: what is examined may be anything
        return Check(what, math.nan, limit, f"{type(error).__name__}: {error}")
