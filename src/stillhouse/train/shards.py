"""A student in parts: of each weight, its gradient and its optimiser state every process holds a share.

By torch's `fully_shard`. A decoder layer is gathered for the time that it is worked, once on the way forward
and once on the way back, where its gradient is summed over the processes and each keeps its share. What
stands around the layers, embeddings and head above all, is whole from the beginning of a pass to the end of
its way back, as the head is needed by the loss. Each pass is one of all processes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from stillhouse.errors import UsageError
from stillhouse.train.lessons import Lesson
from stillhouse.train.loss import batch_loss
from stillhouse.train.losses import ChunkTargets, Head, Targets
from stillhouse.train.rows import Batch


class Shards(torch.nn.Module):  # type: ignore[misc]
    """A language model in parts, whose forward pass makes a batch's loss, so that the head is there whole."""

    def __init__(self, causal: Any, head: Head | None) -> None:
        super().__init__()
        self.causal, self.head = causal, head

    def forward(
        self,
        batch: Batch,
        targets: Targets | ChunkTargets | None = None,
        lesson: Lesson | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `loss.batch_loss`."""
        self.renew_head()
        return batch_loss(self.causal, batch, self.head, targets, lesson)

    def renew_head(self) -> None:
        """Its weights are other tensors within a pass, where they are whole, than outside."""
        if self.head is not None:
            made = self.causal.get_output_embeddings()
            self.head = replace(self.head, weight_VD=made.weight, bias_V=made.bias)


def place() -> torch.device:
    """Where this process keeps its share: its GPU, else the CPU."""
    cuda = torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def divide(causal: Any, head: Head | None, dtype: str) -> Shards:
    """Share the model's weights out, in place, layer after layer, so that a model on the CPU is on no GPU
    whole. Gradients are summed, not averaged, in float32.

    In bfloat16 layers are gathered in it, as autocast would else keep a whole copy of the model for the way
    back. It is what autocast rounds as well, but for the norms' weights, which that takes in float32.
    Raises UsageError for a model whose layers are not known.
    """
    layers = [module for module in causal.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(
            "the student cannot be shared out with `train.shard`",
            f"{type(causal).__name__} does not show which of its modules are layers",
            "leave `train.shard` out, or start from a student of another architecture",
        )
    mesh = init_device_mesh(place().type, (torch.distributed.get_world_size(),))
    kind = torch.bfloat16 if dtype == "bfloat16" else None
    rounded = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=rounded)
    shards: Shards = fully_shard(Shards(causal, head), mesh=mesh, reshard_after_forward=False)
    for module in shards.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    shards.set_reduce_scatter_unused_params(True)  # an expert that one process used and another did not
    shards.renew_head()  # which would keep the weights
    return shards


def gathered(tree: Any, keep: bool) -> Any:
    """The same with whole tensors on the CPU in place of those in parts, one after another. All processes
    call it with their own; those that do not `keep` get None for each. What was one tensor stays one."""
    seen: dict[int, Tensor | None] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(each) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each) for each in value]
        if not isinstance(value, DTensor):
            return value
        if id(value) not in seen:
            whole = value.detach().full_tensor()
            seen[id(value)] = whole.cpu() if keep else None
        return seen[id(value)]

    return walk(tree)


def own_part(saved: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor where `like`, of the same shape, is in parts."""
    if not isinstance(like, DTensor) or isinstance(saved, DTensor) or saved.shape != like.shape:
        return saved
    return distribute_tensor(saved, like.device_mesh, like.placements, src_data_rank=None)


def own_parts(state: dict[str, Any], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's whole state as `own_part` of it, by the parameters that it is of."""
    parameters = [each for group in optimiser.param_groups for each in group["params"]]
    states = {
        number: {name: own_part(value, parameters[number]) for name, value in of.items()}
        for number, of in state["state"].items()
    }
    return {**state, "state": states}
