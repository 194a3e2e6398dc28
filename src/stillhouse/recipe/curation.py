"""The tables of [curate]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillhouse.recipe.base import Fraction, NotNegative, Positive, Table


class LeakSet(Table):
    """A further evaluation set, whose questions may not be learnt from."""

    file: str = Field(description="JSON Lines or Parquet.")
    column: str = Field(default="prompt", description="Column with the question.")


class Mix(Table):
    """How many rows of which teacher and family are trained on; rows are left out, never repeated."""

    teachers: dict[str, NotNegative] = Field(
        default={}, description="Proportions of rows by teacher, such as { a = 2, b = 1 }."
    )
    families: dict[str, NotNegative] = Field(default={}, description="The same by family.")
    teacher_cap: Positive | None = Field(default=None, description="Most rows of one teacher.")
    family_cap: Positive | None = Field(default=None, description="Most rows of one family.")
    checkpoint: str | None = Field(
        default=None, description="Folder of a student whose loss says how hard a row is."
    )
    easiest: Fraction = Field(
        default=0.0, description="Share of the rows with the lowest loss to leave out; needs `checkpoint`."
    )
    hardest: Fraction = Field(default=0.0, description="The same of those with the highest.")

    @model_validator(mode="after")
    def _measured_by_something(self) -> Mix:
        if (self.easiest or self.hardest) and self.checkpoint is None:
            raise ValueError("`easiest` and `hardest` need a `checkpoint`, whose loss is measured")
        if self.easiest + self.hardest >= 1:
            raise ValueError("`easiest` and `hardest` together leave no row")
        return self


class Curate(Table):
    duplicates: bool = Field(
        default=True, description="Drop repeats of prompt and answer, letter case and white space aside."
    )
    near_duplicates: Fraction = Field(
        default=0.8,
        description="Drop a row whose prompt and answer, and whose answer alone, have this Jaccard "
        "similarity (3 words in a row) with a kept row; 0 looks for none.",
    )
    semantic_duplicates: Fraction = Field(
        default=0.0,
        description="The same by the cosine of `embedding`'s vectors; 0 looks for none. Needs the extra "
        "`semantic`.",
    )
    embedding: str | None = Field(default=None, description="Model2Vec model, a folder or a hub id.")
    rationale: str | None = Field(
        default=None,
        description="Regular expression of what a teacher thinks aloud before it answers, such as "
        "`<think>(.*?)</think>`: taken out of the answer and kept beside it, like what a server gives apart.",
    )
    truncated: bool = Field(default=True, description="Drop answers that ended at max_tokens.")
    refusals: bool = Field(default=True, description="Drop answers in which the teacher declined.")
    boilerplate: bool = Field(
        default=True, description="Drop answers that speak of themselves as a model's (English)."
    )
    identity: bool = Field(
        default=True, description="Drop answers that say which model they are of or who made it (English)."
    )
    repetitive: bool = Field(default=True, description="Drop answers that loop.")
    min_words: Positive | None = Field(default=None, description="Drop shorter answers.")
    max_words: Positive | None = Field(default=None, description="Drop longer answers.")
    pattern: str | None = Field(
        default=None, description="Drop answers in which this regular expression is not found."
    )
    json_schema: str | None = Field(
        default=None,
        description="Drop answers that are not JSON under the JSON Schema in this file. Needs the extra "
        "`curate`.",
    )
    languages: list[str] | None = Field(
        default=None,
        description='Drop answers in other languages than these, such as ["en"]. Needs the extra `curate`.',
    )
    personal: Literal["count", "redact", "drop", "off"] = Field(
        default="count",
        description="What happens where e-mail addresses, telephone numbers, payment cards, IBANs, public IP "
        "addresses, keys of services or private keys stand.",
    )
    names: bool = Field(
        default=False, description="`personal` is about names and places as well. Needs the extra `presidio`."
    )
    leaks: Fraction = Field(
        default=0.5,
        description="Drop a row whose prompt has this share of its 8-grams in an evaluation set, holds this "
        "share of those of one of its questions, or is one; 0 only counts them.",
    )
    leak_sets: list[LeakSet] = Field(
        default=[], description="Evaluation sets beside the run's own test prompts."
    )
    verify: Literal["off", "where_possible", "all"] = Field(
        default="off",
        description="Drop answers that are wrong by their prompt's scorer and reference. `all` also sets "
        "aside what cannot be verified.",
    )
    draws: Literal["all", "shortest", "agreed"] = Field(
        default="all",
        description="Which of several answers to one prompt are kept: all, the shortest, or those that most "
        "others agree with.",
    )
    draws_kept: Positive = Field(default=1, description="How many of them.")
    filters: list[str] = Field(
        default=[], description="Names of your own filters, from the entry points `stillhouse.filters`."
    )
    mix: Mix | None = Field(default=None, description="See [curate.mix].")

    @model_validator(mode="after")
    def _found_reliably(self) -> Curate:
        if 0 < self.near_duplicates < 0.25:
            raise ValueError("`near_duplicates` is 0 or 0.25 to 1: pairs less alike are not found reliably")
        if self.semantic_duplicates and self.embedding is None:
            raise ValueError("`semantic_duplicates` needs an `embedding`")
        return self

    @model_validator(mode="after")
    def _leaves_something(self) -> Curate:
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError("`min_words` is more than `max_words`: no answer fits both")
        if self.languages == []:
            raise ValueError("`languages` names none: leave it out to keep all")
        return self
