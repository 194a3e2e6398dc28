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
    dora: bool = Field(default=False, description="Learn each row's length apart from its direction (DoRA).")


class Width(Table):
    """How wide a Llama stays that is cut out of its teacher, each a share of what the teacher has."""

    hidden: float = Field(default=1.0, gt=0, le=1, description="Of the channels between the layers.")
    mlp: float = Field(default=1.0, gt=0, le=1, description="Of each layer's neurons.")
    heads: float = Field(
        default=1.0, gt=0, le=1, description="Of each layer's attention heads, by groups that share keys."
    )


class Student(Table):
    init: str = Field(description="`embedded:base`, a folder, a hub id, `from_teacher` or `config`.")
    keep_layers: list[int] | Positive | None = Field(
        default=None,
        description="Layers kept by `from_teacher`, or how many: those that change most what passes. Left "
        "out: every second, or all where `keep_width` is set.",
    )
    keep_width: Width | None = Field(default=None, description="See [student.keep_width].")
    config: dict[str, Any] | None = Field(default=None, description="Llama config values for `config`.")
    tokenizer: str | None = Field(
        default=None, description="Tokenizer folder for `config`; the teacher's by default."
    )
    lora: Lora | None = None
    task: Literal[
        "generative", "classifier", "embedding", "reranker", "extractor", "search", "anomaly_detection"
    ] = Field(default="generative", description="What it is made for, as teachers' terms tell it apart.")

    @property
    def pruned(self) -> bool:
        """Whether it is cut by what its parts matter on the rows."""
        return self.keep_width is not None or isinstance(self.keep_layers, int)

    @model_validator(mode="after")
    def _cut_out_of_a_teacher(self) -> Student:
        for name in ("keep_layers", "keep_width"):
            if getattr(self, name) is not None and self.init != "from_teacher":
                raise ValueError(f'`{name}` is only read with `init = "from_teacher"`, not "{self.init}"')
        return self


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
        description="`teacher`: [teacher] reads every row, here or at its `endpoint`. `answers`: those that "
        "came with the answers, by `collect.top_logprobs`.",
    )
    unit: Literal["token", "chunk"] = Field(
        default="token",
        description="`token`: the distribution at each token, of a teacher that reads as the student does. "
        "`chunk`: how likely the teacher held each stretch of an answer that both tokenizers cut out, "
        "whatever its tokenizer and template.",
    )
    tokenizer: str | None = Field(
        default=None,
        description="Folder or hub id of the tokenizer of a teacher that reads at its `endpoint`, which "
        "cannot show it.",
    )
    online: bool = Field(
        default=False,
        description="The teacher reads each batch as it is trained, and its whole distributions are learned; "
        "else it reads every row once, and `head` and `draws` of each position are kept.",
    )
    keep: Literal["some", "all", "vectors"] = Field(
        default="some",
        description="`all`: whole distributions, 4 bytes for each id of the vocabulary at each position, "
        "and nothing rounded. `vectors`: what enters the teacher's head, which makes whole distributions of "
        "it again; its weights must be here. Else `head` and `draws` say what is kept.",
    )
    vectors: Literal["bfloat16", "float32"] | None = Field(
        default=None,
        description='Of `keep = "vectors"`, the numbers, of 2 or 4 bytes. Left out, those that the teacher '
        "computes in, so that nothing is rounded.",
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
        default=1.0,
        gt=0,
        description="Of both models in the loss. `head` and `draws` of a teacher that reads here are of this "
        "one, and what else is kept serves all; `answers`, and a part that a server tells, are of 1.",
    )
    hard: Fraction = Field(
        default=0.0, description="Share of plain cross-entropy with the answer's own tokens."
    )

    @property
    def kept(self) -> tuple[int, int]:
        """`head` and `draws` of a shard; none of either stands for whole distributions, or for vectors."""
        return (self.head, self.draws) if self.keep == "some" else (0, 0)

    def check_for_endpoint(self, temperature: float) -> None:
        """Raises ValueError for what a teacher at an endpoint cannot do when it reads rows; `temperature` is
        that at which what it says of the objective's own text is learned."""
        if self.online:
            raise ValueError(
                "`train.distil.online` needs the weights of [teacher] on this machine, and one that is at an "
                "endpoint reads each row once: remove `online`"
            )
        if self.unit == "chunk" and self.targets == "teacher":
            raise ValueError(
                "a teacher at an endpoint reads the student's tokens and cannot show its own, of which "
                'chunks are made: set `targets = "answers"` with collect.top_logprobs, or `unit = "token"`'
            )
        if self.keep == "vectors":
            raise ValueError(
                "a server tells probabilities and never the vectors that they are made of: set "
                '`train.distil.keep = "all"` where it tells all, `head` with `draws = 0` where not, or '
                "name a [teacher] whose weights are here"
            )
        if self.tokenizer is None:
            raise ValueError(
                "a teacher at an endpoint reads the student's token ids and cannot show its tokenizer: name "
                'that in train.distil.tokenizer, or learn by "distil" with train.distil.targets = "answers"'
            )
        if self.keep == "some" and (self.draws or not self.head):
            raise ValueError(
                "a server tells the likeliest tokens, and draws none: set train.distil.head to how many (20 "
                'where it does not allow more) and `draws = 0`, or `keep = "all"` where it tells all'
            )
        if self.keep == "some" and (temperature, self.temperature) != (1.0, 1.0):
            raise ValueError(
                "what a server tells is of temperature 1, and another cannot be had from a part of it: set "
                '`train.distil.keep = "all"` where it tells all, or the temperature to 1'
            )

    @model_validator(mode="after")
    def _what_stored_targets_can_serve(self) -> Distil:
        if self.online and self.targets == "answers":
            raise ValueError('`online` needs the teacher itself: set `targets = "teacher"`')
        if self.unit == "chunk" and (self.online or self.divergence != "forward_kl"):
            raise ValueError(
                '`unit = "chunk"` is stored and has one measure: leave out `online`, `divergence`'
            )
        if self.vectors is not None and self.keep != "vectors":
            raise ValueError('`vectors` is only read with `keep = "vectors"`')
        if self.keep == "vectors" and self.targets == "answers":
            raise ValueError('answers come without vectors: set `targets = "teacher"`')
        if self.unit == "chunk" and (self.keep != "some" or self.temperature != 1.0):
            raise ValueError(
                '`unit = "chunk"` keeps how likely chunks are: leave out `keep` and `temperature`'
            )
        if self.online or (self.targets == "teacher" and self.keep != "some"):
            return self
        if self.targets == "answers" and self.temperature != 1.0:
            raise ValueError("answers come with probabilities of temperature 1, and another cannot be had")
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


class Rationale(Table):
    """The student also learns to tell the teacher's rationale, as a task of its own: of each sample that has
    one a second row, whose prompt asks for it. Its answers stay as they are."""

    weight: float = Field(
        default=1.0, gt=0, description="What all rationales count in the loss, beside 1 for all answers."
    )


class Preference(Table):
    """After its objective the student learns from pairs of answers to one prompt to prefer one of them (DPO,
    by `trl`: needs the extra `preference`)."""

    pairs: Literal["answers", "own"] = Field(
        default="answers",
        description="`answers`: right ones against those that `curate.verify` dropped as wrong. `own`: the "
        "teacher's against what the student answers to the same prompts after its objective.",
    )
    beta: float = Field(
        default=0.1, gt=0, description="How firmly the student is held to what it was before the pairs."
    )
    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-5, gt=0, description="Its peak, with the warm-up of [train].")


class Train(Table):
    objective: Literal["sequence", "distil", "on_policy"] = Field(
        default="sequence",
        description="`sequence` learns the answers' text, `distil` the teacher's probabilities along it, "
        "`on_policy` also along text that the student writes.",
    )
    distil: Distil = Field(default=Distil(), description="See [train.distil].")
    on_policy: OnPolicy = Field(default=OnPolicy(), description="See [train.on_policy].")
    rationale: Rationale | None = Field(default=None, description="See [train.rationale].")
    preference: Preference | None = Field(default=None, description="See [train.preference].")
    epochs: float = Field(default=3.0, gt=0)
    batch_tokens: Positive = Field(default=8192, description="Tokens in a batch, padding included.")
    learning_rate: float = Field(default=1e-3, gt=0)
    micro_tokens: Positive | None = Field(
        default=None,
        description="Tokens worked at once; a larger batch is worked in parts whose gradients are summed, in "
        "less memory and more time. Left out, the whole batch.",
    )
    packing: bool = Field(
        default=False,
        description="Rows stand one behind another without padding, each blind to the others. See "
        "docs/training.md for when it pays.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Make activations again for backward: a third more work, far less memory."
    )
    shard: bool = Field(
        default=False,
        description="Several processes have a part each of weights, gradients and optimiser state, for a "
        "student too large for one device. One process has all of it, as without.",
    )
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
    patience: Positive | None = Field(
        default=None,
        description="Measurements of the held-out loss (one each epoch) without a lower one after which "
        "training ends; the student then has the weights of the lowest. Left out, all epochs are trained.",
    )
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    track: Literal["tensorboard", "trackio", "wandb"] | None = Field(
        default=None, description="Also show the figures of losses.jsonl there; each is installed apart."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="Type of the autocast.")

    @model_validator(mode="after")
    def _text_to_learn(self) -> Train:
        if self.rationale is not None and self.objective != "sequence":
            raise ValueError(
                f'rationales are learned as text, which `objective = "{self.objective}"` does not: set '
                '`objective = "sequence"`, or leave [train.rationale] out'
            )
        return self

    @model_validator(mode="after")
    def _what_pairs_can_use(self) -> Train:
        if self.preference is not None and self.micro_tokens is not None:
            raise ValueError(
                "pairs of answers are worked a whole batch at a time, and `micro_tokens` divides none: lower "
                "`batch_tokens` in its place, or leave [train.preference] out"
            )
        if self.preference is not None and self.packing:
            raise ValueError(
                "pairs of answers are padded and never packed: leave `packing` or [train.preference] out"
            )
        return self

    @model_validator(mode="after")
    def _what_can_be_in_parts(self) -> Train:
        whole = {
            '`optimiser = "muon"`, which turns whole matrices': self.optimiser == "muon",
            '`objective = "on_policy"`, whose answers come one token after another, for each of which all '
            "weights would travel": self.objective == "on_policy",
            "[train.preference], whose pairs are learned by one process": self.preference is not None,
        }
        for what, there in whole.items():
            if self.shard and there:
                raise ValueError(f"`shard` does not go with {what}: leave one of them out")
        return self

    @model_validator(mode="after")
    def _time_to_write(self) -> Train:
        if self.objective == "on_policy" and self.on_policy.after >= self.epochs:
            raise ValueError(
                f"the student would never write: `on_policy.after` is {self.on_policy.after:g} "
                f"and there are {self.epochs:g} epochs"
            )
        return self
