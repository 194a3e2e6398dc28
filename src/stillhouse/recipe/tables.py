"""The recipe's tables: every setting with its type, its bounds and what it is for."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from stillhouse.recipe.base import Fraction, Positive, Table
from stillhouse.recipe.curation import Curate
from stillhouse.recipe.effect import without_effect
from stillhouse.recipe.licence import spdx_id
from stillhouse.recipe.training import Student, Train


class Run(Table):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Names the run folder.")
    seed: int = Field(
        default=17, ge=0, description="Seeds the order of training, the held-out split and the bootstrap."
    )


class Declaration(Table):
    """The operator's statement that a text was read and allows this use. Several are [[teacher.terms]]."""

    document: str = Field(description="File with the text of the terms; its SHA-256 is recorded.")
    read_on: date = Field(description="The day on which the operator read that text.")
    declared_by: str = Field(min_length=1, description="Who says so.")
    scope: list[Literal["train_target", "evaluation"]] = Field(
        default=["train_target", "evaluation"], description="Uses that the terms are declared to allow."
    )
    about: list[str] = Field(
        default=[],
        description="What was read about, as the gate names it: a row's key, `KEY/CONDITION`, a server's "
        "host, `import`, a model. Left out it is about a teacher of whom no row of the table speaks.",
    )


def _one_or_several(given: object) -> object:
    return [] if given is None else [given] if isinstance(given, dict | Declaration) else given


Declarations = Annotated[
    list[Declaration],
    BeforeValidator(_one_or_several, json_schema_input_type=Declaration | list[Declaration] | None),
]


class Price(Table):
    """US dollars per million tokens. Goes before the price that is recorded for the model, where one is."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    batch: float | None = Field(
        default=None, gt=0, le=1, description="What a batch job costs, as a share of these."
    )


class Teacher(Table):
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
    terms: Declarations = Field(default=[], description="What somebody read and declares, see below.")
    access: Literal["shipped", "weights", "api", "router", "consumer_app", "import"] | None = Field(
        default=None,
        description="How the model is come by, for its terms: `shipped`, `weights` in a folder, `api` at an "
        "endpoint and `import` by default; `weights` at an endpoint that is yours, `router` at one that "
        "passes on to others.",
    )
    checkpoint: str | None = Field(
        default=None,
        description="Which published model it is, for its terms, where `model` is another name: its hub id.",
    )
    licence: str | None = Field(
        default=None,
        description="File with the licence that came with the weights; a folder's own LICENSE by default.",
    )
    features: list[str] = Field(
        default=[], description="What the endpoint adds to answers, such as `web_search`, for its terms."
    )
    upstream: str | None = Field(
        default=None, description="With a router: the provider that answers, and no other; sent along."
    )
    paid: bool | None = Field(default=None, description="Whether access is paid for, where terms ask that.")
    prompt_logging: bool | None = Field(
        default=None, description="Whether a router keeps what it is sent, where terms ask that."
    )
    multimodal: bool = Field(
        default=False, description="Whether the model also takes pictures or sound, where terms ask that."
    )
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
    def _an_access_that_there_is(self) -> Teacher:
        possible: tuple[str, ...] = ("weights", "api", "router")
        if self.imported:
            possible = ("import", "weights", "api", "router", "consumer_app")
        elif self.endpoint is None:
            possible = ("shipped",) if self.model.startswith("embedded:") else ("weights",)
        if self.access is not None and self.access not in possible:
            raise ValueError(f'access = "{self.access}" cannot be here; it may be {", ".join(possible)}')
        if self.upstream is not None and self.access != "router":
            raise ValueError('`upstream` names who answers behind a router: set access = "router"')
        return self

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


class Grow(Table):
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


class Focus(Table):
    """Further prompts where an earlier student lost most; `stillhouse collect --focus RUN` writes this."""

    run: str = Field(description="The run whose evaluation decided.")
    further: dict[str, Positive] = Field(
        description="How many more of each family, beyond those that `prompts.count` takes."
    )


class Prompts(Table):
    source: str = Field(description="`embedded:desk`, a file (JSONL, CSV, Parquet) or `hf:DATASET[:SPLIT]`.")
    count: Positive | None = Field(default=None, description="Use the first so many; all when left out.")
    seed: int = Field(default=1, ge=0, description="Generator seed; only for `embedded:desk`.")
    prompt: str = Field(default="prompt", description="Column with the text, or with a list of messages.")
    template: str | None = Field(
        default=None, description="Text of each prompt instead, with {column} for a column's value."
    )
    reference: str = Field(default="reference", description="Column with a right answer, where there is one.")
    family: str = Field(default="family", description="Column with the kind of task.")
    licence: str | None = Field(
        default=None,
        description="SPDX id of the licence that the prompts are under: share-alike ones reach the student.",
    )
    group: str = Field(default="group", description="Column with the template or source document.")
    scorer: str | None = Field(
        default=None, description="How answers are scored, where no column `scorer` says."
    )
    grow: Grow | None = Field(default=None, description="Further prompts, invented by the teacher.")
    focus: Focus | None = Field(
        default=None, description="Further prompts where an earlier student lost most."
    )
    landed: int | None = Field(
        default=None,
        ge=0,
        description="Leaf of the ledger that names what was taken from a cascade; `stillhouse run "
        "--from-cascade` writes this.",
    )

    @field_validator("licence")
    @classmethod
    def _an_spdx_id(cls, licence: str | None) -> str | None:
        return None if licence is None else spdx_id(licence)


class Canary(Table):
    """The teacher is watched by a few questions that are asked again and again: did it change meanwhile?"""

    prompts: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="How many questions; 0 for none. Left out: 8 for 1,000 answers or more of a server that "
        "is somebody else's, else none.",
    )
    every: Positive = Field(
        default=1000,
        description="Answers between two rounds of them; batches have one before and one after.",
    )
    action: Literal["warn", "stop"] = Field(
        default="warn", description="What a change does: it is told and recorded, or also stops the run."
    )


class Collect(Table):
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


class Judge(Teacher):
    """A model that compares the student's answers with the teacher's. The keys are those of [teacher]; its
    terms must allow `evaluation`."""

    count: Positive | None = Field(default=None, description="Most pairs that it compares; all if left out.")

    @model_validator(mode="after")
    def _asks_somebody(self) -> Judge:
        wrong = [name for name in ("imported", "families") if getattr(self, name)]
        if wrong:
            raise ValueError(f"a judge is asked about every pair, and has no {', '.join(wrong)}")
        return self


class Evaluate(Table):
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
    margin: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the teacher's score that the student may lose; the verdict is on this.",
    )
    slice: list[str] | None = Field(
        default=None, description="Families outside what was trained on; they are also scored apart."
    )
    seeds: Positive = Field(
        default=1, description="Students trained with so many seeds and scored; each costs a training."
    )
    hard_labels: bool = Field(
        default=False, description="Also train a student on the references alone, without the teacher."
    )
    curve: list[Positive] | None = Field(
        default=None, description="Also train on so many of the samples each, to see what more would bring."
    )
    students: list[Student] | None = Field(
        default=None,
        description="Students of other sizes to train and score as well, each a table "
        "[[evaluate.students]] with the keys of [student].",
    )
    machine_price: float | None = Field(
        default=None,
        gt=0,
        description="US dollars for an hour of a machine like this one, for the economics.",
    )
    harness: list[str] | None = Field(
        default=None, description="Tasks of lm-eval to run on the student; needs the extra `lmeval`."
    )
    harness_path: str | None = Field(
        default=None, description="Folder with task files of your own for lm-eval."
    )
    harness_limit: Positive | None = Field(
        default=None, description="Only the first so many examples of each of these tasks."
    )
    judge: Judge | None = Field(default=None, description="See [evaluate.judge].")


class Release(Table):
    name: str | None = Field(default=None, description="The model's name; the run's by default.")
    licence: str | None = Field(default=None, description="SPDX id of the released weights, when decided.")
    mode: Literal["internal", "hosted", "weights"] = Field(
        default="weights",
        description="Who gets the student: nobody else, its answers over a service, or its weights.",
    )
    competes: bool | None = Field(
        default=None,
        description="Whether it competes with what the teacher's maker offers; taken as yes when left out.",
    )
    confirmed: list[Literal["notify", "check_output", "keep_signals"]] = Field(
        default=[],
        description="What terms ask for that only a person can do, and that is done: the licensor was told, "
        "published output is checked, marks of provenance stay.",
    )
    signed_off_by: str | None = Field(
        default=None,
        description="Who answers for releasing it where the terms have become stricter since the answers "
        "were had.",
    )


class Recipe(Table):
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
    def _what_distilling_needs(self) -> Recipe:
        """Said before anything is paid for."""
        objective, told = self.train.objective, self.train.distil.targets == "answers"
        if objective != "sequence" and told and self.collect.top_logprobs is None:
            raise ValueError(
                'train.distil.targets = "answers" learns probabilities, and none are asked for: set '
                "collect.top_logprobs"
            )
        if objective != "sequence" and told and self.curate.rationale is not None:
            raise ValueError(
                "`curate.rationale` takes text out of answers, and the probabilities that came with them are "
                'of the whole: leave it out, or learn with train.distil.targets = "teacher"'
            )
        if objective == "on_policy" or (objective == "distil" and not told):
            what = f'train.objective = "{objective}"' + ("" if objective == "on_policy" else ' by "teacher"')
            if self.teacher.imported:
                raise ValueError(
                    f"{what} needs somebody to ask, and the answers of [teacher] are imported: name its "
                    "folder or its endpoint"
                )
            if self.teacher.endpoint is not None:
                learnt = self.train.on_policy if objective == "on_policy" else self.train.distil
                self.train.distil.check_for_endpoint(learnt.temperature)
            if self.teacher.system:
                raise ValueError(
                    f"{what} has the teacher read rows without `teacher.system`, under which it answered: "
                    'learn by "distil" with train.distil.targets = "answers"'
                )
        return self

    @model_validator(mode="after")
    def _no_adapter_in_parts(self) -> Recipe:
        if self.train.shard and self.student.lora is not None:
            raise ValueError(
                "`train.shard` does not go with [student.lora], which is added to whole weights: leave "
                "one of them out"
            )
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Recipe:
        train = self.train
        reads = train.objective == "on_policy" or train.distil.targets == "teacher"
        for name, why in without_effect(train, reads and self.teacher.endpoint is not None):
            raise ValueError(f"`{name}` would change nothing: {why}; leave it out")
        return self

    @model_validator(mode="after")
    def _what_pairs_are_made_of(self) -> Recipe:
        if self.train.preference is None or self.train.preference.pairs == "own":
            return self
        if self.curate.verify == "off":
            raise ValueError(
                "pairs of right and wrong answers need to know which are right: set curate.verify, or "
                'train.preference.pairs = "own"'
            )
        if self.collect.samples == 1 and (not self.teachers or self.collect.teachers == "one"):
            raise ValueError(
                "pairs are made of several answers to one prompt, and each gets one: set collect.samples "
                '(and a temperature), or train.preference.pairs = "own"'
            )
        return self

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
