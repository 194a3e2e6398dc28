"""A student cut out of its teacher: the layers, attention heads, neurons and channels that matter most.

What a part matters is told by its activations on the rows that the student is about to learn, in one pass
without gradients (Minitron, Muralidharan et al. 2024, arXiv:2407.14679). A norm divides by the mean square
of its channels, which changes when some of them go; its weight makes up for that on the average.

Shapes: B rows, T tokens, D the hidden width, F neurons of a layer, H heads of width E in G groups that share
keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillhouse.errors import ModelError, UsageError
from stillhouse.recipe import Student, Width
from stillhouse.train.rows import Row, collate, epoch_batches, to_device

ROWS = 1024  # most rows that activations are measured on, as in Minitron


@dataclass(frozen=True, slots=True)
class Importance:
    """Means over real tokens, in float64. `channels_D` is summed over all norms. Of each layer there are
    neurons (F: size of what enters the matrix that leads back), groups (G: length of its heads' outputs) and
    in `layers_L` its influence: 1 - cosine of what enters and what leaves it (ShortGPT, Men et al. 2024,
    arXiv:2403.03853). `squares` has of each norm the mean squares (D) of what enters it."""

    channels_D: Tensor
    neurons: list[Tensor]
    groups: list[Tensor]
    layers_L: Tensor
    squares: list[Tensor]


def prune(model: Any, student: Student, rows: Sequence[Row], batch_tokens: int, seed: int) -> None:
    """Cut `model` in place to the shares of `student.keep_width`, and to `keep_layers` where it is a number.

    What is kept stays in its order, so that a share of 1 leaves the model as it is. Raises ModelError for
    another architecture than Llama's, and UsageError for more layers than there are.
    """
    if type(model).__name__ != "LlamaForCausalLM":
        raise ModelError(
            f"a {type(model).__name__} cannot be cut to size",
            "which weights belong to a head, a neuron or a channel is known here for LlamaForCausalLM alone",
            "name the layers that stay in `student.keep_layers`, or start from a smaller model of its kind",
        )
    layers = len(model.model.layers)
    if isinstance(student.keep_layers, int) and student.keep_layers > layers:
        raise UsageError(
            f"`student.keep_layers` = {student.keep_layers} does not fit the teacher",
            f"the teacher has {layers} layers",
            "give at most so many",
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:ROWS]
    measured = importance(model, [rows[place] for place in order.tolist()], batch_tokens)
    if student.keep_width is not None:
        _narrow(model, student.keep_width, measured)
    if isinstance(student.keep_layers, int):
        keep_layers(model, most(measured.layers_L, student.keep_layers))


def importance(model: Any, rows: Sequence[Row], batch_tokens: int) -> Importance:
    """What each part of a Llama matters on these rows. The model is left as it was."""
    layers, config = model.model.layers, model.config
    found = Importance(
        torch.zeros(config.hidden_size, dtype=torch.float64),
        [torch.zeros(layer.mlp.down_proj.in_features, dtype=torch.float64) for layer in layers],
        [torch.zeros(config.num_key_value_heads, dtype=torch.float64) for _ in layers],
        torch.zeros(len(layers), dtype=torch.float64),
        [torch.zeros(config.hidden_size, dtype=torch.float64) for _ in norms(model)],
    )
    was_training, tokens = model.training, sum(len(row.ids) for row in rows)
    real_BT = torch.empty(0)

    def over_tokens(values_BTX: Tensor) -> Tensor:
        """The sum over the batch's real tokens, as a share of all rows' tokens."""
        return (values_BTX * real_BT[..., None]).sum((0, 1)).cpu().double() / tokens

    def norm(place: int, given: Tensor, made: Tensor) -> None:
        found.channels_D.add_(over_tokens(made.abs()))
        found.squares[place].add_(over_tokens(given.square()))

    def neurons(place: int, given: Tensor, made: Tensor) -> None:
        found.neurons[place].add_(over_tokens(given.abs()))

    def heads(place: int, given: Tensor, made: Tensor) -> None:
        lengths_BTH = given.unflatten(-1, (config.num_attention_heads, -1)).norm(dim=-1)
        found.groups[place].add_(over_tokens(lengths_BTH).view(config.num_key_value_heads, -1).sum(1))

    def layer(place: int, given: Tensor, made: Tensor) -> None:
        turned_BT = 1 - torch.cosine_similarity(given, made, dim=-1)
        found.layers_L[place] += over_tokens(turned_BT[..., None])[0]

    watched = [(module, norm, place) for place, module in enumerate(norms(model))]
    for place, each in enumerate(layers):
        watched += [(each.mlp.down_proj, neurons, place), (each.self_attn.o_proj, heads, place)]
        watched += [(each, layer, place)]
    model.eval()
    try:
        with torch.no_grad(), _hooks(watched):
            for chosen in epoch_batches([len(row.ids) for row in rows], batch_tokens, 0, 0):
                batch = to_device(collate([rows[place] for place in chosen]), model.device)
                lengths_B = torch.tensor([len(rows[place].ids) for place in chosen], device=model.device)
                at_T = torch.arange(batch.ids_BT.shape[1], device=model.device)
                real_BT = (at_T < lengths_B[:, None]).float()
                model.model(input_ids=batch.ids_BT, use_cache=False)
    finally:
        model.train(was_training)
    return found


def norms(model: Any) -> list[Any]:
    """All that read the hidden stream, in the order of `Importance.squares`."""
    each = [(layer.input_layernorm, layer.post_attention_layernorm) for layer in model.model.layers]
    return [*(norm for pair in each for norm in pair), model.model.norm]


def most(importance_N: Tensor, count: int) -> list[int]:
    """Places of the `count` greatest, in rising order; of equal ones the first."""
    order = torch.argsort(importance_N, descending=True, stable=True)
    return sorted(order[:count].tolist())


def keep_layers(model: Any, keep: Sequence[int]) -> None:
    """Leave a decoder these of its layers, in place."""
    layers = model.base_model.layers
    model.base_model.layers = torch.nn.ModuleList([layers[place] for place in keep])
    for place, layer in enumerate(model.base_model.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    model.config.num_hidden_layers = len(keep)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[place] for place in keep]


def _narrow(model: Any, width: Width, measured: Importance) -> None:
    config, body = model.config, model.model
    stream = most(measured.channels_D, _share(width.hidden, config.hidden_size))
    inner = _share(width.mlp, config.intermediate_size)
    groups = _share(width.heads, config.num_key_value_heads)
    per_group = config.num_attention_heads // config.num_key_value_heads
    size = body.layers[0].self_attn.head_dim
    for layer, neurons_F, groups_G in zip(body.layers, measured.neurons, measured.groups, strict=True):
        kept = most(groups_G, groups)
        keys, queries = _runs(kept, size), _runs(kept, per_group * size)
        attention, mlp, neurons = layer.self_attn, layer.mlp, most(neurons_F, inner)
        for linear, rows, columns in (
            (attention.q_proj, queries, stream),
            (attention.k_proj, keys, stream),
            (attention.v_proj, keys, stream),
            (attention.o_proj, stream, queries),
            (mlp.gate_proj, neurons, stream),
            (mlp.up_proj, neurons, stream),
            (mlp.down_proj, stream, neurons),
        ):
            _cut(linear, rows, columns)
        layer.hidden_size = mlp.hidden_size = len(stream)
        mlp.intermediate_size = inner
    for norm, squares_D in zip(norms(model), measured.squares, strict=True):
        weight_D = norm.weight.detach()[stream]
        if len(stream) < len(squares_D):
            weight_D = weight_D * (squares_D[stream].mean() / squares_D.mean()).sqrt().to(weight_D)
        norm.weight = torch.nn.Parameter(weight_D, requires_grad=norm.weight.requires_grad)
    table, head = body.embed_tokens, model.lm_head
    tied = head.weight is table.weight
    table.weight = torch.nn.Parameter(table.weight.detach()[:, stream], table.weight.requires_grad)
    table.embedding_dim = len(stream)
    if tied:
        head.weight, head.in_features = table.weight, len(stream)
    else:
        _cut(head, range(head.out_features), stream)
    config.hidden_size, config.intermediate_size, config.head_dim = len(stream), inner, size
    config.num_key_value_heads, config.num_attention_heads = groups, groups * per_group


def _share(share: float, count: int) -> int:
    return max(1, round(share * count))


def _runs(places: Sequence[int], length: int) -> list[int]:
    """Each place as a run of `length` rows of a matrix."""
    return [place * length + offset for place in places for offset in range(length)]


def _cut(linear: Any, rows: Sequence[int], columns: Sequence[int]) -> None:
    weight = linear.weight.detach()[list(rows)][:, list(columns)]
    linear.weight = torch.nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        bias = linear.bias.detach()[list(rows)]
        linear.bias = torch.nn.Parameter(bias, requires_grad=linear.bias.requires_grad)
    linear.out_features, linear.in_features = weight.shape


@contextmanager
def _hooks(watched: Sequence[tuple[Any, Any, int]]) -> Iterator[None]:
    """Within, each function sees its place and what enters and leaves its module."""

    def seen(see: Any, place: int) -> Any:
        def hook(_: Any, given: Any, named: Any, made: Any) -> None:
            entering = given[0] if given else named["hidden_states"]
            see(place, entering, made[0] if isinstance(made, tuple) else made)

        return hook

    hooks = [module.register_forward_hook(seen(*to), with_kwargs=True) for module, *to in watched]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
