"""Every question that stillhouse puts to a model on its own behalf goes through here.

For each question: is it answered in the ledger already? If not: reserve its worst case against the cap,
write the attempt, send, and write the exchange, in this order. A process that dies in between leaves an
attempt that is shown as `sent, unknown`; an answer that was written is never asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stillhouse.ask.batch import HABITS, ask_in_batches, cancel_batches, new_tally
from stillhouse.ask.canary import Watched, conclude, to_ask
from stillhouse.ask.cluster import Cluster, on_ray, recover
from stillhouse.ask.jobs import Habits
from stillhouse.ask.lane import is_local
from stillhouse.ask.offers import hear
from stillhouse.ask.questions import (
    Canary,
    Limits,
    Part,
    Question,
    Questions,
    Sampling,
    Tally,
    Teacher,
    Unanswered,
    answers,
    at_batch_price,
    check_cap,
    logical_endpoint,
    question_key,
    request_body,
    worst_cost,
    worst_tokens,
)
from stillhouse.ask.sending import Asking
from stillhouse.ask.tracing import tracing
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger, batches
from stillhouse.models.endpoint import Endpoint
from stillhouse.records import Watch, unwatched

__all__ = [
    "HABITS",
    "Canary",
    "Cluster",
    "Habits",
    "Limits",
    "Part",
    "Question",
    "Questions",
    "Sampling",
    "Tally",
    "Teacher",
    "Unanswered",
    "Watched",
    "answers",
    "ask",
    "ask_all",
    "ask_in_batches",
    "at_batch_price",
    "cancel_batches",
    "check_cap",
    "conclude",
    "hear",
    "is_local",
    "list_models",
    "logical_endpoint",
    "on_ray",
    "question_key",
    "recover",
    "request_body",
    "to_ask",
    "worst_cost",
    "worst_tokens",
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
    _no_open_batches(ledger, run)
    ledger.sweep(run)
    tally = new_tally(parts, limits, ledger, run)
    with tracing(run, stage) as trace, asyncio.Runner() as runner:
        asking = Asking(parts, sampling, limits, ledger, run, tally, watch, stage, cluster, trace)
        runner.run(asking.all())
    return tally


def _no_open_batches(ledger: Ledger, run: str) -> None:
    """Raises UsageError while a provider works on batches of this run."""
    count = len(batches.open_batches(ledger, run))
    if count:
        raise UsageError(
            f"the run {run} has {count} {'batch' if count == 1 else 'batches'} with its provider",
            "what is in them would be asked and paid twice",
            'set collect.mode = "batch" for the answers, or `stillhouse collect RECIPE --cancel-batches`',
        )


async def list_models(url: str, key_env: str | None) -> list[str]:
    """The models that a server says it has; asks none of them anything. Raises EndpointError."""
    async with Endpoint(url, key_env) as endpoint:
        return await endpoint.models()
