"""A Llama forward pass over a plain dictionary of weights, for training on CPUs.

The names and the mathematics are those of `transformers.LlamaForCausalLM` (a test compares the two);
what is left out is everything that a training step on right-padded rows does not need, which makes a
step of a small model about twice as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Weights = dict[str, "Tensor"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama with tied embeddings and as many key heads as query heads."""

    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 768
    theta: float = 10_000.0
    context: int = 512
    epsilon: float = 1e-5

    def parameters(self) -> int:
        per_layer = 4 * self.width**2 + 3 * self.width * self.inner + 2 * self.width
        return self.layers * per_layer + self.width + self.vocabulary * self.width

    def flops_per_token(self, context: int) -> int:
        """Forward pass: 2 per weight (head included) and 4 per layer, width and attended position."""
        matrices = self.layers * (4 * self.width**2 + 3 * self.width * self.inner)
        head = self.vocabulary * self.width
        return 2 * (matrices + head) + 4 * self.layers * self.width * context


def initial(shape: Shape, seed: int) -> Weights:
    """Float32 weights: normal with deviation 0.02, the projections back into the stream scaled by depth."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, deviation: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * deviation

    narrow = 0.02 / (2 * shape.layers) ** 0.5
    weights = {"model.embed_tokens.weight": normal(shape.vocabulary, shape.width, 0.02)}
    deviation = shape.width**-0.5 / 2
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name in "qkv":
            weights[f"{prefix}self_attn.{name}_proj.weight"] = normal(shape.width, shape.width, deviation)
        weights[f"{prefix}self_attn.o_proj.weight"] = normal(shape.width, shape.width, narrow)
        weights[f"{prefix}mlp.gate_proj.weight"] = normal(shape.inner, shape.width, deviation)
        weights[f"{prefix}mlp.up_proj.weight"] = normal(shape.inner, shape.width, deviation)
        weights[f"{prefix}mlp.down_proj.weight"] = normal(shape.width, shape.inner, narrow)
        weights[f"{prefix}input_layernorm.weight"] = torch.ones(shape.width)
        weights[f"{prefix}post_attention_layernorm.weight"] = torch.ones(shape.width)
    weights["model.norm.weight"] = torch.ones(shape.width)
    return weights


def logits(weights: Weights, ids_BT: Tensor, shape: Shape) -> Tensor:
    """Scores of the next token, (B, T, V), in the dtype of the weights; rows are padded on the right."""
    import torch
    from torch.nn import functional as F

    batch, length = ids_BT.shape
    depth = shape.width // shape.heads
    embedding = weights["model.embed_tokens.weight"]
    # Written out: on rows this short it takes a quarter of the time of the fused kernel with its backward.
    future = torch.full((length, length), -1e4, dtype=embedding.dtype).triu(1)
    cosine, sine = _rotation(length, depth, shape.theta, embedding.dtype)

    def rotate(x_BHTD: Tensor) -> Tensor:
        first, second = x_BHTD.chunk(2, -1)
        return x_BHTD * cosine + torch.cat((-second, first), -1) * sine

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (shape.width,), weights[name], shape.epsilon)

    x = F.embedding(ids_BT, embedding)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, prefix + "input_layernorm.weight")
        joined = torch.cat([weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"])
        q, k, v = F.linear(h, joined).view(batch, length, 3, shape.heads, depth).permute(2, 0, 3, 1, 4)
        scores_BHTT = rotate(q) @ rotate(k).transpose(-1, -2) * depth**-0.5 + future
        attended = (scores_BHTT.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, shape.width)
        x = x + F.linear(attended, weights[prefix + "self_attn.o_proj.weight"])
        h = norm(x, prefix + "post_attention_layernorm.weight")
        gate = F.silu(F.linear(h, weights[prefix + "mlp.gate_proj.weight"]))
        gated = gate * F.linear(h, weights[prefix + "mlp.up_proj.weight"])
        x = x + F.linear(gated, weights[prefix + "mlp.down_proj.weight"])
    return F.linear(norm(x, "model.norm.weight"), embedding)


def save(weights: Weights, shape: Shape, folder: Path) -> None:
    """Write the model as `transformers` expects it: config, generation config, bf16 safetensors."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"weights do not fit the shape: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        eos_token_id=1, pad_token_id=0, do_sample=False, max_new_tokens=128
    )
    model.to(torch.bfloat16).save_pretrained(folder)


def _rotation(length: int, depth: int, theta: float, dtype: Any) -> tuple[Tensor, Tensor]:
    import torch

    frequency = theta ** -(torch.arange(0, depth, 2).float() / depth)
    angle = torch.outer(torch.arange(length).float(), frequency)
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)
