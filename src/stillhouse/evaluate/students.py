"""Local models at the test: their answers, their size, their speed. torch is loaded only when one answers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import UsageError
from stillhouse.evaluate.predictions import Given
from stillhouse.records import Prompt

if TYPE_CHECKING:
    from stillhouse.models.local import LocalModel, Request

BATCH = 256  # prompts answered between two reports of progress
SPEED_PROMPTS = 64
SPEED_TOKENS = 64
SPEED_ROUNDS = 3
LATENCY_PROMPTS = 9


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of wall time for one answer with nothing else in flight, over `n` prompts."""

    median: float
    slowest: float
    n: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A local model's size and speed. `config` is its transformers configuration."""

    config: Any
    parameters: int
    tokens_per_second: float | None
    latency: Latency | None = None


def model_source(path: Path) -> str | None:
    """The model at `path`: the folder itself, or what a file there names; None when nothing is there."""
    if path.is_dir():
        return str(path)
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def local_answers(
    model: LocalModel, prompts: Sequence[Prompt], max_tokens: int, done: Callable[[int], None]
) -> list[Given]:
    """Greedy answers in the order of the prompts. `done` is told how many more there are after each batch.

    A prompt that the model's template refuses, or that leaves no room for an answer, fails with the reason.
    """
    from stillhouse.models.local import generate

    given: list[Given | None] = [None] * len(prompts)
    requests: dict[int, Request] = {}
    for index, prompt in enumerate(prompts):
        request = _request(model, prompt, max_tokens, logprobs=0)
        if isinstance(request, str):
            given[index] = Given(None, request)
        else:
            requests[index] = request
    done(len(prompts) - len(requests))
    # Prompts of like length go together, so that little is padded.
    ranked = sorted(requests, key=lambda index: len(requests[index].prompt_ids))
    for start in range(0, len(ranked), BATCH):
        batch = ranked[start : start + BATCH]
        for index, answer in zip(batch, generate(model, [requests[index] for index in batch]), strict=True):
            given[index] = Given(
                answer.text,
                "",
                answer.prompt_tokens,
                answer.completion_tokens,
                answer.finish_reason,
                sum(token.logprob for token in answer.logprobs) if answer.logprobs else None,
            )
        done(len(batch))
    return [answer for answer in given if answer is not None]


def measured(model: LocalModel, prompts: Sequence[Prompt], max_tokens: int) -> Measured:
    """The model's size, and its speed over `prompts`, unknown without any, and where memory ran out."""
    from stillhouse.models.local import parameters

    try:
        speed, wait = tokens_per_second(model, prompts, max_tokens), latency(model, prompts, max_tokens)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        speed = wait = None
    return Measured(model.model.config, parameters(model), speed, wait)


def out_of_memory(error: BaseException) -> bool:
    """torch raises a RuntimeError, or one of its kinds, for memory of any device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def size_on_disk(folder: str) -> Measured | None:
    """A model's configuration and number of weights without loading it, its speed None.

    None where that cannot be had: not a folder, weights in another format than safetensors, a configuration
    that transformers does not know.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        return None
    try:
        shapes: dict[str, list[int]] = {}
        for file in files:
            with safe_open(file, framework="numpy") as tensors:
                shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        return Measured(AutoConfig.from_pretrained(folder), sum(map(math.prod, shapes.values())), None)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def tokens_per_second(
    model: LocalModel,
    prompts: Sequence[Prompt],
    max_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Answer tokens for each second of wall time, prompts read in included: the fastest of three rounds.

    A round is one batch of 64 prompts spread evenly over the test set, each answered greedily with at most
    64 tokens. What else the machine does only ever slows a round down. None without a prompt that fits.
    """
    from stillhouse.models.local import generate

    requests = _spread(model, prompts, SPEED_PROMPTS, max_tokens)
    if not requests:
        return None
    rates = []
    for _ in range(SPEED_ROUNDS):
        start = clock()
        answers = generate(model, requests)
        rates.append(sum(answer.completion_tokens for answer in answers) / (clock() - start))
    return max(rates)


def latency(
    model: LocalModel,
    prompts: Sequence[Prompt],
    max_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency | None:
    """The wait for a whole answer of at most 64 tokens, prompts asked one after the other after one that is
    not counted: 9 of them, spread evenly over the test set. None without a prompt that fits."""
    from stillhouse.models.local import generate

    requests = _spread(model, prompts, LATENCY_PROMPTS, max_tokens)
    if not requests:
        return None
    generate(model, requests[:1])
    waits = []
    for request in requests:
        start = clock()
        generate(model, [request])
        waits.append(clock() - start)
    return Latency(statistics.median(waits), max(waits), len(waits))


def _spread(model: LocalModel, prompts: Sequence[Prompt], most: int, max_tokens: int) -> list[Request]:
    """Requests for at most so many prompts, evenly spread, of those that fit."""
    count = min(most, len(prompts))
    chosen = [prompts[index * len(prompts) // count] for index in range(count)]
    tried = [_request(model, prompt, min(max_tokens, SPEED_TOKENS)) for prompt in chosen]
    return [request for request in tried if not isinstance(request, str)]


def _request(
    model: LocalModel, prompt: Prompt, max_tokens: int, logprobs: int | None = None
) -> Request | str:
    from stillhouse.models.local import Request, prompt_ids

    try:
        ids = prompt_ids(model, prompt.messages)
    except UsageError as error:
        return f"{error.what}: {error.why}"
    room = max_tokens if model.context is None else min(max_tokens, model.context - len(ids))
    if not ids or room < 1:
        return f"the prompt has {len(ids)} tokens and the model's context is {model.context}"
    return Request(prompt_ids=ids, max_tokens=room, logprobs=logprobs)
