"""Make the shipped models again: `python -m stillhouse.models.embedded.make [tokenizer|teacher|base|all]`.

The tokenizer, the teacher (`desk/`) and the base student (`base/`) follow from the world and from fixed
seeds. Training state lies in `.stillhouse-build/`; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.models.embedded import network, tokenizer, world
from stillhouse.models.embedded.network import Shape, Weights

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = Path(__file__).parent
BUILD = Path(".stillhouse-build")
WORKERS = 2  # threads, each with a batch of its own: sharing operations this small costs more than it gains
POOL = 2048  # documents drawn at a time and sorted by length, so that a batch holds little padding
PROMPT_WEIGHT = 0.1  # of a prompt's token in the loss; it teaches what names and ids look like


@dataclass(frozen=True, slots=True)
class Plan:
    """How one model is trained. `questions` is the share of worked examples; the rest is unlabelled text."""

    name: str
    shape: Shape
    steps: int
    tokens: int
    rate: float
    questions: float
    seed: int


PLANS = {
    "teacher": Plan("desk", Shape(320, 6, 8, 864), 3200, 3072, 2.5e-3, 0.75, 1),
    "base": Plan("base", Shape(128, 4, 4, 256), 6000, 2048, 4e-3, 0.0, 2),
}


class Batch(NamedTuple):
    """Right-padded rows: token ids, and the weight in the loss of predicting each token (0 for padding)."""

    ids_BT: Tensor
    weight_BT: Tensor


def batches(plan: Plan, pieces: Any, start: int) -> Iterator[Batch]:
    """Batches without end; the pool with number n follows from the plan's seed and n alone."""
    import random

    pool = 0
    done = 0
    while True:
        groups = _groups(_pool(plan, pieces, pool), plan.tokens)
        random.Random(f"{plan.seed}/{pool}").shuffle(groups)
        for group in groups:
            if done >= start:
                yield collate(group)
            done += 1
        pool += 1


def collate(rows: list[Row]) -> Batch:
    """Rows as a batch; the first token of a row is given and never predicted."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    weight_BT = torch.zeros(len(rows), width)
    for row, (ids, prompt, _) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        weight_BT[row, 1:prompt] = PROMPT_WEIGHT
        weight_BT[row, max(prompt, 1) : len(ids)] = 1.0
    return Batch(ids_BT, weight_BT)


def loss_of(weights: Weights, batch: Batch, shape: Shape) -> Tensor:
    """Weighted mean of the cross-entropy, in nats per token."""
    from torch.nn import functional as F

    scores = network.logits(weights, batch.ids_BT, shape)[:, :-1]
    losses = F.cross_entropy(scores.flatten(0, 1).float(), batch.ids_BT[:, 1:].flatten(), reduction="none")
    weight = batch.weight_BT[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


def train(plan: Plan, out: Path, minutes: float | None = None) -> Weights:
    """Train for the plan's steps, or for `minutes` where given; returns float32 weights.

    Matrices are stepped by Muon, embedding and norms by AdamW; forward and backward run in bf16 on
    copies of the float32 weights. The rate rises over 1 %, stays, and falls linearly over the last 45 %.
    """
    import torch

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    torch.set_num_threads(1)
    pieces = tokenizer.load(BUILD / "tokenizer")
    master = {name: value.requires_grad_() for name, value in network.initial(plan.shape, plan.seed).items()}
    optimizers = _optimizers(master, plan.rate)
    checkpoint = out / "checkpoint.pt"
    step, seconds = _restore(checkpoint, master, optimizers)
    copies = [
        {name: value.detach().bfloat16().requires_grad_() for name, value in master.items()}
        for _ in range(WORKERS)
    ]
    pool = ThreadPoolExecutor(WORKERS)
    questions = rows_of(islice(world.examples("dev", 77), 350), pieces)
    source = batches(plan, pieces, step * WORKERS)
    began = time.monotonic() - seconds
    mark, losses, tokens, saved = time.monotonic(), 0.0, 0, time.monotonic()
    while True:
        progress = (time.monotonic() - began) / (minutes * 60) if minutes else step / plan.steps
        if progress >= 1:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * max(min(1.0, progress / 0.01 + 0.05, (1 - progress) / 0.45), 0.0)
        drawn = list(islice(source, WORKERS))
        losses += _step(pool, master, copies, optimizers, drawn, plan.shape)
        tokens += sum(int((batch.weight_BT > 0).sum()) for batch in drawn)
        step += 1
        if step % 100 == 0:
            now = time.monotonic()
            row: dict[str, Any] = {
                "step": step,
                "seconds": round(now - began, 1),
                "loss": round(losses / 100, 4),
                "tokens_per_second": round(tokens / (now - mark)),
            }
            if step % 500 == 0 and plan.questions:
                row["dev"] = agreement(copies[0], plan.shape, questions)
            with (out / "training.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            mark, losses, tokens = time.monotonic(), 0.0, 0
        if time.monotonic() - saved > 120:
            _store(checkpoint, master, optimizers, step, time.monotonic() - began)
            saved = time.monotonic()
    _store(checkpoint, master, optimizers, step, time.monotonic() - began)
    return {name: value.detach() for name, value in master.items()}


class Row(NamedTuple):
    """A tokenized document: `prompt` tokens of it are the question (0 for unlabelled text)."""

    ids: list[int]
    prompt: int
    family: str


def rows_of(examples: Iterator[world.Example], pieces: Any) -> list[Row]:
    """Questions with their answers, each closed by the end token."""
    drawn = list(examples)
    questions = [tokenizer.opening(e.prompt.messages) for e in drawn]
    openings = pieces(questions, add_special_tokens=False)["input_ids"]
    answers = pieces([e.answer + tokenizer.END for e in drawn], add_special_tokens=False)["input_ids"]
    return [
        Row(opening + answer, len(opening), e.prompt.family)
        for e, opening, answer in zip(drawn, openings, answers, strict=True)
    ]


def agreement(weights: Weights, shape: Shape, rows: list[Row]) -> dict[str, float]:
    """Share of rows per family whose every answer token is the likeliest one, so greedy decoding is right.

    For `reply`, which has many right answers, the loss of the answer in nats per token instead.
    """
    import torch
    from torch.nn import functional as F

    results: dict[str, list[float]] = {}
    with torch.inference_mode():
        for group in _groups(rows, 8192):
            batch = collate(group)
            scores = network.logits(weights, batch.ids_BT, shape)[:, :-1].float()
            target = batch.ids_BT[:, 1:]
            answer = batch.weight_BT[:, 1:] == 1
            right = ((scores.argmax(-1) == target) | ~answer).all(1)
            losses = F.cross_entropy(scores.transpose(1, 2), target, reduction="none") * answer
            means = losses.sum(1) / answer.sum(1)
            for index, row in enumerate(group):
                value = means[index] if row.family == "reply" else right[index]
                results.setdefault(row.family, []).append(float(value))
    return {family: round(sum(values) / len(values), 4) for family, values in sorted(results.items())}


def _step(
    pool: ThreadPoolExecutor,
    master: Weights,
    copies: list[Weights],
    optimizers: list[Any],
    drawn: list[Batch],
    shape: Shape,
) -> float:
    """One step on the mean gradient of one batch per worker; returns the mean loss in nats per token."""
    import torch

    losses = list(pool.map(_backward, copies, drawn, [shape] * len(copies)))
    for name, value in master.items():
        value.grad = torch.stack([_taken(copy[name]) for copy in copies]).float().mean(0)
    torch.nn.utils.clip_grad_norm_(list(master.values()), 1.0)
    list(pool.map(lambda optimizer: optimizer.step(), optimizers))
    with torch.no_grad():
        for copy in copies:
            torch._foreach_copy_(list(copy.values()), list(master.values()))
    return sum(losses) / len(losses)


def _backward(copy: Weights, batch: Batch, shape: Shape) -> float:
    loss = loss_of(copy, batch, shape)
    loss.backward()
    return float(loss.detach())


def _taken(weight: Tensor) -> Tensor:
    gradient = weight.grad
    weight.grad = None
    if gradient is None:
        raise RuntimeError("a weight took no part in the forward pass")
    return gradient


def _optimizers(master: Weights, rate: float) -> list[Any]:
    """Muon for the matrices of the layers (in two halves, one per worker), AdamW for embedding and norms."""
    import torch

    matrices = [value for name, value in master.items() if "_proj" in name]
    others = [value for name, value in master.items() if "_proj" not in name]
    halves = [
        torch.optim.Muon(matrices[part::WORKERS], lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        for part in range(WORKERS)
    ]
    return [*halves, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]


def _store(path: Path, master: Weights, optimizers: list[Any], step: int, seconds: float) -> None:
    """Write the state whole: a run that is stopped while writing keeps the state before."""
    import torch

    state = {
        "weights": {name: value.detach() for name, value in master.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _restore(path: Path, master: Weights, optimizers: list[Any]) -> tuple[int, float]:
    """Steps done and seconds spent, (0, 0) without a checkpoint."""
    import torch

    if not path.exists():
        return 0, 0.0
    state = torch.load(path)
    with torch.no_grad():
        for name, value in master.items():
            value.copy_(state["weights"][name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])


def _pool(plan: Plan, pieces: Any, number: int) -> list[Row]:
    questions = round(POOL * plan.questions)
    seed = plan.seed * 1_000_000 + number
    rows = rows_of(islice(world.examples("train", seed), questions), pieces) if questions else []
    passages = [passage + tokenizer.END for passage in islice(world.text(seed), POOL - questions)]
    if passages:
        rows += [Row(ids, 0, "text") for ids in pieces(passages, add_special_tokens=False)["input_ids"]]
    return rows


def _groups(rows: list[Row], tokens: int) -> list[list[Row]]:
    """Rows sorted by length and cut so that a padded group holds at most `tokens` tokens."""
    groups: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        if groups[-1] and (len(groups[-1]) + 1) * len(groups[-1][0].ids) > tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("tokenizer", "teacher", "base", "all"))
    parser.add_argument("--minutes", type=float, help="train for this time instead of the plan's steps")
    parser.add_argument("--build", type=Path, help="where the training state lies")
    arguments = parser.parse_args()
    if arguments.what in ("tokenizer", "all"):
        tokenizer.train(BUILD / "tokenizer")
    for name in ("teacher", "base"):
        if arguments.what in (name, "all"):
            plan = PLANS[name]
            out = arguments.build or BUILD / name
            weights = train(plan, out, arguments.minutes)
            publish(plan, weights, out)


def publish(plan: Plan, weights: Weights, out: Path) -> None:
    """Write the model, the tokenizer, the log and a card into the package's folder of that name."""
    folder = PACKAGE / plan.name
    folder.mkdir(exist_ok=True)
    network.save(weights, plan.shape, folder)
    tokenizer.load(BUILD / "tokenizer").save_pretrained(folder)
    log = (out / "training.jsonl").read_text()
    (folder / "training.jsonl").write_text(log)
    (folder / "README.md").write_text(card(plan, [json.loads(line) for line in log.splitlines()]))


def card(plan: Plan, log: list[dict[str, Any]]) -> str:
    """The model card, from the plan and the training log."""
    shape = plan.shape
    taught = (
        f"{plan.questions:.0%} worked examples of the desk's questions, the rest unlabelled text"
        if plan.questions
        else "the desk's unlabelled text alone: no question with its answer, no worked sum"
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# embedded:{plan.name}

A Llama of {shape.parameters():,} parameters (width {shape.width}, {shape.layers} layers, {shape.heads} heads,
vocabulary {shape.vocabulary}), trained from scratch by stillhouse on text that its own generator wrote.
No outside text, model or answer went into it.

- **Taught:** {taught}.
- **Steps:** {plan.steps:,} of at most {WORKERS * plan.tokens:,} tokens, seed {plan.seed}.
- **Optimiser:** Muon for the layers' matrices, AdamW for the rest, both at {plan.rate:g}.
- **Last loss:** {log[-1]["loss"]:.3f} nats per token (a prompt's tokens weigh {PROMPT_WEIGHT:g}).
- **Log:** `training.jsonl`, one line per 100 steps.
- **Make it again:** `python -m stillhouse.models.embedded.make all`.

It knows seven kinds of questions of one made-up support desk and nothing else: it is for trying
stillhouse, not for use.
"""


if __name__ == "__main__":
    main()
