"""Heads of language models: what turns a hidden state into logits, capped and scaled as the model does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What turns hidden states into logits: cap tanh(scale (h W^T + b) / cap).

    `scale` is Cohere's `logit_scale` (Granite divides by its inverse), `softcap` Gemma's
    `final_logit_softcapping`. Both come before any temperature.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """All logits (N, V), in the type of the product."""
        return self.finish(torch.nn.functional.linear(hidden_ND, self.weight_VD, self.bias_V))

    def finish(self, raw_NV: Tensor) -> Tensor:
        scaled_NV = raw_NV if self.scale == 1.0 else raw_NV * self.scale
        return scaled_NV if self.softcap is None else self.softcap * torch.tanh(scaled_NV / self.softcap)

    def cut(self, vocabulary: int | None) -> Head:
        """The head of the first `vocabulary` ids; rows that only pad it predict nothing and learn nothing."""
        if vocabulary is None or vocabulary == len(self.weight_VD):
            return self
        bias_V = None if self.bias_V is None else self.bias_V[:vocabulary]
        return Head(self.weight_VD[:vocabulary], bias_V, self.scale, self.softcap)


def head_of(model: Any) -> Head | None:
    """The head of a causal language model of transformers, or None where its logits are not its head's alone.

    Scales and caps are read from the configuration by the names that are known and then tried: a head is
    given only if it makes the model's own logits, of small states and of states a thousand times as large.
    """
    embeddings = model.get_output_embeddings()
    if not isinstance(embeddings, torch.nn.Linear):
        return None
    config = model.config.get_text_config()
    scales = [1.0]
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"):
        if value := getattr(config, name, None):
            scales += [float(value), 1.0 / float(value)]
    caps = {None, getattr(config, "final_logit_softcapping", None)}
    states, own = _tried(model, embeddings)
    if states is None:
        return None
    for cap in caps:
        for scale in scales:
            head = Head(embeddings.weight, embeddings.bias, scale, cap)
            with torch.no_grad():
                made = head.logits(states)
            if bool(((made - own).abs().amax((1, 2)) <= 1e-4 * own.abs().amax((1, 2))).all()):
                return head
    return None


def _tried(model: Any, embeddings: Any) -> tuple[Tensor | None, Tensor]:
    """The states that enter the head, half of them enlarged, and the logits that the model makes of them."""
    seen: list[Tensor] = []

    def enlarge(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        grow = torch.tensor([1.0, 1e3], dtype=inputs[0].dtype, device=inputs[0].device)
        seen.append(inputs[0] * grow[:, None, None])
        return seen[-1], *inputs[1:]

    ids = torch.tensor([[1, 5, 3, 2, 7, 4]] * 2, device=model.device) % embeddings.weight.shape[0]
    hook = embeddings.register_forward_pre_hook(enlarge)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            own: Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
        model.train(was_training)
    return (seen[0] if len(seen) == 1 and seen[0].ndim == 3 else None), own
