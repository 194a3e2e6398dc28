"""The words in which terms are known: a row for each text that governs one way of access to some models.

A row says what its text allows when a general model is trained on a teacher's answers and given away, and
what changes that: cases that lift the verdict, conditions that tighten it, obligations that go with the
student. All of it is data; `gate` decides with it, `obligations` solves what is owed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal
from urllib.parse import urlsplit

from stillhouse.text import host_name

Access = Literal["shipped", "weights", "api", "router", "consumer_app", "import"]
Use = Literal["train_target", "reward", "judge", "filter", "prompt_seed", "evaluation"]
Verdict = Literal["allow", "allow_with_obligations", "review", "refuse"]
Task = Literal[
    "generative", "classifier", "embedding", "reranker", "extractor", "search", "anomaly_detection"
]
Mode = Literal["internal", "hosted", "weights"]  # who gets the student: nobody, its answers, itself
Answer = Literal["yes", "conditional", "no", "unknown"]
Evidence = Literal[
    "primary",  # the text itself was read
    "primary_mirror",  # its full text in a dated mirror
    "primary_older",  # an older text was read, what is in force only second-hand
    "secondary_verbatim",  # clauses quoted word for word by independent readers
    "secondary",
    "memory",  # general knowledge, unchecked
    "none",  # the text was not obtained
]
Confidence = Literal["high", "medium", "low"]

ObligationKind = Literal[
    "name_prefix",
    "no_mark",
    "credit",
    "notice",
    "licence_copy",
    "inherits",
    "use_policy",
    "label_ai",
    "check_output",
    "keep_signals",
    "notify",
    "note",
]

OPEN: tuple[Access, ...] = ("shipped", "weights")  # by which a model itself is had, whoever serves it
STRICTEST: tuple[Verdict, ...] = ("allow", "allow_with_obligations", "review", "refuse")


@dataclass(frozen=True, slots=True)
class Licence:
    """`sha256` are digests of texts that were seen to be this licence, normalised as `licences` does."""

    name: str
    spdx: str | None = None
    hub_tag: str | None = None
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """Where all that it names holds, `verdict` stands for the row's. An empty field holds always.

    `bases` are patterns for the model that the student begins with.
    """

    verdict: Verdict
    why: str
    uses: tuple[Use, ...] = ()
    tasks: tuple[Task, ...] = ()
    modes: tuple[Mode, ...] = ()
    bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """Above so much of an operator's figure the verdict is at least this, or the obligation is owed."""

    figure: Literal["monthly_users", "monthly_revenue_usd", "yearly_revenue_usd"]
    above: int
    why: str
    verdict: Verdict | None = None
    owed: Obligation | None = None
    modes: tuple[Mode, ...] = ()  # only for students given out so; any when empty
    hosting_models: bool = False  # only where the operator sells access to models


@dataclass(frozen=True, slots=True)
class Territory:
    """No rights for an operator in one of these (ISO 3166 codes, or EU)."""

    excluded: tuple[str, ...]
    why: str
    modality: Literal["any", "multimodal"] = "any"


@dataclass(frozen=True, slots=True)
class Feature:
    """Answers made with one of these features have the verdict at least."""

    features: tuple[str, ...]
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class Need:
    """Something about the use that must hold, or the verdict is at least this.

    non_commercial: the operator's use is not commercial. paid_tier: access is paid for. not_by_program: what
    a program collects is never allowed. pinned_provider: a router's upstream is named. no_prompt_logging: a
    router does not keep what is asked. licence_text: the checkpoint's own LICENSE was read and is this
    row's. model_licence: the text of the model behind this access is known as well.
    """

    need: Literal[
        "non_commercial",
        "paid_tier",
        "not_by_program",
        "pinned_provider",
        "no_prompt_logging",
        "licence_text",
        "model_licence",
    ]
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class Obligation:
    """What a student owes. `texts` has the wording, any one of which will do; for a licence its name.

    name_prefix: its name begins so. no_mark: its name does not hold this. credit: shown where users see it.
    notice: a line in NOTICE. licence_copy: a copy of the teacher's licence goes with it. inherits: it is
    under the teacher's licence itself. use_policy: the teacher's use policy binds those who get it. label_ai:
    its published output is labelled as made by a machine. check_output: published output is checked.
    keep_signals: marks of provenance stay. notify: somebody is told. note: a line of attribution.
    """

    kind: ObligationKind
    texts: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = ("hosted", "weights")
    redistributes: bool = False  # only where the teacher's own weights are in the student
    where: str = ""


Condition = Scale | Territory | Feature | Need


@dataclass(frozen=True, slots=True)
class Row:
    """One text for one way of access. `models` and `excluding` are shell patterns, without regard to case;
    `hosts` are servers at which this text governs whatever the model is called there, `architectures` are
    patterns of kinds of model that are this maker's alone, as a folder's configuration names them.

    `trains_others` and `trains_competing` are what the text says; `verdict` is what the gate makes of it for
    a general student that is given away. `liftable` says whether a written permission can lift a refusal, and
    `lifted_by` which one the text itself names, if any. `upstream` are keys of rows whose terms reach through
    this teacher. `read_on` is the date of the text that was read; None where none was.
    """

    key: str
    vendor: str
    covers: str
    access: Access | Literal["any"]
    models: tuple[str, ...]
    licence: Licence
    trains_others: Answer
    trains_competing: Answer
    verdict: Verdict
    liftable: bool
    clause: str
    clause_ref: str
    version: str
    source: str
    source_seen: bool
    read_via: str
    read_on: date | None
    evidence: Evidence
    confidence: Confidence
    excluding: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    priority: int = 50
    claims_student: bool = False
    lifted_by: str = ""
    notes: str = ""
    cases: tuple[Case, ...] = ()
    conditions: tuple[Condition, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    upstream: tuple[str, ...] = ()


def offers_others(row: Row) -> bool:
    """Whether it is the text of a server of others' models, each of which has terms of its own."""
    return any(isinstance(one, Need) and one.need == "model_licence" for one in row.conditions)


@dataclass(frozen=True, slots=True)
class Operator:
    """Facts about whoever distils, None where nobody said: a row that needs such a fact then refuses."""

    monthly_users: int | None = None
    monthly_revenue_usd: int | None = None
    yearly_revenue_usd: int | None = None
    territory: str | None = None
    sells_access_to_models: bool | None = None
    commercial: bool | None = None


@dataclass(frozen=True, slots=True)
class Publisher:
    """What a release's documents tell of the operator and the base; None where nobody said."""

    name: str | None = None
    contact: str | None = None
    authorised_representative: str | None = None
    market_date: date | None = None
    base_training_flop: float | None = None


@dataclass(frozen=True, slots=True)
class Student:
    """What the answers are for. `competes` None where nobody said: taken as yes."""

    name: str
    base: str
    task: Task = "generative"
    mode: Mode = "weights"
    competes: bool | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything that the gate decides by, beside the rows and the permissions: one use of one teacher.

    `endpoint` is the server without secrets, `features` what the requests switch on (grounding, tools);
    `licence_sha256` the digest of the checkpoint's own licence text, normalised, and `licence_spdx` what that
    text was recognised as; both empty where there was none to read. `also` are other names that it goes by,
    `built_on` what its configuration says that it was made from and `architectures` what kind of model it is,
    which forbid but never allow.
    """

    model: str
    revision: str
    access: Access
    endpoint: str
    use: Use
    student: Student
    operator: Operator
    features: tuple[str, ...] = ()
    provider_pinned: bool | None = None
    prompt_logging: bool | None = None
    paid: bool | None = None
    multimodal: bool = False
    licence_sha256: str = ""
    licence_spdx: str = ""
    also: tuple[str, ...] = ()
    built_on: str = ""
    architectures: tuple[str, ...] = ()

    @property
    def server(self) -> str:
        """What permissions and declarations call whoever answers: the host, or `import` for answers that
        somebody brought, wherefore a host of that name is `//import`; nothing for weights without one."""
        host = host_of(self.endpoint)
        if not host:
            return "" if self.access in OPEN else "import"
        return "//import" if host == "import" else host


def host_of(endpoint: str) -> str:
    """The host of a URL, or of an address without its scheme, as `host_name` has it; empty where there is
    none."""
    try:
        return host_name(urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname or "")
    except ValueError:
        return ""
