"""How hard a row is for a student: the loss that it has over the teacher's answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stillhouse.curate.funnel import Row
from stillhouse.curate.mix import Losses
from stillhouse.errors import UsageError
from stillhouse.records import Message

_AT_ONCE = 64  # rows whose log-probabilities are in memory together


def losses_of(checkpoint: str) -> Losses:
    """For rows the student's mean loss over the answer, in nats a token, given the prompt.

    NaN where there is none: the answer has no token, or the student's template refuses the prompt or its
    context ends before the answer. Raises ModelError where
    the folder holds no model.
    """
    from stillhouse.models import local

    student = local.load_model(checkpoint)

    def losses(rows: Sequence[Row]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(rows), _AT_ONCE):
            found += measured(rows[start : start + _AT_ONCE])
        return found

    def measured(rows: Sequence[Row]) -> list[float]:
        texts = [_ids(row) for row in rows]
        scored = local.score(student, [ids for ids, _ in texts])
        return [_mean(tokens[first:]) for tokens, (_, first) in zip(scored, texts, strict=True)]

    def _ids(row: Row) -> tuple[list[int], int]:
        """Token ids of prompt and answer, and where the answer begins; nothing where there is no such row."""
        try:
            prompt = local.prompt_ids(student, [Message(m["role"], m["content"]) for m in row["messages"]])
        except UsageError:
            return [], 0
        answer = student.tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        if student.context is not None and len(prompt) + len(answer) > student.context:
            return [], 0
        return [*prompt, *answer], len(prompt)

    def _mean(tokens: Sequence[local.TokenLogprob | None]) -> float:
        known = [token.logprob for token in tokens if token is not None]
        return -sum(known) / len(known) if known else math.nan

    return losses
