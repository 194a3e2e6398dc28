"""A tiny random Llama, a tokenizer of single letters, and samples of sums to teach it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.workspace import RunFolder

LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789=+?\n<>"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<end>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(LETTERS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama(layers: int = 2, seed: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def write_samples(path: Path, rows: list[dict[str, object]]) -> None:
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    text = [(name, pa.string()) for name in ("id", "completion", "family", "group", "teacher")]
    schema = pa.schema([*text, ("messages", pa.list_(turn)), ("leaves", pa.list_(pa.int64()))])
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows, schema), path)


def sample(number: int, question: str, answer: str, group: str = "") -> dict[str, object]:
    return {
        "id": f"s{number}",
        "messages": [{"role": "user", "content": question}],
        "completion": answer,
        "family": "sum",
        "group": group,
        "teacher": "t",
        "leaves": [number],
    }


def sums(count: int = 48) -> list[dict[str, object]]:
    return [
        sample(n, f"{n % 7}+{n % 5}?" + " x" * (n % 4), f"{n % 7 + n % 5}" + "=" * (n % 3), f"g{n % 8}")
        for n in range(count)
    ]


def make_recipe(init: str, train: dict[str, object] | None = None, **student: object) -> Recipe:
    settings = {"epochs": 3, "batch_tokens": 160, "held_out": 0.15, "learning_rate": 0.005, **(train or {})}
    return parse_recipe(
        {
            "run": {"name": "t", "seed": 5},
            "teacher": {"model": "name", "endpoint": "http://127.0.0.1:9/v1"},
            "prompts": {"source": "p.jsonl"},
            "student": {"init": init, **student},
            "train": settings,
        }
    )


def losses(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.losses.read_text().splitlines()]


def weights(run: RunFolder) -> bytes:
    return (run.student / "model.safetensors").read_bytes()
