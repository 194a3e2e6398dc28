"""How far the student's probabilities are from the teacher's, on the teacher's own answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stillhouse import stats
from stillhouse.errors import UsageError
from stillhouse.records import Prompt

if TYPE_CHECKING:
    from stillhouse.models.local import LocalModel

MOST = 256  # prompts, spread evenly over the test set


class Drift(NamedTuple):
    """Of one answer: the sum over its places of KL(teacher || student) in nats, and the number of places,
    the one after the last token included."""

    prompt_id: str
    group: str
    nats: float
    places: int


def drifts(
    teacher: LocalModel, student: LocalModel, prompts: Sequence[Prompt], texts: Mapping[str, str]
) -> list[Drift] | str:
    """The drift on each answered prompt that both can read, or a sentence that says why there is none.

    Exact over the whole vocabulary, temperature 1. Each model reads the prompt by its own template, then both
    the same tokens of the teacher's answer.
    """
    import torch

    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        return "teacher and student have different vocabularies"
    answered = [prompt for prompt in prompts if texts.get(prompt.id)]
    count = min(MOST, len(answered))
    found = []
    with torch.inference_mode():
        for index in range(count):
            prompt = answered[index * len(answered) // count]
            ids = teacher.tokenizer(texts[prompt.id], add_special_tokens=False)["input_ids"]
            ours, theirs = _logprobs(student, prompt, ids), _logprobs(teacher, prompt, ids)
            if ours is None or theirs is None:
                continue
            nats = float((theirs.exp() * (theirs - ours)).sum())
            found.append(Drift(prompt.id, prompt.group, max(0.0, nats), len(ids) + 1))
    return found or "no answer of the teacher fits into both models"


def divergence(found: Sequence[Drift], seed: int, resamples: int) -> dict[str, Any]:
    """Mean nats for each place, with a bootstrap interval over groups; `n` answers, `places` in them."""
    codes = stats.group_codes([drift.group for drift in found], [drift.prompt_id for drift in found])
    span = stats.bootstrap_ratio(
        [drift.nats for drift in found],
        [float(drift.places) for drift in found],
        codes,
        np.random.default_rng(seed),
        resamples,
    )
    places = sum(drift.places for drift in found)
    return {"value": span.value, "low": span.low, "high": span.high, "n": len(found), "places": places}


def _logprobs(model: LocalModel, prompt: Prompt, answer: Sequence[int]) -> Any:
    """Log-probabilities [places, vocabulary] before each token of the answer and after the last; None for
    what the model cannot read."""
    import torch

    from stillhouse.models.local import prompt_ids

    try:
        asked = prompt_ids(model, prompt.messages)
    except UsageError:
        return None
    ids = [*asked, *answer]
    if not asked or (model.context is not None and len(ids) > model.context):
        return None
    shown = torch.tensor(ids, device=model.model.device)[None]
    logits = model.model(shown, use_cache=False).logits[0, len(asked) - 1 :]
    # Rows that only pad the matrix of weights belong to no token.
    return logits[:, : len(model.tokenizer)].float().log_softmax(dim=-1).cpu()
