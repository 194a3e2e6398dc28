"""Every question that stillhouse puts to a model on its own behalf goes through here.

For each question: is it answered in the ledger already? If not: reserve its worst case against the cap,
write the attempt, send, and write the exchange, in this order. A process that dies in between leaves an
attempt that is shown as `sent, unknown`; an answer that was written is never asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stillhouse.ask.questions import (
    Limits,
    Question,
    Sampling,
    Tally,
    Teacher,
    answers,
    as_exchange,
    logical_endpoint,
    question_key,
    request_body,
    stored_answers,
    worst_cost,
)
from stillhouse.ask.sending import Asking, progress_of
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Endpoint
from stillhouse.money import Budget, Price
from stillhouse.records import Watch, unwatched

__all__ = [
    "Limits",
    "Question",
    "Sampling",
    "Tally",
    "Teacher",
    "answers",
    "ask",
    "check_cap",
    "list_models",
    "logical_endpoint",
    "question_key",
    "request_body",
    "worst_cost",
]


def ask(
    questions: Sequence[Question],
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
    check_cap(limits.max_cost, teacher.price)
    ledger.sweep(run)
    tally = Tally(questions=len(questions), unknown=ledger.attempts(run).unknown)
    missing, spent = _take_stock(questions, teacher, sampling, ledger, run, tally)
    worst = max((worst_cost(q, teacher, sampling) for q in questions), default=0.0)
    tally.budget = Budget(limits.max_cost, limits.spent + spent + tally.unknown * worst)
    watch(progress_of(stage, tally))
    if missing:
        asking = Asking(teacher, sampling, limits, ledger, run, decision, tally, watch, stage)
        with asyncio.Runner() as runner:
            runner.run(asking.all(missing))
    return tally


def check_cap(max_cost: float | None, price: Price | None) -> None:
    """Raises UsageError for a cap that could not be kept, because no price is known."""
    if max_cost is not None and price is None:
        raise UsageError(
            "collect.max_cost is set, but the price of the teacher is not known",
            "a cap can only be kept when each request's worst case is known",
            "add [teacher.price] with input and output in US dollars per million tokens, or remove max_cost",
        )


def _take_stock(
    questions: Sequence[Question],
    teacher: Teacher,
    sampling: Sampling,
    ledger: Ledger,
    run: str,
    tally: Tally,
) -> tuple[dict[str, list[Question]], float]:
    """What must be asked, by key, so that a question that stands twice is asked once, and what this run
    spent on the rest at most (US dollars). Fills `tally`.

    An answer that was erased is not bought again, and without anybody to ask a missing one stays missing.
    """
    missing: dict[str, list[Question]] = {}
    possible = 0.0
    for question, key, stored in stored_answers(questions, teacher, sampling, ledger):
        place = (question.prompt_id, question.sample_index)
        exchange = None if stored is None else as_exchange(question, teacher, stored)
        if exchange is not None:
            tally.reused += 1
            if exchange.run == run:
                tally.count(exchange.completion, exchange.cost)
                possible += (
                    worst_cost(question, teacher, sampling) if exchange.cost is None else exchange.cost
                )
        elif stored is not None and stored.erased:
            tally.failed[place] = "erased"
        elif teacher.url is None:
            tally.failed[place] = "no imported answer"
        else:
            missing.setdefault(key, []).append(question)
    return missing, possible


async def list_models(url: str, key_env: str | None) -> list[str]:
    """The models that a server says it has; asks none of them anything. Raises EndpointError."""
    async with Endpoint(url, key_env) as endpoint:
        return await endpoint.models()
