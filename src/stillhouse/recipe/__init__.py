"""The recipe: one TOML file describes one run.

The pydantic tree in `tables` is the whole of it. An unknown key stops the run with the nearest valid name and
the line; the resolved tree (defaults filled in, paths absolute) is stored in the run, and the digest
of what its rows depend on names the run, so that changed settings never mix with old rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import rfc8785

from stillhouse.recipe.curation import Curate, LeakSet, Mix
from stillhouse.recipe.strict import checked, read_tree
from stillhouse.recipe.tables import (
    Canary,
    Collect,
    Declaration,
    Evaluate,
    Focus,
    Grow,
    Judge,
    Price,
    Prompts,
    Recipe,
    Release,
    Run,
    Teacher,
)
from stillhouse.recipe.training import (
    Distil,
    Lora,
    Measure,
    OnPolicy,
    Preference,
    Rationale,
    Student,
    Train,
    Width,
)

__all__ = [
    "FOR_THE_GATE",
    "Canary",
    "Collect",
    "Curate",
    "Declaration",
    "Distil",
    "Evaluate",
    "Focus",
    "Grow",
    "Judge",
    "LeakSet",
    "Lora",
    "Measure",
    "Mix",
    "OnPolicy",
    "Preference",
    "Price",
    "Prompts",
    "Rationale",
    "Recipe",
    "Release",
    "Run",
    "Student",
    "Teacher",
    "Train",
    "Width",
    "load_recipe",
    "parse_recipe",
    "recipe_digest",
    "recipe_schema",
    "run_digest",
]

# Where a key may stand by mistake: never echoed.
SECRET = re.compile(r"(teachers?|evaluate\.judge)(\.\d+)?(\.(endpoint|key_env).*)?")
AnyTeacher = TypeVar("AnyTeacher", bound=Teacher)

# Of a teacher only the terms gate reads these.
FOR_THE_GATE = ("access", "checkpoint", "licence", "features", "paid", "prompt_logging", "multimodal")

WORDS = ("config", "from_teacher")  # ways to make a student, never names of folders


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; relative paths in it are taken from the recipe's own folder.

    A run's `recipe.json` is one as well, and makes the same run again.
    Raises UsageError that names the line, and for an unknown key the nearest valid one.
    """
    tree, text = read_tree(path, "recipe", "write one with `stillhouse init`")
    return _absolute(parse_recipe(tree, text, str(path)), path.resolve().parent)


def parse_recipe(tree: dict[str, Any], text: str = "", where: str = "recipe") -> Recipe:
    return checked(Recipe, tree, text, where, "recipe", "docs/recipe.md", SECRET)


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 (hex) over the resolved recipe as RFC 8785 canonical JSON."""
    return hashlib.sha256(rfc8785.dumps(recipe.model_dump(mode="json"))).hexdigest()


def run_digest(recipe: Recipe) -> str:
    """SHA-256 (hex) by which a run's folder is found again; `recipe_digest` is over everything.

    Left out is what cannot change what a stage writes (the key's variable, how fast and how long is asked,
    how the teacher is watched, when training is saved and where it is shown, what only the terms gate asks
    for), what is no part of an answer's key (the URL behind `teacher.provider`, else all of it but its host;
    terms and price), and what a later stage's digest of its own inputs covers: all of [release], and of
    [evaluate] all but the settings that say which prompts are kept apart for the test. So a changed price,
    cap, cut of the report or name of the release goes on in the same folder, and only what depends on it is
    done again.
    """
    tree = recipe.model_dump(mode="json")
    evaluate = tree["evaluate"]
    for given, teacher in zip(
        (recipe.teacher, *recipe.teachers), (tree["teacher"], *tree["teachers"]), strict=True
    ):
        if given.endpoint:
            teacher["endpoint"] = given.provider or urlsplit(given.endpoint).hostname
        for name in ("key_env", "terms", "price", *FOR_THE_GATE):
            del teacher[name]
        if given.upstream is None:
            del teacher["upstream"]
    effort = ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "retries", "unknown")
    for name in ("mode", *effort, "max_cost", "max_failures", "canary"):
        del tree["collect"][name]
    del tree["train"]["checkpoint_seconds"], tree["train"]["track"], tree["release"]
    del tree["student"]["task"], tree["prompts"]["licence"]
    if recipe.prompts.landed is None:
        del tree["prompts"]["landed"]  # as before there was such a key
    split = ("source", "count", "seed", "split", "held_out")
    tree["evaluate"] = {name: evaluate[name] for name in split}
    return hashlib.sha256(rfc8785.dumps(tree)).hexdigest()


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of the recipe, for editors."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    """Relative paths made absolute where the file is there; names of models and data sets stay."""

    def path(value: str | None) -> str | None:
        if value is None or ":" in value or not (folder / value).exists():
            return value
        return str((folder / value).resolve())

    def whole(teacher: AnyTeacher) -> AnyTeacher:
        model = teacher.model if teacher.endpoint else path(teacher.model)
        terms = [one.model_copy(update={"document": path(one.document)}) for one in teacher.terms]
        licence = path(teacher.licence)
        return teacher.model_copy(update={"model": model, "terms": terms, "licence": licence})

    def placed(student: Student) -> Student:
        init = student.init if student.init in WORDS else path(student.init)
        return student.model_copy(update={"init": init, "tokenizer": path(student.tokenizer)})

    prompts, students, train = recipe.prompts, recipe.evaluate.students, recipe.train
    distil = train.distil.model_copy(update={"tokenizer": path(train.distil.tokenizer)})
    grow = prompts.grow
    if grow is not None:
        files = (
            [path(file) for file in grow.template] if isinstance(grow.template, list) else path(grow.template)
        )
        grow = grow.model_copy(update={"personas": path(grow.personas), "template": files})
    return recipe.model_copy(
        update={
            "teacher": whole(recipe.teacher),
            "teachers": [whole(teacher) for teacher in recipe.teachers],
            "prompts": prompts.model_copy(update={"source": path(prompts.source), "grow": grow}),
            "student": placed(recipe.student),
            "train": train.model_copy(update={"distil": distil}),
            "evaluate": recipe.evaluate.model_copy(
                update={
                    "source": path(recipe.evaluate.source),
                    "harness_path": path(recipe.evaluate.harness_path),
                    "students": None if students is None else [placed(student) for student in students],
                    "judge": recipe.evaluate.judge and whole(recipe.evaluate.judge),
                }
            ),
            "curate": _curate(recipe.curate, path),
        }
    )


def _curate(settings: Curate, path: Callable[[str | None], str | None]) -> Curate:
    sets = [one.model_copy(update={"file": path(one.file)}) for one in settings.leak_sets]
    mix = settings.mix and settings.mix.model_copy(update={"checkpoint": path(settings.mix.checkpoint)})
    files = {name: path(getattr(settings, name)) for name in ("json_schema", "embedding")}
    return settings.model_copy(update={"leak_sets": sets, "mix": mix, **files})
