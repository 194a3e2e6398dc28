"""The rows that stages pass to one another: frozen, slotted, with no behaviour beyond their own shape.

A stage that needs a further field keeps it in a record of its own; these stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "unknown"]
Ruling = Literal["keep", "drop", "unscored"]


@dataclass(frozen=True, slots=True)
class Message:
    """`extra` holds what a message has beside role and text (tool calls, their ids, a name), as canonical
    JSON; empty for none."""

    role: Role
    content: str
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question for a model, with what is known about its answer.

    `family` names the kind of task; scores are given per family. `group` is the unit by which
    intervals are clustered (a template, a source document); empty means that the prompt stands alone.
    `reference` is a known right answer and `scorer` names how an answer is compared with it
    (see `stillhouse.scoring`); both may be absent, and the prompt is then not scored. `tools` are those
    that the model may call, as canonical JSON; empty for none.
    """

    id: str
    messages: tuple[Message, ...]
    family: str = "default"
    group: str = ""
    reference: str | None = None
    scorer: str | None = None
    tools: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them; None where it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What a teacher answered. `model` is the id that the server returned, not the one asked for, and
    `fingerprint` what it calls the configuration that it ran on, where it says; `tool_calls` are the calls
    that it wants made, as JSON."""

    text: str
    finish_reason: FinishReason
    model: str
    usage: Usage = Usage()
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request to a teacher and what came back, as the ledger holds it.

    `key` identifies the question (hex); `leaf` is the exchange's index in the ledger's log, `decision`
    the leaf of the gate's decision that allowed it, `run` the run that bought it. `cost` is in US
    dollars, None when it is not known.
    """

    key: str
    leaf: int
    decision: int
    teacher: str
    prompt_id: str
    messages: tuple[Message, ...]
    completion: Completion
    sample_index: int = 0
    run: str = ""
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """keep, drop or unscored, with the reason; the reason of a kept row is empty."""

    ruling: Ruling
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A row that may be trained on; `leaves` are the exchange leaves that it was made from, `rationale` what
    the teacher thought before the completion, where that is known."""

    id: str
    messages: tuple[Message, ...]
    completion: str
    family: str
    group: str
    teacher: str
    leaves: tuple[int, ...] = field(default=())
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's result. `value` lies in [0, 1]; None means that it could not be scored, and why."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests to models: how many are in flight, and may be; the attempts that failed, by kind; US dollars
    that are spent, set aside for requests in flight, and expected in the end, None where they are not
    known. `batches` are those with a provider, whose lines are then what is in flight."""

    in_flight: int
    limit: int
    failures: Mapping[str, int] = field(default_factory=dict)
    spent: float | None = None
    reserved: float | None = None
    expected: float | None = None
    batches: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is. Stages only report it; drawing is the command line's business.

    `done` of `total` (None when the total is not known) in units of `unit`; `counts` are figures that
    should always be seen, failures first; `note` is a short free text such as the current loss. `traffic` is
    there where a model is asked. `seconds` that the stage has worked are for a watcher who did not see it
    begin.
    """

    stage: str
    done: int
    total: int | None
    unit: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    traffic: Traffic | None = None
    seconds: float | None = None


Watch = Callable[[Progress], None]


def unwatched(progress: Progress) -> None:
    """The watcher for callers who do not look."""
