"""Random Llamas with byte-level tokenizers that llama.cpp cuts text by as well."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stillhouse.release.exports import _LLAMA_3

CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def byte_level(folder: Path, cut: str, dtype: torch.dtype = torch.float32) -> Path:
    """A random Llama with a small BPE over bytes, merges and all."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = CUTS[cut], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([Path(__file__).read_text()], trainer)
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": raw.get_vocab_size() + 3}
    more = {"max_position_embeddings": 256, "initializer_range": 0.3, "tie_word_embeddings": False}
    tiny_llama(2, 64, 5, **sizes, **more).to(dtype).save_pretrained(folder)
    return folder
