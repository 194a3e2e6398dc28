"""Everything that the documents of a release say; `gather` reads it once from run folder, recipe and ledger.

What nobody recorded is None; the documents write it as not recorded and list it as missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from stillhouse.terms import ruling
from stillhouse.terms.facts import Publisher
from stillhouse.terms.obligations import Owed

# SPDX ids of licences that leave use, change and redistribution free, and ask at most for attribution or
# share-alike.
FREE_LICENCES = frozenset(
    "Apache-2.0 MIT BSD-2-Clause BSD-3-Clause ISC MPL-2.0 EUPL-1.2 GPL-2.0-only GPL-3.0-only "
    "GPL-3.0-or-later LGPL-3.0-only AGPL-3.0-only CC0-1.0 CC-BY-4.0 CC-BY-SA-4.0 Unlicense".split()
)
MARGIN = 0.3  # how far off a count of operations may be (guidelines of the Commission, 18 July 2025)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate said before the answers were asked for; `terms_sha256` are the texts that it rests on."""

    leaf: int
    verdict: str
    reasons: tuple[str, ...]
    terms: str | None
    terms_sha256: tuple[str, ...]
    read_on: str | None
    basis: str | None
    policy: str | None
    registry_sha256: str | None
    authorisation: int | None
    obligations: tuple[ruling.Owed, ...]


@dataclass(frozen=True, slots=True)
class Teacher:
    """`revision` is the declared one, or the digest of the weights where they are on this machine. `rows`
    were trained on, `exchanges` are all answers they were chosen from. Tokens are sums over the answers that
    have counts; `uncounted` have none. `times` are those of the first and the last answer, as the ledger
    took them."""

    model: str
    revision: str | None
    access: str | None
    host: str | None
    answered_by: tuple[str, ...]
    decisions: tuple[Decision, ...]
    exchanges: int
    uncounted: int
    prompt_tokens: int
    completion_tokens: int
    rows: int
    times: tuple[str, str] | None
    parameters: int | None
    lineage: str | None
    upstream: Mapping[str, Any] | None = None  # who taught it, as the gate found it; see `terms.lineage`
    known: Mapping[str, Any] | None = None  # by what the gate knew it when it decided last; see there

    @property
    def obligations(self) -> tuple[ruling.Owed, ...]:
        """Of all its decisions, each once, in their order."""
        return tuple(dict.fromkeys(owed for decision in self.decisions for owed in decision.obligations))


@dataclass(frozen=True, slots=True)
class Student:
    """`base` is what it began as, None for one that began from nothing; `base_sha256` is
    `models.weights_digest` of that, where it lay on this machine."""

    base: str | None
    base_is_on_hub: bool
    base_sha256: str | None
    sha256: str
    architecture: str | None
    parameters: int
    layers: int | None
    width: int | None
    vocabulary: int | None
    context: int | None


@dataclass(frozen=True, slots=True)
class Samples:
    """`deferred` counts the requests of a cascade's customers that were learned from beside the prompts."""

    prompts: str
    grown: bool
    answers: int
    kept: int
    dropped: Mapping[str, int]
    unscored: Mapping[str, int]
    languages: tuple[str, ...] | None
    deferred: int = 0


@dataclass(frozen=True, slots=True)
class Training:
    """`tokens` went through the student, every epoch counted; `target_tokens` of them were learnt."""

    objective: str
    seed: int
    steps: int
    epochs: float
    tokens: int
    target_tokens: int
    seconds: float
    device: str
    dtype: str
    settings: Mapping[str, Any]
    finished: str | None


@dataclass(frozen=True, slots=True)
class Figure:
    """A share with its 95 % interval; None where it was not measured."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    figures: tuple[Figure, ...]
    retention: Figure
    flops_ratio: float | None
    margin: float | None
    ruling: str | None
    source: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """What a teacher or judge was asked for in this run beside answers to be trained on."""

    stage: str
    model: str
    exchanges: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Facts:
    """`written` is the moment at which this was gathered, when the log had `size` leaves with this `root`
    (hex). `files` are the student's, each with its SHA-256. `anchored` is the size up to which somebody else
    vouches for the log, None for nobody. `credits` are the lines that are owed, as ATTRIBUTION.md has them,
    `due` what the teachers' terms ask of a student that is given out in this way. `begun` is what is known of
    the base and of who taught it, None where the student began with nobody else's weights; see
    `terms.lineage.as_base`."""

    name: str
    run: str
    version: str
    licence: str | None
    written: datetime
    size: int
    root: str
    origin: str
    files: Mapping[str, str]
    teachers: tuple[Teacher, ...]
    student: Student
    samples: Samples
    training: Training
    evaluation: Evaluation
    uses: tuple[Use, ...]
    operator: Publisher
    software: Mapping[str, str]
    anchored: int | None = None
    credits: tuple[str, ...] = ()
    due: tuple[Owed, ...] = ()
    begun: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Compute:
    """Operations. `unknown` are teachers whose size nobody recorded, with the tokens that they passed:
    `total` is then the least that it can be."""

    training: int
    answers: int
    readings: int
    unknown: Mapping[str, int]

    @property
    def total(self) -> int:
        return self.training + self.answers + self.readings


def compute(facts: Facts) -> Compute:
    """6*P*D for training, with P the student's parameters and D the tokens that went through it, 2*P*D more
    where it wrote its own text to learn from; and 2*P for each token that a teacher read or wrote: for the
    answers that rows were chosen from, the dropped ones as well, and in training, where it reads at most D.

    The training of the teachers, answers for evaluation only, and failed runs do not count. Source: the
    Commission's guidelines on general-purpose models of 18 July 2025, as far as they are known to us.
    """
    training, student = facts.training, facts.student
    own = training.objective == "on_policy"
    answers, readings, unknown = 0, 0, Counter[str]()
    for number, teacher in enumerate(facts.teachers):
        tokens = teacher.prompt_tokens + teacher.completion_tokens
        read = training.tokens if number == 0 and _reads(training) else 0
        if teacher.parameters is None or teacher.uncounted:
            if teacher.exchanges or read:
                unknown[teacher.model] += tokens + read
        else:
            answers += 2 * teacher.parameters * tokens
            readings += 2 * teacher.parameters * read
    learnt = (8 if own else 6) * student.parameters * training.tokens
    return Compute(learnt, answers, readings, dict(unknown))


def _reads(training: Training) -> bool:
    """Whether the first teacher read the rows, and was not only heard on its own answers."""
    told = training.settings.get("distil", {}).get("targets") == "answers"
    return training.objective != "sequence" and not told


def urn(*parts: str) -> str:
    """A name of ours. `x-` spaces belong to nobody, so this claims no domain (RFC 8141, section 5.1)."""
    return ":".join(["urn:x-stillhouse", *(quote(part, safe="", errors="replace") for part in parts)])


def stamp(moment: datetime) -> str:
    """UTC, in whole seconds, as the formats of others want it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def missing(facts: Facts) -> tuple[str, ...]:
    """What the documents would hold and nobody recorded, in words."""
    operator = facts.operator
    found = [
        (operator.name, "the provider's name"),
        (operator.contact, "the provider's contact"),
        (operator.authorised_representative, "the authorised representative, if there is one"),
        (operator.market_date, "the date of placing on the Union market"),
        (operator.base_training_flop, "the operations that trained the base"),
        (facts.licence, "the licence of the weights"),
        (facts.samples.languages, "the languages of the rows"),
        (facts.student.base is None or facts.student.base_sha256, "the digest of the base's weights"),
    ]
    lacking = [words for value, words in found if not value]
    for teacher in facts.teachers:
        if teacher.parameters is None:
            lacking.append(f"the parameters of {teacher.model}")
        if teacher.revision is None:
            lacking.append(f"the revision of {teacher.model}")
        if teacher.lineage is None:
            lacking.append(f"what {teacher.model} itself was taught by")
        if teacher.uncounted:
            lacking.append(f"the tokens of {teacher.uncounted} answers of {teacher.model}")
        if not any(decision.terms_sha256 for decision in teacher.decisions):
            lacking.append(f"a recorded text of the terms of {teacher.model}")
    return tuple(lacking)
