"""What the student owes, met in files: LICENSE, NOTICE, ATTRIBUTION.md and LICENSES/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stillhouse.errors import GateRefused
from stillhouse.recipe import Recipe
from stillhouse.terms.facts import Obligation
from stillhouse.terms.obligations import Owed, Settlement, due, of_seeds, settle


def settled(recipe: Recipe, decisions: Iterable[Mapping[str, Any]], copied: Iterable[str]) -> Settlement:
    """What this release owes by its decisions (leaf bodies) and the licence of its prompts.

    `copied` are the teachers whose licence text is at hand.
    """
    owed = [
        Owed(each["row"], body["teacher"]["model"], _obligation(each))
        for body in decisions
        for each in body.get("obligations") or ()
    ]
    owed += of_seeds(recipe.prompts.source, recipe.prompts.licence or "")
    redistributes = recipe.student.init == "from_teacher"
    name = recipe.release.name or recipe.run.name
    return settle(
        due(dict.fromkeys(owed), recipe.release.mode, redistributes),
        name,
        recipe.release.licence,
        recipe.release.confirmed,
        tuple(copied),
    )


def must_be_met(settlement: Settlement) -> None:
    """Raises GateRefused for what no release can meet, and for what this one lacks."""
    if settlement.conflicts:
        raise GateRefused(
            "these teachers cannot be joined in one release",
            "\n".join(settlement.conflicts),
            'leave a teacher out, or keep the student in the house: [release] mode = "internal"',
        )
    if settlement.unmet:
        why = "\n".join(settlement.unmet)
        raise GateRefused(
            "the release does not meet what it owes", why, "change the recipe as each line says"
        )


def files(settlement: Settlement, licence: str | None, texts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Each file's place in the bundle and its bytes; `texts` are licences by teacher."""
    found = {"LICENSE": _licence(licence).encode()}
    if settlement.notices:
        found["NOTICE"] = ("\n\n".join(settlement.notices) + "\n").encode()
    lines = [*settlement.credits, *settlement.notes]
    lines += [f"Use is bound by: {policy}" for policy in settlement.policies]
    lines += [
        "What this model writes is written by a machine: say so where it is published."
    ] * settlement.labelled
    if lines:
        found["ATTRIBUTION.md"] = "".join(f"- {line}\n" for line in lines).encode()
    for teacher in settlement.copies:
        found[f"LICENSES/{_file_name(teacher)}.txt"] = texts[teacher]
    return found


def _licence(licence: str | None) -> str:
    if licence is None:
        return "No licence was declared for these weights: ask whoever released them before you use them.\n"
    return f"SPDX-License-Identifier: {licence}\n\nThe weights in this folder are under {licence}.\n"


def _obligation(record: Mapping[str, Any]) -> Obligation:
    values = {name: record[name] for name in ("kind", "redistributes", "where")}
    return Obligation(**values, texts=tuple(record["texts"]), modes=tuple(record["modes"]))


def _file_name(teacher: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in teacher)
