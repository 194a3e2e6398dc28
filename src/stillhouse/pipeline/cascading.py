"""A cascade's calibration from a run: its student answers the test prompts again, and tells how sure it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.cascade.calibration import Rows, differ
from stillhouse.cascade.scores import TOP, Sketch, Token, signals_of, unfamiliar
from stillhouse.errors import UsageError
from stillhouse.records import Prompt

BATCH = 256  # prompts answered between two reports of progress


@dataclass(frozen=True, slots=True)
class Told:
    """A student's answer as its server would tell it."""

    text: str
    finish_reason: str
    tokens: tuple[Token, ...]
    prompt_tokens: int
    completion_tokens: int


def told_answers(
    folder: str, prompts: Sequence[Prompt], max_tokens: int, done: Callable[[int], None] = lambda more: None
) -> list[Told | None]:
    """The greedy answers of the model in `folder`, in the order of the prompts; None where it cannot read
    one. `done` is told how many more there are after each batch."""
    from stillhouse.models.local import Request, generate, load_model, prompt_ids, threads_for

    model = load_model(folder)
    requests: dict[int, Request] = {}
    for index, prompt in enumerate(prompts):
        try:
            ids = prompt_ids(model, prompt.messages)
        except UsageError:
            continue
        room = max_tokens if model.context is None else min(max_tokens, model.context - len(ids))
        if ids and room > 0:
            requests[index] = Request(prompt_ids=ids, max_tokens=room, logprobs=TOP)
    told: list[Told | None] = [None] * len(prompts)
    done(len(prompts) - len(requests))
    ranked = sorted(requests, key=lambda index: len(requests[index].prompt_ids))
    with threads_for(model):
        for start in range(0, len(ranked), BATCH):
            batch = ranked[start : start + BATCH]
            for index, answer in zip(batch, generate(model, [requests[i] for i in batch]), strict=True):
                tokens = tuple(
                    Token(each.logprob, tuple(value for _, value in each.top))
                    for each in answer.logprobs or ()
                )
                told[index] = Told(
                    answer.text,
                    answer.finish_reason,
                    tokens,
                    answer.prompt_tokens,
                    answer.completion_tokens,
                )
            done(len(batch))
    return told


def asked_text(prompt: Prompt) -> str:
    """What of a prompt is compared with the training prompts: all that is said in it, roles left out."""
    return "\n".join(message.content for message in prompt.messages)


def rows_of(
    prompts: Sequence[Prompt],
    told: Sequence[Told | None],
    teacher: Mapping[str, tuple[str, float | None]],
    student: Mapping[str, float | None],
    sketch: Sketch,
    signed: bool = False,
) -> Rows:
    """The rows of prompts that both answered. `teacher` has text and score by prompt id, `student` the score.

    Where nothing is scored the loss is that the answers differ; where some rows are, the others are left out.
    """
    scored = any(value is not None for value in student.values())
    taken, losses, scores = [], [], []
    for prompt, answer in zip(prompts, told, strict=True):
        if answer is None or prompt.id not in teacher:
            continue
        text, theirs = teacher[prompt.id]
        own = student.get(prompt.id)
        if scored and (theirs is None or own is None):
            continue
        other = differ(answer.text, text)
        if not scored or theirs is None or own is None:
            theirs, own = 1.0, 1.0 - other
        taken.append((prompt, answer, other))
        losses.append(theirs - own if signed else max(0.0, theirs - own))
        scores.append((theirs, own))
    signals = [
        signals_of(answer.tokens, answer.text, answer.finish_reason, unfamiliar(sketch, asked_text(prompt)))
        for prompt, answer, _ in taken
    ]
    pairs = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return Rows(
        tuple(prompt.id for prompt, _, _ in taken),
        tuple(prompt.family for prompt, _, _ in taken),
        np.array(signals, dtype=np.float64),
        np.array(losses, dtype=np.float64),
        pairs[:, 0],
        pairs[:, 1],
        np.array([other for _, _, other in taken], dtype=np.bool_),
        signed and scored,
    )
