"""Which questions watch a teacher, and what is known in the end about who answered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from heapq import nsmallest
from itertools import islice
from typing import Any

from stillhouse.ask import Canary, Question, Questions, Watched, is_local
from stillhouse.ask.drift import ALPHA
from stillhouse.recipe import Recipe, Teacher

WATCHED = 8  # questions, where the recipe names no number
MANY = 1000  # answers from which on somebody else's server is watched unasked
AMONG = 8192  # questions of which they are drawn: the first, so that a file that grows keeps its canaries
NAMED = 20  # model ids and fingerprints that are counted one by one


def canaries_of(recipe: Recipe, asked: Sequence[Questions]) -> list[Canary | None]:
    """The canaries of each teacher, None for one that is not watched. The chance of an alarm without a change
    is shared among them."""
    settings = recipe.collect.canary
    teachers = (recipe.teacher, *recipe.teachers)
    counts = [_count(settings.prompts, *each) for each in zip(teachers, asked, strict=True)]
    alpha = ALPHA / max(1, sum(count > 0 for count in counts))
    return [
        Canary(_drawn(what, count, recipe.run.seed), settings.every, settings.action == "stop", alpha)
        if count
        else None
        for what, count in zip(asked, counts, strict=True)
    ]


def _count(wanted: int | None, teacher: Teacher, asked: Questions) -> int:
    if teacher.imported:
        return 0
    if wanted is not None:
        return min(wanted, len(asked))
    elsewhere = teacher.endpoint is not None and not is_local(teacher.endpoint)
    return WATCHED if elsewhere and len(asked) >= MANY else 0


def _drawn(asked: Questions, count: int, seed: int) -> tuple[Question, ...]:
    """So many of the first questions, drawn by a hash of seed and prompt, one sample of each."""
    first = (question for question in islice(asked, AMONG) if question.sample_index == 0)

    def place(question: Question) -> bytes:
        return hashlib.sha256(f"canary:{seed}:{question.prompt_id}".encode()).digest()

    return tuple(nsmallest(count, first, key=place))


def account(
    teacher: str,
    models: Mapping[str, int],
    fingerprints: Mapping[str, int],
    watched: Watched | None,
    older: int,
) -> dict[str, Any]:
    """Who answered for a teacher, for the marker of the stage: ids and fingerprints with the number of rows,
    and what its canaries say. `older` rows were there before it was watched."""
    return {
        "teacher": teacher,
        "models": dict(Counter(models).most_common(NAMED)),
        "fingerprints": dict(Counter(fingerprints).most_common(NAMED)),
        "canary": None if watched is None else {**asdict(watched), "older": older},
    }
