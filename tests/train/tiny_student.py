"""Sums to teach a tiny model, the recipe for it, and what a training wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.workspace import RunFolder

BASE = {"layers": 2, "width": 32, "seed": 3, "max_position_embeddings": 128, "tie_word_embeddings": True}
BASE |= {"initializer_range": 0.2}


def write_samples(path: Path, rows: list[dict[str, object]]) -> None:
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    text = [(name, pa.string()) for name in ("id", "completion", "family", "group", "teacher")]
    if any("rationale" in row for row in rows):
        text.append(("rationale", pa.string()))
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
    elsewhere = {"endpoint": "http://127.0.0.1:9/v1"} if settings.get("objective") is None else {}
    return parse_recipe(
        {
            "run": {"name": "t", "seed": 5},
            "teacher": {"model": "name", **elsewhere},
            "collect": {"top_logprobs": 8, "samples": 2},
            "curate": {"verify": "where_possible"},
            "prompts": {"source": "p.jsonl"},
            "student": {"init": init, **student},
            "train": settings,
        }
    )


def losses(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.losses.read_text().splitlines()]


def weights(run: RunFolder) -> bytes:
    return (run.student / "model.safetensors").read_bytes()
