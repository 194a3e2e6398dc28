"""Every question that stillhouse puts to a model on its own behalf goes through here.

For each question: is it answered in the ledger already? If not: reserve its worst case against the cap,
write the attempt, send, and write the exchange, in this order. A process that dies in between leaves an
attempt that is shown as `sent, unknown`; an answer that was written is never asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stillhouse.ask.cluster import Cluster, on_ray, recover
from stillhouse.ask.questions import (
    Limits,
    Part,
    Question,
    Questions,
    Sampling,
    Tally,
    Teacher,
    Unanswered,
    answers,
    logical_endpoint,
    question_key,
    request_body,
    worst_cost,
)
from stillhouse.ask.sending import Asking
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Endpoint
from stillhouse.money import Budget, Price
from stillhouse.records import Watch, unwatched

__all__ = [
    "Cluster",
    "Limits",
    "Part",
    "Question",
    "Questions",
    "Sampling",
    "Tally",
    "Teacher",
    "Unanswered",
    "answers",
    "ask",
    "ask_all",
    "check_cap",
    "list_models",
    "logical_endpoint",
    "on_ray",
    "question_key",
    "recover",
    "request_body",
    "worst_cost",
]


def ask(
    questions: Questions,
    teacher: Teacher,
    sampling: Sampling,
    limits: Limits,
    ledger: Ledger,
    run: str,
    decision: int,
    watch: Watch = unwatched,
    stage: str = "collect",
) -> Tally:
    """Put every question that the ledger cannot answer to the teacher, and return when none is left.

    Answers are read with `answers`. Raises EndpointError when asking further is pointless (no access, no
    such model, nobody there, too many failures), BudgetReached at the cap and Interrupted on SIGINT;
    in each case what was answered is in the ledger and the same call goes on from there.
    """
    return ask_all([Part(teacher, decision, questions)], sampling, limits, ledger, run, watch, stage)


def ask_all(
    parts: Sequence[Part],
    sampling: Sampling,
    limits: Limits,
    ledger: Ledger,
    run: str,
    watch: Watch = unwatched,
    stage: str = "collect",
    cluster: Cluster | None = None,
) -> Tally:
    """As `ask`, for several teachers at once, each at its own pace and all under one cap; requests leave from
    the workers of a cluster, where one is given."""
    for part in parts:
        check_cap(limits.max_cost, part.teacher.price)
    ledger.sweep(run)
    tally = Tally(sum(len(part.questions) for part in parts), unknown=ledger.attempts(run).unknown)
    tally.budget = Budget(limits.max_cost, ledger.spent(run).most)
    with asyncio.Runner() as runner:
        runner.run(Asking(parts, sampling, limits, ledger, run, tally, watch, stage, cluster).all())
    return tally


def check_cap(max_cost: float | None, price: Price | None) -> None:
    """Raises UsageError for a cap that could not be kept, because no price is known."""
    if max_cost is not None and price is None:
        raise UsageError(
            "collect.max_cost is set, but the price of the teacher is not known",
            "a cap can only be kept when each request's worst case is known",
            "add [teacher.price] with input and output in US dollars per million tokens, or remove max_cost",
        )


async def list_models(url: str, key_env: str | None) -> list[str]:
    """The models that a server says it has; asks none of them anything. Raises EndpointError."""
    async with Endpoint(url, key_env) as endpoint:
        return await endpoint.models()
