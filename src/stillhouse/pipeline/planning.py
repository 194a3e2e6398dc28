"""What a run would do and cost, before it is done."""

from __future__ import annotations

import random
import statistics
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse import ask as asking
from stillhouse.collect import (
    Asked,
    PromptSet,
    asked_of,
    canaries_of,
    limits_of,
    load_prompts,
    sampling_of,
)
from stillhouse.collect.grow import Grown, grow, orders
from stillhouse.evaluate.verdict import Foresight, foresee
from stillhouse.ledger import Ledger
from stillhouse.money import FREE, UNKNOWN, Estimate, Price
from stillhouse.pipeline.setup import STAGES, admit_all, check, greedy, open_teachers, today
from stillhouse.prices import KnownPrice, price_of
from stillhouse.recipe import Recipe, Teacher, run_digest
from stillhouse.records import Watch, unwatched
from stillhouse.workspace import RunFolder, Workspace, locked, read_marker


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do. `run --dry-run` and `plan` print it; the real run makes the same one first."""

    run: RunFolder
    is_new: bool
    prompts: PromptSet  # before any is grown
    grown: int  # prompts that the ledger's answers have brought
    to_grow: int  # and those that are still to be grown; what they cost is not known
    questions: int  # to the teacher, over training and test prompts and those that are grown
    answered: int  # of these, already in the ledger
    canaries: int  # requests beside them, to see whether a teacher changes
    prices: tuple[tuple[str, KnownPrice | None, int | None], ...]  # of each teacher: model, price, days old
    cost: Estimate  # US dollars for what is left
    seconds: Estimate  # for asking what is left
    done: tuple[str, ...]  # stages that finished before
    foresight: Foresight  # what margin the test prompts can decide


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
    decisions = admit_all(recipe, ledger)
    grown: list[Grown] = []
    if orders(recipe, prompts):
        with open_teachers(recipe) as teachers:
            grown = grow(recipe, prompts, teachers[0], ledger)
    whole = prompts.whole([prompt for one in grown for prompt in one.prompts])
    to_grow = sum(one.left for one in grown)
    asked, sampling = asked_of(recipe, whole.train), sampling_of(recipe)
    if pilot:
        with locked(run), open_teachers(recipe, run.logs / "teacher.log") as teachers:
            run.logs.mkdir(exist_ok=True)
            asking.recover(run.shards, ledger, run.root.name)
            drawn = _unanswered(asked, teachers, sampling, ledger, recipe.run.seed, pilot)
            parts = [asking.Part(*each) for each in zip(teachers, decisions, drawn, strict=True)]
            asking.ask_all(parts, sampling, limits_of(recipe), ledger, run.root.name, watch, "pilot")
    with open_teachers(recipe) as teachers:
        in_batches = recipe.collect.mode == "batch"
        payees = [asking.at_batch_price(teacher) if in_batches else teacher for teacher in teachers]
        watched = zip(payees, decisions, asked, canaries_of(recipe, asked), strict=True)
        asked_of_each = [[(asking.Part(*each), sampling)] for each in watched]
        tested = asking.Part(teachers[0], decisions[0], Asked(prompts.test))
        asked_of_each[0].append((tested, greedy(recipe)))
        stocks = [_stock(each, ledger) for each in asked_of_each]
        left = sum(stock.left for stock in stocks)
        canaries = sum(stock.canaries for stock in stocks)
        answered = sum(stock.answered for stock in stocks)
        recent = [leaf for stock in stocks for leaf in stock.leaves]
        return Plan(
            run=run,
            is_new=not run.recipe.exists(),
            prompts=prompts,
            grown=sum(len(one.prompts) for one in grown),
            to_grow=to_grow,
            questions=answered + left,
            answered=answered,
            canaries=canaries,
            prices=tuple(_price(teacher) for teacher in (recipe.teacher, *recipe.teachers)),
            cost=_total([_cost(stock, to_grow > 0) for stock in stocks]),
            seconds=UNKNOWN
            if to_grow or (in_batches and left)
            else _seconds(ledger, recent[-200:], left + canaries, recipe.collect.concurrency),
            done=tuple(stage for stage in STAGES if read_marker(run, stage) is not None),
            foresight=foresee(prompts.test, recipe.evaluate.margin),
        )


def _price(teacher: Teacher) -> tuple[str, KnownPrice | None, int | None]:
    known = price_of(teacher, today())
    return teacher.model, known, None if known is None else known.days_old(today())


@dataclass(frozen=True, slots=True)
class _Stock:
    """Of what one teacher is asked: answered and left, canaries to come, the worst cost of all that is left
    (US dollars), the costs of answers that say them, and the leaves of the last answers."""

    price: Price | None
    answered: int
    left: int
    canaries: int
    worst: float
    costs: Sequence[float]
    leaves: Sequence[int]


def _stock(parts: Sequence[tuple[asking.Part, asking.Sampling]], ledger: Ledger) -> _Stock:
    """The same teacher stands in each part, at the price at which it is asked these questions."""
    answered, left, canaries, worst = 0, 0, 0, 0.0
    costs, leaves = array("d"), deque[int](maxlen=200)
    for part, sampling in parts:
        teacher, fresh = part.teacher, 0
        for question, exchange in asking.answers(part.questions, teacher, sampling, ledger):
            if exchange is None:
                fresh += 1
                worst += asking.worst_cost(question, teacher, sampling)
                continue
            answered += 1
            leaves.append(exchange.leaf)
            usage = exchange.completion.usage
            if teacher.price and usage.prompt_tokens is not None and usage.completion_tokens is not None:
                costs.append(teacher.price.of(usage.prompt_tokens, usage.completion_tokens))
        left += fresh
        if coming := asking.to_ask(part, fresh, sampling, ledger):
            assert part.canary is not None
            each = [asking.worst_cost(question, teacher, sampling) for question in part.canary.questions]
            canaries += coming
            worst += sum(each) * coming / len(each)
    return _Stock(parts[0][0].teacher.price, answered, left, canaries, worst, costs, list(leaves))


def _total(parts: Sequence[Estimate]) -> Estimate:
    """The sum, unknown in each figure that is unknown in a part. Intervals are added as if the errors of
    all teachers went the same way, which is never too narrow."""

    def add(figures: Sequence[float | None]) -> float | None:
        return None if None in figures else sum(figure for figure in figures if figure is not None)

    return Estimate(*(add([getattr(part, name) for part in parts]) for name in ("low", "expected", "high")))


def _cost(stock: _Stock, more: bool) -> Estimate:
    """US dollars for what is left to ask, retries aside: from earlier answers where there are enough, else
    a bound. Unknown where `more` prompts are still to be grown."""
    if stock.price == FREE or (stock.left == 0 and not more):
        return Estimate(0.0, 0.0, 0.0)
    if stock.price is None or more:
        return UNKNOWN
    if len(stock.costs) < 10:
        return Estimate(None, None, stock.worst)
    return prediction(stock.costs, stock.left + stock.canaries, stock.worst)


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
    asked: Sequence[Asked],
    teachers: Sequence[asking.Teacher],
    sampling: asking.Sampling,
    ledger: Ledger,
    seed: int,
    count: int,
) -> list[list[asking.Question]]:
    """`count` questions without an answer, drawn at random over all teachers, for each teacher its own."""
    drawn: list[tuple[int, asking.Question]] = []
    source, seen = random.Random(seed), 0
    for index, (teacher, what) in enumerate(zip(teachers, asked, strict=True)):
        for question, exchange in asking.answers(what, teacher, sampling, ledger):
            if exchange is not None:
                continue
            seen += 1  # reservoir sampling (Vitter 1985, algorithm R): each is kept with equal probability
            if len(drawn) < count:
                drawn.append((index, question))
            elif (place := source.randrange(seen)) < count:
                drawn[place] = (index, question)
    return [[question for index, question in drawn if index == wanted] for wanted in range(len(teachers))]


def _seconds(ledger: Ledger, leaves: Sequence[int], left: int, concurrency: int) -> Estimate:
    if left == 0:
        return Estimate(0.0, 0.0, 0.0)
    took = (ledger.leaf(index).body.get("milliseconds") for index in leaves)
    each = sorted(milliseconds / 1000 for milliseconds in took if milliseconds is not None)
    if len(each) < 10:
        return UNKNOWN
    tenth, mean, rate = len(each) // 10, statistics.mean(each), left / concurrency
    return Estimate(rate * min(each[tenth], mean), rate * mean, rate * max(each[-1 - tenth], mean))
