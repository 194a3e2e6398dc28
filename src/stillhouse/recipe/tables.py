"""The recipe's tables: every setting with its type, its bounds and what it is for."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stillhouse.recipe.base import Fraction, NotNegative, Positive, Table
from stillhouse.recipe.curation import Curate


class Run(Table):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Names the run folder.")
    seed: int = Field(
        default=17, ge=0, description="Seeds the order of training, the held-out split and the bootstrap."
    )


class Declaration(Table):
    """The operator's statement that a teacher's terms were read and allow this use."""

    document: str = Field(description="File with the text of the terms; its SHA-256 is recorded.")
    read_on: date = Field(description="The day on which the operator read that text.")
    declared_by: str = Field(min_length=1, description="Who says so.")
    scope: list[Literal["train_target", "evaluation"]] = Field(
        default=["train_target", "evaluation"], description="Uses that the terms are declared to allow."
    )


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
    group: str = Field(default="group", description="Column with the template or source document.")
    scorer: str | None = Field(
        default=None, description="How answers are scored, where no column `scorer` says."
    )
    grow: Grow | None = Field(default=None, description="Further prompts, invented by the teacher.")
    focus: Focus | None = Field(
        default=None, description="Further prompts where an earlier student lost most."
    )


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


class Lora(Table):
    rank: Positive = 16
    alpha: Positive = 32
    targets: list[str] | None = Field(
        default=None, description="Module names; all linear layers when left out."
    )


class Student(Table):
    init: str = Field(description="`embedded:base`, a folder, a hub id, `from_teacher` or `config`.")
    keep_layers: list[int] | None = Field(default=None, description="Layers kept by `from_teacher`.")
    config: dict[str, Any] | None = Field(default=None, description="Llama config values for `config`.")
    tokenizer: str | None = Field(
        default=None, description="Tokenizer folder for `config`; the teacher's by default."
    )
    lora: Lora | None = None


DivergenceName = Literal["forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl"]


class Measure(Table):
    """How far the student's distribution lies from the teacher's, at each position."""

    divergence: DivergenceName = "forward_kl"
    beta: Fraction = Field(
        default=0.5, description="For `jensen_shannon`: 0 is the forward KL, 1 the reverse."
    )
    skew: float = Field(default=0.1, gt=0, lt=1, description="For `skew_kl` and `skew_reverse_kl`.")
    temperature: float = Field(default=1.0, gt=0, description="Of both models in the loss.")


class Distil(Measure):
    """With `train.objective = "distil"`: which probabilities are learned, and by which measure."""

    targets: Literal["teacher", "answers"] = Field(
        default="teacher",
        description="`teacher`: [teacher] reads every row; its weights are here and its tokenizer is the "
        "student's. `answers`: those that came with the answers, by `collect.top_logprobs`.",
    )
    online: bool = Field(
        default=False,
        description="The teacher reads each batch as it is trained, and its whole distributions are learned; "
        "else it reads every row once, and `head` and `draws` of each position are kept.",
    )
    head: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Likeliest tokens that are kept exactly, of each position."
    )
    draws: Annotated[int, Field(ge=0)] = Field(
        default=32, description="Tokens drawn from the rest, so that nothing is left out on average."
    )
    divergence: DivergenceName = Field(
        default="forward_kl", description="Stored targets with `draws` serve `forward_kl` alone."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="Of both models in the loss; other than 1 needs `online`."
    )
    hard: Fraction = Field(
        default=0.0, description="Share of plain cross-entropy with the answer's own tokens."
    )

    @model_validator(mode="after")
    def _what_stored_targets_can_serve(self) -> Distil:
        if self.online and self.targets == "answers":
            raise ValueError('`online` needs the teacher itself: set `targets = "teacher"`')
        if self.online:
            return self
        if self.temperature != 1.0:
            raise ValueError(
                "stored targets are of temperature 1, and another cannot be had from them: set `online`"
            )
        if self.targets == "teacher" and self.draws and self.divergence != "forward_kl":
            raise ValueError("drawn targets serve `forward_kl` alone: set `draws = 0`, or `online`")
        if self.targets == "teacher" and not self.head + self.draws:
            raise ValueError("`head` and `draws` are both 0, so nothing would be kept")
        return self


class OnPolicy(Measure):
    """With `train.objective = "on_policy"`: the student answers prompts of the samples itself, drawing from
    its own distribution, and learns at each of its tokens how the teacher would have gone on. The other rows
    are learned as [train.distil] says."""

    share: float = Field(
        default=0.5, gt=0, le=1, description="Share of each epoch's rows that the student writes itself."
    )
    after: NotNegative = Field(
        default=1.0, description="Epochs learned from the samples alone before the student begins to write."
    )
    max_tokens: Positive | None = Field(
        default=None, description="Longest text that it writes; left out, twice the longest answer it learns."
    )
    divergence: DivergenceName = "reverse_kl"


class Train(Table):
    objective: Literal["sequence", "distil", "on_policy"] = Field(
        default="sequence",
        description="`sequence` learns the answers' text, `distil` the teacher's probabilities along it, "
        "`on_policy` also along text that the student writes.",
    )
    distil: Distil = Field(default=Distil(), description="See [train.distil].")
    on_policy: OnPolicy = Field(default=OnPolicy(), description="See [train.on_policy].")
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

    @model_validator(mode="after")
    def _time_to_write(self) -> Train:
        if self.objective == "on_policy" and self.on_policy.after >= self.epochs:
            raise ValueError(
                f"the student would never write: `on_policy.after` is {self.on_policy.after:g} "
                f"and there are {self.epochs:g} epochs"
            )
        return self


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
        if objective == "on_policy" or (objective == "distil" and not told):
            what = f'train.objective = "{objective}"' + ("" if objective == "on_policy" else ' by "teacher"')
            if self.teacher.endpoint is not None or self.teacher.imported:
                raise ValueError(
                    f"{what} needs the weights of [teacher] on this machine: name its folder without an "
                    'endpoint, or learn by "distil" with train.distil.targets = "answers"'
                )
            if self.teacher.system:
                raise ValueError(
                    f"{what} has the teacher read rows without `teacher.system`, under which it answered: "
                    'learn by "distil" with train.distil.targets = "answers"'
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
