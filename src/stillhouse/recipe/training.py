"""The tables of [student] and [train]."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillhouse.recipe.base import Fraction, NotNegative, Positive, Table

DivergenceName = Literal["forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl"]


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
        description="`teacher`: [teacher] reads every row; its weights are here. `answers`: those that came "
        "with the answers, by `collect.top_logprobs`.",
    )
    unit: Literal["token", "chunk"] = Field(
        default="token",
        description="`token`: the distribution at each token, of a teacher that reads as the student does. "
        "`chunk`: how likely the teacher held each stretch of an answer that both tokenizers cut out, "
        "whatever its tokenizer and template.",
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
        if self.unit == "chunk" and (self.online or self.divergence != "forward_kl"):
            raise ValueError(
                '`unit = "chunk"` is stored and has one measure: leave out `online`, `divergence`'
            )
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
