"""Answers that are right by a known reference, and the best of several draws for one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from stillhouse.curate.funnel import KEEP, Filter, Judged, Row
from stillhouse.records import Verdict
from stillhouse.scoring import Scorer, as_reference, score

ANOTHER = Verdict("drop", "another draw")


def verified(scorers: Mapping[str, Scorer], every: bool) -> Filter:
    """Drops a wrong answer, by the scorer and the reference of its prompt.

    What cannot be verified is set aside as unscored where `every` is set, and kept else.
    """

    def right(row: Row) -> Verdict:
        found = score(row["scorer"], row["answer"], row["reference"], scorers)
        if found.value is None:  # what a scorer raised may hold a part of the row
            return Verdict("unscored", f"not verified: {found.reason.split(':')[0]}") if every else KEEP
        return KEEP if found.value == 1.0 else Verdict("drop", "wrong answer")

    return right


def whole_prompts(batches: Iterable[list[Judged]]) -> Iterator[list[Judged]]:
    """The same rows, in batches that never part one teacher's answers to one prompt, which lie together."""
    held: list[Judged] = []
    for batch in batches:
        held += batch
        last = _question(held[-1].row) if held else None
        cut = len(held)
        while cut and _question(held[cut - 1].row) == last:
            cut -= 1
        if cut:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


@dataclass(slots=True)
class Draws:
    """Keeps the best `kept` of the answers that one teacher gave to one prompt, and counts the yield.

    "shortest": those with the fewest characters. "agreed": of those that most others agree with by the
    prompt's scorer (self-consistency, Wang et al. 2022, arXiv:2203.11171), the shortest. It must see the
    answers to a prompt in one call.
    """

    best: Literal["shortest", "agreed"]
    kept: int
    scorers: Mapping[str, Scorer]
    prompts: int = 0  # that had an answer which came here
    answers: int = 0

    def judge(self, rows: Sequence[Row]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for _, group in groupby(rows, key=_question):
            answers = list(group)
            votes = self._votes(answers) if self.best == "agreed" else [0] * len(answers)
            order = sorted(range(len(answers)), key=lambda i: (-votes[i], len(answers[i]["answer"]), i))
            chosen = set(order[: self.kept])
            verdicts += [KEEP if place in chosen else ANOTHER for place in range(len(answers))]
            self.prompts += 1
            self.answers += len(answers)
        return verdicts

    def _votes(self, rows: Sequence[Row]) -> list[int]:
        """For each answer how many say the same. Each is compared with the first of every opinion so far."""
        opinions: list[list[int]] = []
        for place, row in enumerate(rows):
            for opinion in opinions:
                if self._agree(row, rows[opinion[0]]):
                    opinion.append(place)
                    break
            else:
                opinions.append([place])
        votes = [0] * len(rows)
        for opinion in opinions:
            for place in opinion:
                votes[place] = len(opinion)
        return votes

    def _agree(self, row: Row, other: Row) -> bool:
        scorer = row["scorer"] or "last_line"
        return any(
            score(scorer, row["answer"], said, self.scorers).value == 1.0
            for said in as_reference(other["answer"])
        )


def _question(row: Row) -> tuple[str, str]:
    return row["teacher"], row["prompt_id"]
