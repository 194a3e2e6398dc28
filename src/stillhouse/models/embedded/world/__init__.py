"""The support-desk world: questions with known answers, and unlabelled text, without end and without a file.

Everything follows from a seed. The three splits share no template (an arrangement of the phrases that carry
a question's facts) and no held-out slot value (people, products, cities, order numbers, and the combinations
of numbers that make a sum), so a model that scores on `test` has learned the tasks and not their texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Literal

from stillhouse.models.embedded.world.families import FAMILIES
from stillhouse.models.embedded.world.prose import text
from stillhouse.models.embedded.world.slots import SPLITS, Split, split_of
from stillhouse.records import Message, Prompt

__all__ = ["FAMILIES", "SPLITS", "Example", "Split", "examples", "prompts", "split_of", "text"]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the answer that the teacher is taught, steps included."""

    prompt: Prompt
    answer: str


def examples(split: Literal["train", "dev", "test"], seed: int) -> Iterator[Example]:
    """Worked examples without end, no question twice; families by weight in training, else evenly."""
    rng = Random(f"{split}/{seed}")
    names = list(FAMILIES)
    weights = [weight if split == "train" else 1 for _, weight in FAMILIES.values()]
    seen: set[bytes] = set()
    number = 0
    while True:
        family = rng.choices(names, weights)[0]
        case = FAMILIES[family][0](rng, split)
        fingerprint = blake2b(case.question.encode(), digest_size=8).digest()
        if fingerprint in seen:
            continue
        seen.add(fingerprint)
        yield Example(
            Prompt(
                id=f"desk-{split}-{seed}-{number:06d}",
                messages=(Message("user", case.question),),
                family=family,
                group=case.template,
                reference=case.reference,
                scorer=case.scorer,
            ),
            case.answer,
        )
        number += 1


def prompts(split: Literal["train", "dev", "test"], count: int, seed: int) -> list[Prompt]:
    """`count` different prompts of a split; a smaller count gives the beginning of a larger one."""
    source = examples(split, seed)
    return [next(source).prompt for _ in range(count)]
