"""Rationales as a second task ("distilling step by step", Hsieh et al. 2023, arXiv:2305.02301).

A sample whose teacher said why gives two rows: its prompt with the answer, and its prompt with a marker and
the rationale. Both tasks share the student's weights, and an answer costs no more than it did: the marker is
never shown when the student is asked. The loss is that of the answers and `weight` times that of the
rationales, each the mean over its own tokens, so that long rationales do not drown short answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.models.local import LocalModel
from stillhouse.models.reading import end_id, row_ids
from stillhouse.records import Message
from stillhouse.train.rows import Row, row_id, samples

MARKER = "[rationale]"


@dataclass(frozen=True, slots=True)
class Rationales:
    """The rows of the second task, and how many rows of the first have none, by reason."""

    rows: list[Row]
    without: dict[str, int]

    def record(self) -> dict[str, Any]:
        """JSON-able; `token_weight` is what one of their tokens counts beside one of an answer."""
        return {
            "rows": len(self.rows),
            "tokens": _tokens(self.rows),
            "token_weight": self.rows[0].weight,
            "without": self.without,
        }


def rationales(
    path: Path, student: LocalModel, learnt: Sequence[Row], max_length: int, weight: float
) -> Rationales:
    """The rationales of the samples that `learnt` are rows of.

    Their tokens are weighed so that over all of these rows together they count `weight` times as much as the
    answers' tokens. Raises UsageError where no sample has a rationale that can be learned.
    """
    limit, end = min(max_length, student.context or max_length), end_id(student.reader)
    groups = {row.id: row.group for row in learnt}
    found: list[Row] = []
    without: Counter[str] = Counter()
    for sample in samples(path):
        if (name := row_id(sample)) not in groups:
            continue
        said = (sample.get("rationale") or "").strip()
        made = row_ids(student.reader, asked_why(sample["messages"]), said, end) if said else "no rationale"
        if isinstance(made, str):
            without[made] += 1
        elif len(made[0]) > limit:
            without["too long"] += 1
        else:
            found.append(Row(*made, groups[name], name))
    if not found:
        raise UsageError(
            "there are no rationales to learn",
            f"of {len(learnt)} samples none has one that fits: {dict(without)}",
            "ask a teacher that tells its reasoning, or say in `curate.rationale` where its answers hold it",
        )
    each = weight * _tokens(learnt) / _tokens(found)
    return Rationales([replace(row, weight=each) for row in found], dict(without))


def asked_why(messages: Sequence[dict[str, Any]]) -> list[Message]:
    """The messages of a prompt with the marker below the last."""
    turns = [Message(m["role"], m["content"]) for m in messages]
    return [*turns[:-1], replace(turns[-1], content=f"{turns[-1].content}\n{MARKER}")]


def _tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.ids) - row.start for row in rows)
