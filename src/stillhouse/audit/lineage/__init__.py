"""Tests of lineage: was a model taught by another, made from its weights, or trained on rows of a ledger?

What is given decides what is asked: files of answers, folders of checkpoints, a checkpoint and rows, or
answers and the key that marked the teacher's. Every answer is `supported` or `not decided`, with its controls
and limits, and can be sealed as evidence that another repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.audit.lineage import behaviour, checkpoints, marks, membership, weights
from stillhouse.audit.lineage.evidence import (
    NOT_DECIDED,
    SUPPORTED,
    Finding,
    Test,
    body,
    differences,
    figures,
    seal,
    unseal,
)
from stillhouse.audit.lineage.materials import Material, align, answer_files, material, read_answers
from stillhouse.errors import LedgerError, UsageError
from stillhouse.watermark import read_key

__all__ = [
    "NOT_DECIDED",
    "SUPPORTED",
    "Finding",
    "Material",
    "Repeated",
    "Settings",
    "Test",
    "answer_files",
    "body",
    "find",
    "material",
    "repeat",
    "seal",
    "unseal",
]


@dataclass(frozen=True, slots=True)
class Settings:
    """`level` is the share of false accusations that is allowed; `seed` draws shuffles, where a test has any.
    `related` gives, by name, tags that two models of a stated relation share; answers alone use it."""

    level: float = 0.01
    seed: int = 0
    related: dict[str, list[str]] | None = None


@dataclass(frozen=True, slots=True)
class Repeated:
    """What came out a second time, and where it differs from what was recorded."""

    finding: dict[str, Any]
    differences: tuple[str, ...]


def find(materials: Sequence[Material], settings: Settings) -> Finding:
    """Make the test that these materials allow.

    With a `key` beside a suspect's answers, and perhaps `served` ones: marks. With `rows` and `held-out`
    beside a suspect and a base: membership. With folders as suspect and teacher:
    weights. With files: answers. Raises UsageError where something is lacking, ModelError for a checkpoint
    that cannot be read.
    """
    if not 0 < settings.level < 1:
        raise UsageError(
            f"{settings.level:g} is no level", "it is the share of false accusations", "give one such as 0.01"
        )
    _named_apart(materials)
    suspect = _one(materials, "suspect")
    controls = [each for each in materials if each.role == "control"]
    if any(each.role == "key" for each in materials):
        return _marks(materials, suspect, controls, settings)
    if any(each.role == "rows" for each in materials):
        return _membership(materials, suspect, controls, settings)
    teacher = _one(materials, "teacher")
    if suspect.path.is_dir() and teacher.path.is_dir():
        opened = [checkpoints.open_checkpoint(each.path) for each in (suspect, teacher, *controls)]
        return weights.compare_weights(opened[0], opened[1], opened[2:], settings.level, settings.seed)
    panel = align([(each.name, *read_answers(each.path)) for each in (suspect, teacher, *controls)])
    return behaviour.compare_answers(panel, settings.level, settings.related)


def repeat(file: Path, pinned: bytes | None = None) -> Repeated:
    """Make the test of an evidence file again, from materials with the hashes that it names.

    They are looked for where they were, and beside the file. Raises LedgerError for a file that was changed
    or is of another key than `pinned`, and for materials that are not what was tested.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}", error.strerror or str(error), "give the evidence") from None
    evidence, _ = unseal(data, pinned)
    try:
        asked = [(each["role"], Path(each["path"]), each["sha256"]) for each in evidence["materials"]]
        settings = Settings(**evidence["settings"])
    except (KeyError, TypeError) as error:
        raise LedgerError(
            "the evidence cannot be repeated",
            f"it is signed, but does not say what was tested as this version of stillhouse does ({error})",
            "use the version that it names",
        ) from None
    again = figures(find([_found(*each, file.parent) for each in asked], settings))
    return Repeated(again, tuple(differences(evidence.get("finding"), again)))


def _membership(
    materials: Sequence[Material], suspect: Material, controls: Sequence[Material], settings: Settings
) -> Finding:
    base = _one(materials, "base")
    members, broken_in = membership.read_samples(_one(materials, "rows").path)
    held_out, broken_out = membership.read_samples(_one(materials, "held-out").path)
    student, before, *others = [
        membership.losses(each.path, members, held_out) for each in (suspect, base, *controls)
    ]
    return membership.compare_membership(
        student,
        before,
        others,
        ([row.group for row in members], [row.group for row in held_out]),
        settings.level,
        settings.seed,
        {"rows": broken_in, "held-out": broken_out},
    )


def _marks(
    materials: Sequence[Material], suspect: Material, controls: Sequence[Material], settings: Settings
) -> Finding:
    paths = {each.role: each.path for each in materials}
    key = read_key(paths["key"])
    said, broken = marks.read_suspect(suspect.path)
    return marks.compare_marks(
        (suspect.name, said),
        key,
        marks.encoder(key, paths.get("tokenizer")),
        marks.read_served(paths["served"], key.id) if "served" in paths else (),
        [(each.name, marks.read_suspect(each.path)[0]) for each in controls],
        settings.level,
        broken,
    )


def _one(materials: Sequence[Material], role: str) -> Material:
    for each in materials:
        if each.role == role:
            return each
    raise UsageError(f"no --{role} was given", "the test compares with it", f"give --{role} PATH")


def _named_apart(materials: Sequence[Material]) -> None:
    """Suspect, teacher and controls are told apart by name in all that is written of them."""
    names = [each.name for each in materials if each.role in ("suspect", "teacher", "control")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two of the models are called {twice}", "they have one file name", "rename one of the files"
        )


def _found(role: str, path: Path, sha256: str, beside: Path) -> Material:
    tried = [each for each in (path, beside / path, beside / path.name) if each.exists()]
    for place in tried:
        there = material(role, place)
        if there.sha256 == sha256:
            return there
    raise LedgerError(
        f"{role} {path} is not what was tested",
        "it is not there" if not tried else "its SHA-256 is not the one in the evidence",
        "lay the file of that hash beside the evidence",
    )
