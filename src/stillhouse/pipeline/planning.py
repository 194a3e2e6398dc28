"""What a run would do and cost, before it is done."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from stillhouse import ask as asking
from stillhouse.collect import PromptSet, limits_of, load_prompts, plan_questions, sampling_of
from stillhouse.ledger import Ledger
from stillhouse.money import FREE, UNKNOWN, Estimate, Price
from stillhouse.pipeline.setup import STAGES, USES, check, greedy, open_teacher, today
from stillhouse.prices import KnownPrice, price_of
from stillhouse.recipe import Recipe, run_digest
from stillhouse.records import Usage, Watch, unwatched
from stillhouse.terms import gate
from stillhouse.workspace import RunFolder, Workspace, locked, read_marker


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do. `run --dry-run` and `plan` print it; the real run makes the same one first."""

    run: RunFolder
    is_new: bool
    prompts: PromptSet
    questions: int  # to the teacher, over training and test prompts
    answered: int  # of these, already in the ledger
    price: KnownPrice | None
    price_age: int | None  # days since it was read; None where no page told it
    cost: Estimate  # US dollars for what is left
    seconds: Estimate  # for asking what is left
    done: tuple[str, ...]  # stages that finished before


def plan(
    recipe: Recipe,
    workspace: Workspace,
    ledger: Ledger,
    prompts: PromptSet | None = None,
    pilot: int = 0,
    watch: Watch = unwatched,
) -> Plan:
    """What a run of this recipe would do, and what the rest of it would cost by the answers that are there.

    Asks nothing and records only the gate's decision, unless `pilot` says how many unanswered training
    questions, drawn at random, are to be asked now: their answers are kept and never asked again. Raises
    what `check` raises, GateRefused, and with a pilot what `ask` raises.
    """
    run = workspace.run(recipe.run.name, run_digest(recipe))
    prompts = prompts or load_prompts(recipe)
    check(recipe, prompts)
    decision, _ = [gate.admit(recipe.teacher, use, ledger, datetime.now(UTC)) for use in USES]
    if pilot:
        with locked(run), open_teacher(recipe, run.logs / "teacher.log") as teacher:
            run.logs.mkdir(exist_ok=True)
            drawn = _unanswered(recipe, prompts, teacher, ledger)
            random.Random(recipe.run.seed).shuffle(drawn)
            asking.ask(
                drawn[:pilot],
                teacher,
                sampling_of(recipe),
                limits_of(recipe),
                ledger,
                run.root.name,
                decision,
                watch,
                "pilot",
            )
    asked = (
        (plan_questions(prompts.train, recipe.collect.samples), sampling_of(recipe)),
        (plan_questions(prompts.test, 1), greedy(recipe)),
    )
    price = price_of(recipe.teacher, today())
    with open_teacher(recipe) as teacher:
        known, left, worst = [], 0, 0.0
        for questions, sampling in asked:
            for question, exchange in asking.answers(questions, teacher, sampling, ledger):
                if exchange is not None:
                    known.append(exchange)
                else:
                    left += 1
                    worst += asking.worst_cost(question, teacher, sampling)
        return Plan(
            run=run,
            is_new=not run.recipe.exists(),
            prompts=prompts,
            questions=len(known) + left,
            answered=len(known),
            price=price,
            price_age=None if price is None else price.days_old(today()),
            cost=_cost(teacher.price, left, worst, [e.completion.usage for e in known]),
            seconds=_seconds(ledger, [e.leaf for e in known[-200:]], left, recipe.collect.concurrency),
            done=tuple(stage for stage in STAGES if read_marker(run, stage) is not None),
        )


def _cost(price: Price | None, left: int, worst: float, usage: Sequence[Usage]) -> Estimate:
    """US dollars for what is left to ask, retries aside: from earlier answers where there are enough, else
    a bound."""
    if left == 0 or price == FREE:
        return Estimate(0.0, 0.0, 0.0)
    if price is None:
        return UNKNOWN
    costs = [
        price.of(u.prompt_tokens, u.completion_tokens)
        for u in usage
        if u.prompt_tokens is not None and u.completion_tokens is not None
    ]
    if len(costs) < 10:
        return Estimate(None, None, worst)
    return prediction(costs, left, worst)


def prediction(costs: Sequence[float], left: int, worst: float) -> Estimate:
    """The sum of `left` more costs like these, with a 95 % interval for it, at most `worst`.

    The error is that of the mean of n costs and that of the sum itself: t * s * sqrt(left^2 / n + left),
    t by its first Cornish-Fisher term (Fisher and Cornish 1960).
    """
    n, z = len(costs), 1.96
    t = z + (z**3 + z) / (4 * (n - 1))
    expected = left * statistics.mean(costs)
    error = t * statistics.stdev(costs) * (left**2 / n + left) ** 0.5
    return Estimate(max(0.0, expected - error), expected, max(expected, min(worst, expected + error)))


def _unanswered(
    recipe: Recipe, prompts: PromptSet, teacher: asking.Teacher, ledger: Ledger
) -> list[asking.Question]:
    questions = plan_questions(prompts.train, recipe.collect.samples)
    found = asking.answers(questions, teacher, sampling_of(recipe), ledger)
    return [question for question, exchange in found if exchange is None]


def _seconds(ledger: Ledger, leaves: Sequence[int], left: int, concurrency: int) -> Estimate:
    if left == 0:
        return Estimate(0.0, 0.0, 0.0)
    took = (ledger.leaf(index).body.get("milliseconds") for index in leaves)
    each = sorted(milliseconds / 1000 for milliseconds in took if milliseconds is not None)
    if len(each) < 10:
        return UNKNOWN
    tenth, mean, rate = len(each) // 10, statistics.mean(each), left / concurrency
    return Estimate(rate * min(each[tenth], mean), rate * mean, rate * max(each[-1 - tenth], mean))
