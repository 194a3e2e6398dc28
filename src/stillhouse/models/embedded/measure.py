"""Score a shipped model by greedy decoding: `python -m stillhouse.models.embedded.measure desk`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from stillhouse.models.embedded import world
from stillhouse.records import Prompt

PACKAGE = Path(__file__).parent


def answers(folder: Path, prompts: list[Prompt], rows: int = 128) -> list[str]:
    """Greedy answers, longest prompts first in batches of `rows`, returned in the order of the prompts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pieces: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    texts = [
        pieces.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in prompt.messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    results = [""] * len(texts)
    with torch.inference_mode():
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            batch = pieces(
                [texts[index] for index in part], return_tensors="pt", padding=True, add_special_tokens=False
            )
            out = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=100
            )
            for index, row in zip(part, out[:, batch["input_ids"].shape[1] :], strict=True):
                results[index] = pieces.decode(row, skip_special_tokens=True)
    return results


def right(prompt: Prompt, answer: str) -> bool:
    """Whether the answer is right, as the prompt's scorer in `stillhouse.scoring` judges the desk's answers.

    Written out for the answers of this world, because models do not import scorers.
    """
    reference = prompt.reference or ""
    if prompt.scorer == "json":
        try:
            return bool(json.loads(answer) == json.loads(reference))
        except ValueError:
            return False
    if prompt.scorer == "mentions":
        return all(part.lower() in answer.lower() for part in json.loads(reference))
    return answer.rsplit("Answer:", 1)[-1].strip().lower() == reference.lower()


def scores(folder: Path, prompts: list[Prompt]) -> dict[str, float]:
    """Mean score per family and over all prompts (`all`), each in [0, 1]."""
    values: dict[str, list[float]] = {}
    for prompt, answer in zip(prompts, answers(folder, prompts), strict=True):
        value = float(right(prompt, answer))
        values.setdefault(prompt.family, []).append(value)
        values.setdefault("all", []).append(value)
    return {family: round(sum(parts) / len(parts), 4) for family, parts in sorted(values.items())}


def reply_entropy(folder: Path, count: int, seed: int) -> float:
    """Mean entropy of the next token within right replies to test prompts, in nats per token."""
    import torch
    from transformers import AutoModelForCausalLM

    from stillhouse.models.embedded import make, tokenizer

    source = (e for e in world.examples("test", seed) if e.prompt.family == "reply")
    rows = make.rows_of((next(source) for _ in range(count)), tokenizer.load(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            logs = model(torch.tensor([row.ids])).logits[0, row.prompt - 1 : -1].float().log_softmax(-1)
            total -= float((logs.exp() * logs).sum())
            tokens += len(row.ids) - row.prompt
    return total / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=("desk", "base"))
    parser.add_argument("--split", choices=world.SPLITS, default="dev")
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    folder = PACKAGE / arguments.model
    prompts = world.prompts(arguments.split, arguments.count, arguments.seed)
    began = time.monotonic()
    result: dict[str, float] = scores(folder, prompts)
    result["seconds"] = round(time.monotonic() - began, 1)
    if arguments.model == "desk":
        result["reply_nats_per_token"] = round(reply_entropy(folder, 100, arguments.seed), 3)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
