"""How much arithmetic an answer takes, from a model's configuration alone. No torch here."""

from __future__ import annotations

from typing import Any

from stillhouse.errors import ModelError

# Feed-forward blocks of two matrices; every other model type is counted as gated (three).
_PLAIN_FEED_FORWARD = frozenset(
    {"bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt", "phi"}
    | {"starcoder2"}
)


def flops_per_token(config: Any, context: int) -> float:
    """Floating-point operations to read one token at place `context` (1 is the first), without the head.

    A multiply-add counts as two operations. Per layer, with d the hidden size, h query heads and g key-value
    heads of width w, and a feed-forward size f:

        2 * (d*h*w + 2*d*g*w + h*w*d)     query, key and value, output projections
        2 * 3*d*f                         gate, up and down (2*d*f without a gate)
        4 * h*w*context                   query times keys, weights times values

    Norms, rotary embedding, softmax and activations are left out: they grow with d, not with d^2. Source:
    Kaplan et al. 2020, table 1, with grouped heads (Ainslie et al. 2023) and a gated block (Shazeer 2020).

    Raises ModelError for a mixture of experts, for which this does not hold.
    """
    c = _text(config)
    d, layers, heads = c.hidden_size, c.num_hidden_layers, c.num_attention_heads
    groups = getattr(c, "num_key_value_heads", None) or heads
    width = getattr(c, "head_dim", None) or d // heads
    inner = getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * d
    matrices = 2 if c.model_type in _PLAIN_FEED_FORWARD else 3
    weights = 2 * d * heads * width + 2 * d * groups * width + matrices * d * inner
    return float(layers * (2 * weights + 4 * heads * width * context))


def flops_per_answer(config: Any, prompt_tokens: int, completion_tokens: int) -> float:
    """Floating-point operations for one answer with a key-value cache.

    `completion_tokens` counts the final stop token, as servers do. The last token is chosen but never read,
    so n = prompt_tokens + completion_tokens - 1 tokens are read, each attending to itself and to those
    before it: the sum of `flops_per_token(config, i)` for i = 1..n. The head costs 2*d*V at the last token
    of the prompt and at every token read after it: `completion_tokens` times.
    """
    if prompt_tokens < 0 or completion_tokens < 0:
        raise ValueError("token counts are not negative")
    c = _text(config)
    n = prompt_tokens + max(completion_tokens - 1, 0)
    base = flops_per_token(config, 0)
    per_place = flops_per_token(config, 1) - base
    head = 2.0 * c.hidden_size * c.vocab_size
    return float(n * base + per_place * n * (n + 1) / 2 + head * completion_tokens)


def _text(config: Any) -> Any:
    c = config.get_text_config() if hasattr(config, "get_text_config") else config
    experts = max(int(getattr(c, name, None) or 0) for name in ("num_experts", "num_local_experts"))
    if experts > 1:
        raise ModelError(
            f"no formula for the operations of a {c.model_type} model",
            f"it chooses among {experts} experts for each token",
            "measure its time per answer instead",
        )
    return c
