"""Random models of a few thousand weights, made in a second, with a tokenizer of single characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789?:.=+\n<>"
VOCABULARY = len(LETTERS) + 3
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer(template: str | None = None, end: str | None = "</s>") -> Any:
    """A token for each letter; `end` None makes one that knows no end of text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, **{c: i + 3 for i, c in enumerate(LETTERS)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token=end, unk_token="<unk>", pad_token="<s>"
    )
    made.chat_template = template
    return made


def tiny_llama(layers: int = 1, width: int = 16, seed: int = 0, **settings: Any) -> Any:
    """A random Llama; `settings` replace values of its configuration."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **settings}))


def tiny_model(
    folder: Path,
    layers: int = 1,
    width: int = 16,
    seed: int = 0,
    template: str | None = None,
    **settings: Any,
) -> Path:
    """A folder that transformers loads."""
    tiny_llama(layers, width, seed, **settings).save_pretrained(folder)
    tiny_tokenizer(template).save_pretrained(folder)
    return folder
