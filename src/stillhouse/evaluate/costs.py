"""What an answer costs to compute, from each model's own token counts and `models.flops`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stillhouse.errors import ModelError
from stillhouse.evaluate.predictions import Prediction, System
from stillhouse.evaluate.students import Measured
from stillhouse.models.flops import flops_per_answer

MODELS: tuple[System, ...] = ("teacher", "student_before", "student")


def cost_figures(rows: Sequence[Prediction], sizes: Mapping[str, Measured]) -> dict[str, Any]:
    """Mean FLOPs per answer and per token of each model, their ratio, parameters, speed and latency, notes.

    `sizes` lacks a model that is not on this machine. Teacher and student are averaged over the same
    prompts, those that both answered with known token counts; without any, each over its own. Per token
    divides by all tokens that pass through the model, prompt and answer. `flops_ratio` is student to
    teacher, per answer.
    """
    notes: list[str] = []
    known = {
        system: flops_of_answers(rows, system, sizes[system], notes) if system in sizes else {}
        for system in MODELS
    }
    shared = known["teacher"].keys() & known["student"].keys()
    per_answer: dict[str, float | None] = {}
    per_token: dict[str, float | None] = {}
    for system, costs in known.items():
        kept = [cost for prompt, cost in costs.items() if prompt in shared or not shared]
        total = sum(flops for flops, _ in kept)
        per_answer[system] = total / len(kept) if kept else None
        per_token[system] = total / sum(tokens for _, tokens in kept) if kept else None
    ours, theirs = per_answer["student"], per_answer["teacher"]
    return {
        "flops_ratio": ours / theirs if shared and ours and theirs else None,
        "flops": per_answer,
        "flops_per_token": per_token,
        "flops_prompts": len(shared),
        "parameters": {system: sizes[system].parameters if system in sizes else None for system in MODELS},
        "tokens_per_second": {
            system: sizes[system].tokens_per_second if system in sizes else None
            for system in ("teacher", "student")
        },
        "latency": {
            system: asdict(latency) if system in sizes and (latency := sizes[system].latency) else None
            for system in ("teacher", "student")
        },
        "notes": notes,
    }


def flops_of_answers(
    rows: Sequence[Prediction], system: str, size: Measured, notes: list[str]
) -> dict[str, tuple[float, int]]:
    """(FLOPs, tokens) of each answer whose tokens are known, by prompt id; a note where there is none."""
    counted = [
        (row.prompt_id, row.prompt_tokens, row.completion_tokens)
        for row in rows
        if row.system == system and row.prompt_tokens is not None and row.completion_tokens is not None
    ]
    if rows and not counted:
        notes.append(f"{system}: FLOPs unknown, for no answer has token counts")
    try:
        return {
            prompt: (flops_per_answer(size.config, read, written), read + written)
            for prompt, read, written in counted
        }
    except ModelError as error:
        notes.append(f"{system}: FLOPs unknown, {error.what} ({error.why})")
    except AttributeError as error:  # the configuration lacks a size that the formula needs
        notes.append(f"{system}: FLOPs unknown, no formula fits the architecture ({error})")
    return {}
