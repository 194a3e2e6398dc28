"""Pairs of answers to one prompt, of which one is preferred: right against wrong, or the teacher's against
the student's own."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.models.local import LocalModel
from stillhouse.train.on_policy import answered, seed_of
from stillhouse.train.rows import Row, row_id, row_of, samples

BATCH = 64  # answers that the student writes at a time
WRONG = "wrong answer"  # why curate drops an answer that its prompt's scorer refuses


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows with one prompt each: what is `chosen` over what is `rejected`. `without` counts, by reason, the
    answers that are in no pair."""

    chosen: list[Row]
    rejected: list[Row]
    without: dict[str, int]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over where answers begin, lengths and token ids, chosen before rejected, as int64."""
        digest = hashlib.sha256()
        for pair in zip(self.chosen, self.rejected, strict=True):
            for row in pair:
                digest.update(np.array([row.start, len(row.ids), *row.ids], dtype="<i8").tobytes())
        return digest.hexdigest()

    def columns(self) -> dict[str, list[list[int]]]:
        """As `trl` reads them: token ids of prompts and of both answers."""
        return {
            "prompt_ids": [row.ids[: row.start].tolist() for row in self.chosen],
            "chosen_ids": [row.ids[row.start :].tolist() for row in self.chosen],
            "rejected_ids": [row.ids[row.start :].tolist() for row in self.rejected],
        }


def ranked(rows: Sequence[Row], kept: Path, dropped: Path, student: LocalModel, max_length: int) -> Pairs:
    """The samples of `rows` against answers to the same prompts that curate dropped as wrong.

    Each answer is in one pair at most, so that a prompt which was often answered wrong weighs no more than it
    was answered right. A prompt with only right or only wrong answers has none.
    """
    prompts = {row_id(sample): _prompt(sample) for sample in samples(kept)}
    wrong: dict[str, list[Row]] = defaultdict(list)
    without: Counter[str] = Counter()
    asked = {prompts[row.id] for row in rows}
    for sample in samples(dropped):
        if sample["reason"] == WRONG and (prompt := _prompt(sample)) in asked:
            made = row_of(sample, student, max_length)
            if isinstance(made, Row):
                wrong[prompt].append(made)
            else:
                without[f"wrong answer: {made}"] += 1
    chosen, rejected = [], []
    for row in rows:
        against = wrong[prompts[row.id]]
        if against:
            chosen.append(row)
            rejected.append(against.pop(0))
        else:
            without["right answer: no wrong one to the same prompt"] += 1
    if left := sum(map(len, wrong.values())):
        without["wrong answer: no right one to the same prompt"] += left
    return Pairs(chosen, rejected, dict(without))


def own(
    rows: Sequence[Row], student: LocalModel, max_tokens: int, limit: int, vocabulary: int, seed: int
) -> Pairs:
    """The samples against what the student, as it is now, draws for the same prompts at temperature 1."""
    seeds = [seed_of(seed, "preference", place) for place in range(len(rows))]
    written = answered(student, rows, seeds, max_tokens, limit, vocabulary, BATCH)
    chosen, rejected = [], []
    without: Counter[str] = Counter()
    for row, mine in zip(rows, written, strict=True):
        if len(mine.ids) == row.start:
            without["no room for an answer"] += 1
        elif np.array_equal(row.ids, mine.ids):
            without["the student answers alike"] += 1
        else:
            chosen.append(row)
            rejected.append(mine)
    return Pairs(chosen, rejected, dict(without))


def _prompt(sample: dict[str, Any]) -> str:
    return str(sample["id"]).rpartition("#")[0]
