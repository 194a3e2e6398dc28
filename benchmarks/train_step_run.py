"""One vocabulary and one number format of `train_step.py`: every contestant in turn, in one process.

    python train_step_run.py VOCABULARY DTYPE TOKENS WIDTH ROUNDS     -> one JSON object on stdout

Runs in the peers' environment, with stillhouse's sources on the path. A contestant that cannot run here is
named with the reason.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stillhouse.train.losses import (
    Head,
    Objective,
    SparseTargets,
    TeacherStates,
    forward_kl,
    head_loss,
    jensen_shannon,
    kernel_notices,
    stratified,
    try_kernels,
)
from stillhouse.train.losses.kernel_checks import using

SEED = 11
LAYERS = 2  # of the body of a whole step
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Loss = Callable[[Tensor, Tensor], Tensor]  # of states (N, D) and weights (V, D), a mean over the tokens


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """N tokens of a student of width D with a head of V ids, and of a teacher twice as wide."""

    hidden_ND: Tensor
    weight_VD: Tensor
    ids_N: Tensor
    teacher: TeacherStates
    sampled: SparseTargets
    top: SparseTargets


def make_inputs(vocabulary: int, dtype: torch.dtype, tokens: int, width: int) -> Inputs:
    """A teacher as peaked as a language model is: about two thirds of the mass on ten ids."""
    torch.manual_seed(SEED)
    hidden_ND = torch.randn(tokens, width)
    weight_VD = torch.randn(vocabulary, width) / width**0.5
    teacher_ND, head_VD = torch.randn(tokens, 2 * width), torch.randn(vocabulary, 2 * width) / width**0.5
    parts = [
        stratified(torch.log_softmax(2.0 * some @ head_VD.T, -1), *how)
        for some in teacher_ND.split(64)
        for how in ((4, 8), (20, 0))
    ]
    moved = [each.to(DEVICE, dtype) for each in (hidden_ND, weight_VD, 2.0 * teacher_ND, head_VD)]
    return Inputs(
        moved[0],
        moved[1],
        torch.randint(vocabulary, (tokens,)).to(DEVICE),
        TeacherStates(moved[2], Head(moved[3])),
        joined(parts[0::2]).to(DEVICE),
        joined(parts[1::2]).to(DEVICE),
    )


def joined(parts: list[SparseTargets]) -> SparseTargets:
    tails = [part.log_tail_N for part in parts if part.log_tail_N is not None]
    return SparseTargets(
        torch.cat([part.ids_NK for part in parts]),
        torch.cat([part.log_weights_NK for part in parts]),
        torch.cat(tails) if tails else None,
    )


# ---------------------------------------------------------------- contestants


def torch_all_logits(given: Inputs, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    return F.cross_entropy((hidden_ND @ weight_VD.T).float(), given.ids_N)


def torch_checkpointed(given: Inputs, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    def part(hidden_CD: Tensor, ids_C: Tensor) -> Tensor:
        return F.cross_entropy((hidden_CD @ weight_VD.T).float(), ids_C, reduction="sum")

    pairs = zip(hidden_ND.split(256), given.ids_N.split(256), strict=True)
    return sum(checkpoint(part, *pair, use_reentrant=False) for pair in pairs) / len(hidden_ND)


def ours(targets: Any, objective: Objective, given: Inputs, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    chosen = targets(given)
    total, count = head_loss(hidden_ND, Head(weight_VD), chosen, objective, given.ids_N)
    return total / count


def in_torch(loss: Any, given: Inputs, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    with using(None, torch.device(DEVICE)):
        return loss(given, hidden_ND, weight_VD)


def trl_divergence(beta: float, given: Inputs, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones(1, len(hidden_ND), device=hidden_ND.device)
    teacher = given.teacher
    states = hidden_ND[None], teacher.hidden_ND[None]
    return _chunked_divergence_loss(*states, weight_VD, teacher.head.weight_VD, mask, beta)[0]


def liger_divergence(beta: float, given: Inputs, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta, compiled=DEVICE == "cuda")
    return loss(hidden_ND, weight_VD, given.teacher.hidden_ND, given.teacher.head.weight_VD, given.ids_N)


MIDDLE = partial(jensen_shannon, beta=0.5)
CROSS_ENTROPY = {
    "torch cross-entropy, all logits": torch_all_logits,
    "torch cross-entropy, checkpointed chunks": torch_checkpointed,
    "stillhouse cross-entropy": partial(ours, lambda given: None, Objective(hard=1.0)),
}
SPARSE = {
    "stillhouse sampled targets, 12 ids": partial(ours, lambda given: given.sampled, Objective()),
    "stillhouse tail bucket, 20 ids": partial(ours, lambda given: given.top, Objective()),
}
DENSE = {
    "stillhouse dense, forward KL": partial(ours, lambda given: given.teacher, Objective(forward_kl)),
    "stillhouse dense, Jensen-Shannon": partial(ours, lambda given: given.teacher, Objective(MIDDLE)),
    "trl DistillationTrainer, forward KL": partial(trl_divergence, 0.0),
    "trl DistillationTrainer, Jensen-Shannon": partial(trl_divergence, 0.5),
    "liger JSD, forward KL": partial(liger_divergence, 0.0),
    "liger JSD, Jensen-Shannon": partial(liger_divergence, 0.5),
}
SAME = {  # what must be one number: ours, theirs, ours over theirs
    ("stillhouse cross-entropy", "torch cross-entropy, all logits", 1.0),
    ("stillhouse dense, forward KL", "trl DistillationTrainer, forward KL", 1.0),
    ("stillhouse dense, Jensen-Shannon", "trl DistillationTrainer, Jensen-Shannon", 4.0),
    ("stillhouse dense, forward KL", "liger JSD, forward KL", 1.0),
    ("stillhouse dense, Jensen-Shannon", "liger JSD, Jensen-Shannon", 4.0),
}


# ---------------------------------------------------------------- measuring


def head_alone(given: Inputs, loss: Any) -> float:
    """Forward and backward from the last hidden states: no body that would hide a difference."""
    hidden_ND, weight_VD = (
        given.hidden_ND.detach().requires_grad_(),
        given.weight_VD.detach().requires_grad_(),
    )
    value = loss(given, hidden_ND, weight_VD)
    value.backward()
    return float(value.detach())


class Student:
    """A whole step: a small Llama's layers, its head, the loss, the gradients and AdamW."""

    def __init__(self, given: Inputs, rows: int) -> None:
        from transformers import LlamaConfig, LlamaModel

        vocabulary, width = given.weight_VD.shape
        sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": LAYERS}
        heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
        config = LlamaConfig(vocab_size=vocabulary, **sizes, **heads)
        self.body = LlamaModel(config).to(DEVICE, given.weight_VD.dtype)
        self.body.embed_tokens.weight.data.copy_(given.weight_VD)
        self.ids_BT = given.ids_N.view(rows, -1)
        self.optimiser = torch.optim.AdamW(self.body.parameters(), lr=1e-6, fused=True)

    def step(self, given: Inputs, loss: Any) -> float:
        hidden_BTD = self.body(input_ids=self.ids_BT, use_cache=False).last_hidden_state
        value = loss(given, hidden_BTD.flatten(0, 1), self.body.embed_tokens.weight)  # a tied head
        value.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(value.detach())


def seconds(work: Callable[[], float]) -> tuple[float, float]:
    """The loss, and processor time on the CPU (one thread), wall time on a GPU."""
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    wait()
    began = clock()
    value = work()
    wait()
    return value, clock() - began


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_bytes(work: Callable[[], float]) -> int | None:
    """Most memory above what was there before; None where the system does not tell."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = status("VmRSS")
        work()
        return status("VmHWM") - before
    except OSError:
        return None


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def measured(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Warm up and measure memory, then the contestants by turns, each round in another order."""
    found: dict[str, Any] = {}
    for name, run in work.items():
        try:
            found[name] = {"loss": run(), "peak": peak_bytes(run), "seconds": []}
        except Exception as error:
            found[name] = {"missing": f"{type(error).__name__}: {error}"}
    able = [name for name in work if "missing" not in found[name]]
    for number in range(rounds):
        for place in range(len(able)):
            name = able[(place + number) % len(able)]
            found[name]["seconds"].append(seconds(work[name])[1])
    return found


def main() -> None:
    vocabulary, tokens, width, rounds = (int(sys.argv[at]) for at in (1, 3, 4, 5))
    dtype = getattr(torch, sys.argv[2])
    torch.set_num_threads(1)
    given = make_inputs(vocabulary, dtype, tokens, width)
    refused = " ".join(kernel_notices(try_kernels(DEVICE)))
    ours_in_torch = {}
    if DEVICE == "cuda" and not refused:
        both = {"stillhouse cross-entropy": CROSS_ENTROPY["stillhouse cross-entropy"], **SPARSE}
        ours_in_torch = {f"{name}, in torch": partial(in_torch, loss) for name, loss in both.items()}
    losses = CROSS_ENTROPY | SPARSE | DENSE | ours_in_torch
    alone = measured({name: partial(head_alone, given, loss) for name, loss in losses.items()}, rounds)
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for mine, other, factor in SAME | {
        (name.removesuffix(", in torch"), name, 1.0) for name in ours_in_torch
    }:
        if (
            "loss" in alone[other]
            and abs(alone[mine]["loss"] / (factor * alone[other]["loss"]) - 1) > tolerance
        ):
            sys.exit(f"{mine} is {alone[mine]['loss']}, {other} is {alone[other]['loss']}: not one loss")
    student = Student(given, rows=tokens // 128)
    stepped = {name: partial(student.step, given, loss) for name, loss in (CROSS_ENTROPY | SPARSE).items()}
    parts = {"head": alone, "step": measured(stepped, rounds)}
    print(json.dumps({"device": DEVICE, "refused": refused, **parts}))


if __name__ == "__main__":
    main()
