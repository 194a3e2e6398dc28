"""The recipe: one TOML file describes one run.

The pydantic tree below is the whole of it. An unknown key stops the run with the nearest valid name and
the line; the resolved tree (defaults filled in, paths absolute) is stored in the run, and the digest
of what its rows depend on names the run, so that changed settings never mix with old rows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stillhouse.errors import UsageError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

SECRET = r"teachers?(\.\d+)?(\.(endpoint|key_env).*)?"  # where a key may stand by mistake: never echoed
WORDS = ("config", "from_teacher")  # ways to make a student, never names of folders


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Run(_Table):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Names the run folder.")
    seed: int = Field(
        default=17, ge=0, description="Seeds the order of training, the held-out split and the bootstrap."
    )


class Declaration(_Table):
    """The operator's statement that a teacher's terms were read and allow this use."""

    document: str = Field(description="File with the text of the terms; its SHA-256 is recorded.")
    read_on: date = Field(description="The day on which the operator read that text.")
    declared_by: str = Field(min_length=1, description="Who says so.")
    scope: list[Literal["train_target", "evaluation"]] = Field(
        default=["train_target", "evaluation"], description="Uses that the terms are declared to allow."
    )


class Price(_Table):
    """US dollars per million tokens. Goes before the price that is recorded for the model, where one is."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    batch: float | None = Field(
        default=None, gt=0, le=1, description="What a batch job costs, as a share of these."
    )


class Teacher(_Table):
    model: str = Field(
        description="`embedded:desk`, a transformers folder, or the model's name at `endpoint`."
    )
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="OpenAI-compatible base URL, with its /v1; without it the model is served here.",
    )
    provider: str | None = Field(
        default=None,
        description="A lasting name for the endpoint, part of every answer's key; its host by default.",
    )
    imported: bool = Field(
        default=False, description="Answers come from `stillhouse import`; nothing is asked."
    )
    key_env: str | None = Field(default=None, description="Environment variable that holds the API key.")
    revision: str = Field(
        default="", description="The model's declared version, where the server has several."
    )
    system: str = Field(default="", description="A system prompt put before every prompt.")
    terms: Declaration | None = None
    price: Price | None = None
    families: list[str] | None = Field(
        default=None, description="With [[teachers]]: the families of prompts that go to this one first."
    )
    weight: float = Field(
        default=1.0, gt=0, description="With [[teachers]]: its share of the prompts that several may answer."
    )

    @field_validator("endpoint")
    @classmethod
    def _no_secret_in_the_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        try:
            parts = urlsplit(endpoint)
            host, _ = parts.hostname, parts.port
        except ValueError:  # its message repeats a part of the URL
            host = None
        if not host or "@" in parts.netloc or "?" in endpoint or "#" in endpoint:
            raise ValueError(
                "it must be a plain base URL: scheme, host, port and path, without user, password, query or "
                "fragment; a key belongs into the environment variable that `key_env` names"
            )
        return endpoint

    @field_validator("key_env")
    @classmethod
    def _name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(
                "it is the NAME of an environment variable, such as TEACHER_API_KEY, not the key itself"
            )
        return name

    @model_validator(mode="after")
    def _imported_alone(self) -> Teacher:
        if self.imported:
            clash = [name for name in ("endpoint", "system", "revision") if getattr(self, name)]
            if self.model.startswith("embedded:"):
                clash.append(f'model = "{self.model}"')
            if clash:
                raise ValueError(
                    f"`imported = true` means that nothing is asked, and does not go with {', '.join(clash)}"
                )
        return self


class Grow(_Table):
    """Further prompts, invented by [teacher] from the training prompts."""

    method: Literal["self_instruct", "evolve", "personas"] = Field(
        description="More like some examples, one changed in named ways, or what a described person asks."
    )
    count: Positive = Field(description="How many new prompts are wanted.")
    personas: str | None = Field(
        default=None, description="File of people: `.txt` with one a line, else a column `persona`."
    )
    template: str | list[str] | None = Field(
        default=None, description="File, or files to draw from, with an instruction of your own."
    )
    temperature: float = Field(default=0.8, ge=0.0, le=2.0)
    max_tokens: Positive = Field(
        default=2048, description="Longest list of prompts, in the teacher's tokens."
    )

    @model_validator(mode="after")
    def _personas_where_they_are_read(self) -> Grow:
        if self.personas is not None and self.method != "personas":
            raise ValueError(f'`personas` is only read with `method = "personas"`, not "{self.method}"')
        return self


class Focus(_Table):
    """Further prompts where an earlier student lost most; `stillhouse collect --focus RUN` writes this."""

    run: str = Field(description="The run whose evaluation decided.")
    further: dict[str, Positive] = Field(
        description="How many more of each family, beyond those that `prompts.count` takes."
    )


class Prompts(_Table):
    source: str = Field(description="`embedded:desk`, a file (JSONL, CSV, Parquet) or `hf:DATASET[:SPLIT]`.")
    count: Positive | None = Field(default=None, description="Use the first so many; all when left out.")
    seed: int = Field(default=1, ge=0, description="Generator seed; only for `embedded:desk`.")
    prompt: str = Field(default="prompt", description="Column with the text, or with a list of messages.")
    template: str | None = Field(
        default=None, description="Text of each prompt instead, with {column} for a column's value."
    )
    reference: str = Field(default="reference", description="Column with a right answer, where there is one.")
    family: str = Field(default="family", description="Column with the kind of task.")
    group: str = Field(default="group", description="Column with the template or source document.")
    scorer: str | None = Field(
        default=None, description="How answers are scored, where no column `scorer` says."
    )
    grow: Grow | None = Field(default=None, description="Further prompts, invented by the teacher.")
    focus: Focus | None = Field(
        default=None, description="Further prompts where an earlier student lost most."
    )


class Canary(_Table):
    """The teacher is watched by a few questions that are asked again and again: did it change meanwhile?"""

    prompts: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="How many questions; 0 for none. Left out: 8 for 1,000 answers or more of a server that "
        "is somebody else's, else none. There are none in batches and over a cluster.",
    )
    every: Positive = Field(default=1000, description="Answers between two rounds of them.")
    action: Literal["warn", "stop"] = Field(
        default="warn", description="What a change does: it is told and recorded, or also stops the run."
    )


class Collect(_Table):
    mode: Literal["online", "batch"] = Field(
        default="online",
        description="One request for each question, or the provider's Batch API: slower and often cheaper.",
    )
    concurrency: Positive = Field(
        default=128, description="Most requests in flight; how many really are follows the server."
    )
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="Never more; learnt from the server's headers when left out."
    )
    tokens_per_minute: float | None = Field(default=None, gt=0, description="As `requests_per_minute`.")
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: Fraction = 1.0
    max_tokens: Positive = Field(default=256, description="Longest answer, in the teacher's tokens.")
    samples: Positive = Field(default=1, description="Answers asked for each prompt.")
    top_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=20,
        description="Ask for the probabilities of this many likeliest tokens beside each one of an answer.",
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one attempt.")
    retries: int = Field(default=4, ge=0, description="Further attempts after a failure that may pass.")
    max_cost: float | None = Field(default=None, gt=0, description="US dollars; needs a known price.")
    unknown: Literal["ask", "leave"] = Field(
        default="ask",
        description="What was sent without a known answer when a process died: `ask` again, or `leave` it.",
    )
    teachers: Literal["one", "all"] = Field(
        default="one",
        description="Who answers a prompt where there are [[teachers]]: one, by family and weight, or all.",
    )
    max_failures: Fraction = Field(
        default=0.2, description="Stop when more than this share of prompts failed."
    )
    canary: Canary = Field(default=Canary(), description="See [collect.canary].")


class Curate(_Table):
    duplicates: bool = Field(
        default=True, description="Drop repeats of prompt and answer, letter case and white space aside."
    )
    truncated: bool = Field(default=True, description="Drop answers that ended at max_tokens.")
    refusals: bool = Field(default=True, description="Drop answers in which the teacher declined.")


class Lora(_Table):
    rank: Positive = 16
    alpha: Positive = 32
    targets: list[str] | None = Field(
        default=None, description="Module names; all linear layers when left out."
    )


class Student(_Table):
    init: str = Field(description="`embedded:base`, a folder, a hub id, `from_teacher` or `config`.")
    keep_layers: list[int] | None = Field(default=None, description="Layers kept by `from_teacher`.")
    config: dict[str, Any] | None = Field(default=None, description="Llama config values for `config`.")
    tokenizer: str | None = Field(
        default=None, description="Tokenizer folder for `config`; the teacher's by default."
    )
    lora: Lora | None = None


class Train(_Table):
    objective: Literal["sequence"] = "sequence"
    epochs: float = Field(default=3.0, gt=0)
    batch_tokens: Positive = Field(default=8192, description="Tokens in a batch, padding included.")
    learning_rate: float = Field(default=1e-3, gt=0)
    optimiser: Literal["adamw", "muon"] = Field(
        default="adamw", description="`muon` steps the layers' matrices, and AdamW the rest."
    )
    warmup: Fraction = Field(default=0.05, description="Share of the steps over which the rate rises.")
    final_rate: Fraction = Field(
        default=0.1, description="Where the cosine ends, as a share of learning_rate."
    )
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0, description="Largest gradient norm.")
    max_length: Positive = Field(
        default=1024, description="Longest row in tokens; longer ones are counted and left out."
    )
    held_out: Fraction = Field(default=0.03, description="Share of samples kept back to watch the loss.")
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="Type of the autocast.")


class Evaluate(_Table):
    source: str | None = Field(
        default=None, description="As `prompts.source`; its test split for `embedded:desk`."
    )
    count: Positive | None = None
    seed: int = Field(default=1001, ge=0, description="Generator seed; only for `embedded:desk`.")
    split: Literal["dev", "test"] = Field(default="test", description="Only for `embedded:desk`.")
    held_out: Fraction = Field(
        default=0.1, description="Share of prompt groups kept back when `source` is left out."
    )
    max_tokens: Positive | None = Field(
        default=None, description="Longest answer; `collect.max_tokens` by default."
    )
    baseline: bool = Field(default=True, description="Fit TF-IDF with a linear model on the same samples.")
    resamples: Positive = Field(default=2000, description="Bootstrap draws.")


class Release(_Table):
    name: str | None = Field(default=None, description="The model's name; the run's by default.")
    licence: str | None = Field(default=None, description="SPDX id of the released weights, when decided.")


class Recipe(_Table):
    """One run, whole."""

    run: Run
    teacher: Teacher
    teachers: list[Teacher] = Field(
        default=[], description="Further ones to learn from. The student is measured against [teacher]."
    )
    prompts: Prompts
    collect: Collect = Collect()
    curate: Curate = Curate()
    student: Student
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    release: Release = Release()

    @model_validator(mode="after")
    def _each_teacher_once(self) -> Recipe:
        seen = set()
        for teacher in (self.teacher, *self.teachers):
            where = teacher.endpoint and (teacher.provider or urlsplit(teacher.endpoint).hostname)
            name = (where, teacher.imported, teacher.model, teacher.revision, teacher.system)
            if name in seen:
                raise ValueError(
                    f"the teacher {teacher.model} stands there twice: each is asked once, with one key"
                )
            seen.add(name)
        return self


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; relative paths in it are taken from the recipe's own folder.

    A run's `recipe.json` is one as well, and makes the same run again.
    Raises UsageError that names the line, and for an unknown key the nearest valid one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"no recipe at {path}", "the file does not exist", "write one with `stillhouse init`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}", str(error), "give a readable TOML file") from None
    kind, loads = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        tree = loads(text)
    except ValueError as error:
        raise UsageError(f"{path} is not valid {kind}", str(error), "mend that line") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is no recipe", "it holds no tables", "give a recipe")
    return _absolute(parse_recipe(tree, text, str(path)), path.resolve().parent)


def parse_recipe(tree: dict[str, Any], text: str = "", where: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        line = _line_of(text, place)
        at = f"{where}:{line}" if line else where
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        name = ".".join(place)
        if first["type"] == "extra_forbidden":
            valid = _keys_at(place[:-1])
            near = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.4)
            mend = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(valid)}"
            raise UsageError(
                f"{at}: unknown key `{name}`{more}", "stillhouse reads no such setting", mend
            ) from None
        if first["type"] == "missing":
            raise UsageError(
                f"{at}: `{name}` is missing{more}", "a recipe needs it", f"add `{place[-1]}`"
            ) from None
        why = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        hidden = re.fullmatch(SECRET, name) is not None
        shown = isinstance(first["input"], str | int | float) and not hidden
        raise UsageError(
            f"{at}: `{name}` is not usable{more}",
            f"{why} (got {first['input']!r})" if shown else why,
            "see docs/recipe.md",
        ) from None


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 (hex) over the resolved recipe as RFC 8785 canonical JSON."""
    return hashlib.sha256(rfc8785.dumps(recipe.model_dump(mode="json"))).hexdigest()


def run_digest(recipe: Recipe) -> str:
    """SHA-256 (hex) by which a run's folder is found again; `recipe_digest` is over everything.

    Left out is what cannot change what a stage writes (the key's variable, how fast and how long is asked,
    how the teacher is watched, when training is saved), what is no part of an answer's key (the URL behind
    `teacher.provider`, else all of it but its host; terms and price), and what a later stage's digest of its
    own inputs covers: all of [release], and of [evaluate] all but the settings that say which prompts are
    kept apart for the test. So a changed price, cap, cut of the report or name of the release goes on in the
    same folder, and only what depends on it is done again.
    """
    tree = recipe.model_dump(mode="json")
    evaluate = tree["evaluate"]
    for given, teacher in zip(
        (recipe.teacher, *recipe.teachers), (tree["teacher"], *tree["teachers"]), strict=True
    ):
        if given.endpoint:
            teacher["endpoint"] = given.provider or urlsplit(given.endpoint).hostname
        for name in ("key_env", "terms", "price"):
            del teacher[name]
    effort = ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "retries", "unknown")
    for name in ("mode", *effort, "max_cost", "max_failures", "canary"):
        del tree["collect"][name]
    del tree["train"]["checkpoint_seconds"], tree["release"]
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

    def whole(teacher: Teacher) -> Teacher:
        model = teacher.model if teacher.endpoint else path(teacher.model)
        terms = teacher.terms and teacher.terms.model_copy(update={"document": path(teacher.terms.document)})
        return teacher.model_copy(update={"model": model, "terms": terms})

    student, prompts = recipe.student, recipe.prompts
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
            "student": student.model_copy(
                update={
                    "init": student.init if student.init in WORDS else path(student.init),
                    "tokenizer": path(student.tokenizer),
                }
            ),
            "evaluate": recipe.evaluate.model_copy(update={"source": path(recipe.evaluate.source)}),
        }
    )


def _keys_at(place: list[str]) -> list[str]:
    table: Any = Recipe
    for part in place:
        if part.isdigit():  # a place in a list of tables
            continue
        field = (
            table.model_fields.get(part) if isinstance(table, type) and issubclass(table, BaseModel) else None
        )
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        table = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return sorted(table.model_fields) if isinstance(table, type) and issubclass(table, BaseModel) else []


def _line_of(text: str, place: list[str]) -> int | None:
    """The line on which the key at `place` (or failing that its table) stands; tomllib keeps no positions."""
    wanted, table, fallback = place[-1], "", None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            table = header.group(1).replace('"', "")
            if table == ".".join(place):
                return number
            if table == ".".join(place[:-1]):
                fallback = number
        key = re.match(r"""\s*(["']?)([A-Za-z0-9_.-]+)\1\s*=""", line)
        full = f"{table}.{key.group(2)}".strip(".") if key else ""
        if key and (full == ".".join(place) or (key.group(2) == wanted and table == ".".join(place[:-1]))):
            return number
    return fallback
