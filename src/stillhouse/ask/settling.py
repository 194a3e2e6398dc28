"""What is written of a request: what its answer's leaf will need, before it leaves; then what became of it.

The same for a request of this process, for one that left from another machine, and for an answer that is
found in a shard after a crash.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from stillhouse.ask.questions import PATH, Part, Question, path_of
from stillhouse.errors import LedgerError
from stillhouse.ledger import Ledger, nano
from stillhouse.models.endpoint import Failure, Reply
from stillhouse.money import Price
from stillhouse.records import Completion

ROUNDING = 1e-9  # how far, relatively, a cost may pass its bound by adding up alone


@dataclass(frozen=True, slots=True)
class Begun:
    """A request whose attempt is in the ledger: `leaf` is what is known of its answer's leaf by now, `worst`
    what it can cost at most (US dollars), and `path` where below the base URL it goes."""

    attempt: int
    key: str
    leaf: dict[str, Any]
    price: Price | None
    worst: float
    path: str = PATH


class Ended(NamedTuple):
    """How a request ended, the bytes that were sent, and the seconds that it took."""

    begun: Begun
    outcome: Reply | Failure
    request: bytes
    seconds: float


def begun(
    attempt: int, key: str, part: Part, question: Question, run: str, stage: str, worst: float
) -> Begun:
    leaf = asked_leaf(key, attempt, part, question.sample_index) | {"run": run, "stage": stage}
    if question.epoch:
        leaf["epoch"] = question.epoch
    return Begun(attempt, key, leaf, part.teacher.price, worst, path_of(question))


def asked_leaf(key: str, attempt: int, part: Part, sample_index: int) -> dict[str, Any]:
    """What the leaf of an answer says of its question, however that was asked."""
    teacher = part.teacher
    return {
        "key": key,
        "attempt": attempt,
        "decision": part.decision,
        "teacher": {"endpoint": teacher.endpoint, "model": teacher.model, "revision": teacher.revision},
        "sample": sample_index,
    }


def answered_leaf(completion: Completion, cost: float | None) -> dict[str, Any]:
    """What it says of the answer; `cost` in US dollars."""
    return {
        "answered_by": completion.model[:200],
        "fingerprint": completion.fingerprint and completion.fingerprint[:200],
        "finish": completion.finish_reason,
        "prompt_tokens": completion.usage.prompt_tokens,
        "completion_tokens": completion.usage.completion_tokens,
        "nanodollars": None if cost is None else nano(cost),
    }


def cost_of(completion: Completion, price: Price | None) -> float | None:
    """US dollars by this price; None when price or usage is unknown."""
    usage = completion.usage
    if price is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    return price.of(usage.prompt_tokens, usage.completion_tokens)


def cost(ended: Ended) -> float | None:
    """US dollars by the recorded price; None when price or usage is unknown."""
    if isinstance(ended.outcome, Failure):
        return None if ended.outcome.sent else 0.0
    return cost_of(ended.outcome.completions[0], ended.begun.price)


def disputed(ended: Ended) -> bool:
    """Whether the teacher claims more than the request can cost at most."""
    known = cost(ended)
    return known is not None and passes(known, ended.begun.worst)


def passes(known: float, worst: float) -> bool:
    """Whether a cost is above its bound (US dollars)."""
    return known > worst * (1 + ROUNDING)


def settle(ledger: Ledger, ended: Ended) -> Future[Any]:
    """Write what became of the attempt."""
    attempt, outcome = ended.begun.attempt, ended.outcome
    if isinstance(outcome, Failure):
        if outcome.kind == "lost":
            return ledger.lose([attempt])
        return ledger.fail(attempt, outcome.kind, outcome.sent)
    completion, known = outcome.completions[0], cost(ended)
    leaf = ended.begun.leaf | answered_leaf(completion, known)
    leaf["milliseconds"] = round(1000 * ended.seconds)
    if disputed(ended):
        leaf["disputed"] = True
    return ledger.answer(attempt, leaf, {"request": ended.request, "response": outcome.raw}, known)


def settle_found(ledger: Ledger, found: Iterable[Ended], unsettled: dict[int, str]) -> None:
    """Write what was found of attempts that were never settled; `unsettled` are all such, with their keys.
    What is settled already is left as it is, so that finding it twice changes nothing.

    Raises LedgerError when what was found is not of this ledger.
    """
    writing = []
    for ended in found:
        key = unsettled.get(ended.begun.attempt)
        if key is None:
            continue
        if key != ended.begun.key:
            raise LedgerError(
                f"an answer was found for attempt {ended.begun.attempt}, but to another question",
                "the ledger is not the one that it was asked for, or an older copy of it",
                "restore the newest ledger, or move the shards away; docs/collecting.md says where they lie",
            )
        writing.append(settle(ledger, ended))
    for written in writing:
        written.result()
