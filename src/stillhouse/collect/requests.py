"""How a teacher is asked for further prompts, and how its list of them is read: pure functions.

Three known ways, in words of our own: from examples (self-instruct, Wang et al. 2022, arXiv:2212.10560), by
changing one prompt in a named way (Evol-Instruct, Xu et al. 2023, arXiv:2304.12244), and through the eyes of
a described person (Persona Hub, Ge et al. 2024, arXiv:2406.20094).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from stillhouse.collect.prompts import fill
from stillhouse.collect.sources import Broken, read_rows
from stillhouse.errors import UsageError
from stillhouse.recipe import Grow
from stillhouse.records import Prompt

Method = Literal["self_instruct", "evolve", "personas"]

EXAMPLES: Mapping[Method, int] = {"self_instruct": 4, "evolve": 1, "personas": 3}  # seeds shown in a request
WANTED: Mapping[Method, int] = {"self_instruct": 5, "evolve": 3, "personas": 4}  # prompts asked for in one

INSTRUCTIONS: Mapping[Method, str] = {
    "self_instruct": """\
These requests were sent to an assistant. All are of one kind.

{examples}

Invent {count} more of the same kind. Let each stand alone and hold everything that its answer depends on. \
Go to other subjects, situations and ways of putting it than these and than each other: another name or \
number in the same sentence is no new request. Do not answer any of them.""",
    "evolve": """\
This request was sent to an assistant.

{examples}

Make {count} new requests out of it, one in each of these ways:
{ways}

Each new request needs the same skill and the same form of answer, stands alone, holds everything that its \
answer depends on, and can be answered by somebody who knows the matter. Do not answer any of them.""",
    "personas": """\
Think of this person: {persona}

The person uses an assistant, to which others have sent these requests, all of one kind.

{examples}

Write {count} requests of the same kind that this person would send: from their own work and days, with what \
they know and in their way of speaking. The description itself does not appear in them. Let each stand alone \
and hold everything that its answer depends on. Do not answer any of them.""",
}
FORM = """\
Reply with one JSON array of {count} strings, a whole request in each, and with nothing before or after it."""

WAYS = (
    "A further condition makes the first answer that comes to mind wrong.",
    "The answer takes two or three steps, each of which needs the result of the one before.",
    "Particular names, amounts and circumstances stand where it speaks in general.",
    "It brings material of its own to work on: a short table, list, message or record.",
    "It falls into a case for which the usual rule makes an exception.",
    "It tells a circumstance that has no bearing on the answer and sounds as if it had.",
    "Something that it tells contradicts itself or is missing, and the answer must say so.",
    "It asks the same of a subject that people seldom ask about.",
    "What it gave is now asked for, and what it asked for is given.",
    "It comes from somebody in a hurry, in as few words as will do.",
)

_WHO = (
    "a night nurse",
    "a bicycle mechanic",
    "the owner of a corner shop",
    "a student in the first year",
    "a lorry driver",
    "a notary's assistant",
    "a beekeeper",
    "a retired teacher of mathematics",
    "a stage technician",
    "a dispatcher of parcels",
    "a vet in the country",
    "a caretaker of six houses",
    "a baker with two apprentices",
    "a translator of manuals",
    "a ship's cook",
    "a landlady of holiday flats",
    "a buyer for a hospital",
    "a florist",
    "a coach of a youth team",
    "a clerk at a town hall",
    "an electrician",
    "a librarian",
    "a market gardener",
    "a tester of software",
    "an accountant of small firms",
    "a tailor",
    "a guide in a museum",
    "a paramedic",
    "a piano tuner",
    "a warehouse foreman",
)
_HOW = (
    "who is new to the work and checks everything twice",
    "who has done this for thirty years and leaves out what seems plain",
    "who writes on the phone between two appointments",
    "whose first language is another one",
    "who has to explain the answer to somebody else today",
    "who has had a bad experience with a short answer",
    "who likes figures and asks for exact ones",
    "who tells the whole story before the question comes",
    "who is deciding between two ways and leans to the cheaper",
    "who has just noticed a mistake of the day before",
    "who plans a week ahead and wants nothing to be forgotten",
    "who is polite, impatient and brief",
)
PERSONAS = tuple(f"{who} {how}" for who in _WHO for how in _HOW)


@dataclass(frozen=True, slots=True)
class Means:
    """What a growth works with, its files read: instructions to draw from, and people where it needs them."""

    method: Method
    instructions: tuple[str, ...]
    personas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One question for further prompts. `seeds` were shown, the first of them stands for all; `echo` is the
    text without them, which no new prompt may repeat."""

    number: int
    seeds: tuple[Prompt, ...]
    text: str
    echo: str


def read_means(settings: Grow) -> Means:
    """Raises UsageError for a file that cannot be used, before anybody is asked."""
    given = [settings.template] if isinstance(settings.template, str) else settings.template or []
    instructions = tuple(_read_template(Path(path), settings.method) for path in given)
    personas: tuple[str, ...] = ()
    if settings.method == "personas":
        personas = PERSONAS if settings.personas is None else _read_personas(settings.personas)
    return Means(settings.method, instructions or (INSTRUCTIONS[settings.method],), personas)


def by_family(seeds: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    found: dict[str, list[Prompt]] = {}
    for prompt in seeds:
        found.setdefault(prompt.family, []).append(prompt)
    return found


def request(number: int, families: Mapping[str, Sequence[Prompt]], means: Means, seed: str) -> Request:
    """The request of this number; `seed` and number decide about all that is drawn.

    A family is drawn by its number of seeds, and those that are shown are all of it.
    """
    source = Random(f"{seed}/{number}")
    family = source.choices(list(families), [len(of) for of in families.values()])[0]
    shown = tuple(source.sample(families[family], min(EXAMPLES[means.method], len(families[family]))))
    count = WANTED[means.method]
    ways = "\n".join(f"{place}. {way}" for place, way in enumerate(source.sample(WAYS, count), 1))
    values = {"count": count, "ways": ways}
    if means.personas:
        values["persona"] = source.choice(means.personas)
    instruction = f"{source.choice(means.instructions)}\n\n{FORM}"
    examples = "\n\n".join(f"[{place}]\n{text_of(prompt)}" for place, prompt in enumerate(shown, 1))
    return Request(
        number,
        shown,
        fill(instruction, {**values, "examples": examples}),
        fill(instruction, {**values, "examples": "[1]"}),
    )


def text_of(prompt: Prompt) -> str:
    """What a seed asks."""
    return prompt.messages[-1].content


def read_list(text: str) -> list[str] | None:
    """The prompts of a reply, None for one that is no list of texts.

    Either the whole reply is a JSON array of strings, or each of its lines that is not empty begins with the
    next number from 1 on, followed by `.` or `)`. A code fence around the whole is taken off. Nothing may
    stand before, between or after: whatever else a model writes would be taken for a part of a prompt.
    """
    stripped = text.strip()
    if fenced := _FENCE.fullmatch(stripped):
        stripped = fenced[1].strip()
    if stripped.startswith("["):
        try:
            found = json.loads(stripped)
        except (ValueError, RecursionError):
            return None
        return found if found and all(isinstance(item, str) for item in found) else None
    items: list[str] = []
    for line in filter(str.strip, stripped.splitlines()):
        numbered = _NUMBERED.fullmatch(line)
        if numbered is None or numbered[1] != str(len(items) + 1):
            return None
        items.append(numbered[2])
    return items or None


_FENCE = re.compile(r"```\w*\n(.*)\n```", re.DOTALL)
_NUMBERED = re.compile(r"\s*([0-9]{1,4})[.)]\s+(\S.*)")
_PLACES: Mapping[Method, tuple[str, ...]] = {
    "self_instruct": ("examples", "count"),
    "evolve": ("examples", "count", "ways"),
    "personas": ("examples", "count", "persona"),
}


def _read_template(path: Path, method: Method) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the template {path}", str(error), "give a readable text file in UTF-8"
        ) from None
    places = _PLACES[method]
    try:
        fill(text, dict.fromkeys(places, "x"))
    except KeyError as error:
        raise UsageError(
            f"the template {path} asks for {error}",
            f"for `{method}` there is " + ", ".join(f"{{{name}}}" for name in places),
            "correct the name; a brace that is meant is doubled",
        ) from None
    if "{examples}" not in text:
        raise UsageError(
            f"the template {path} shows no examples",
            "without {examples} the teacher does not know what kind of prompt is wanted",
            "add {examples} on a line of its own",
        )
    return text


def _read_personas(source: str) -> tuple[str, ...]:
    path = Path(source)
    found: list[str] = []
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot read the personas {path}", str(error), "give a readable text file in UTF-8"
            ) from None
        found = [line.strip() for line in lines if line.strip()]
    else:
        for place, row in read_rows(source):
            text = row.get("persona") if isinstance(row, dict) else None
            if not isinstance(text, str) or not text.strip():
                why = row.reason if isinstance(row, Broken) else "no text in column `persona`"
                raise UsageError(f"{place} describes no person", why, "mend the row or take it out")
            found.append(text.strip())
    if not found:
        raise UsageError(f"nobody is described in {source}", "the file is empty", "one description in a line")
    return tuple(found)
