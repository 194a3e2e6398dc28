"""What a run would do and cost, before it is done."""

from __future__ import annotations

import math
import random
import statistics
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stillhouse import ask as asking
from stillhouse.ask.pace import MARGIN
from stillhouse.ask.questions import as_exchange, looked_up
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
from stillhouse.ledger.permissions import standings
from stillhouse.money import FREE, UNKNOWN, Estimate, Price
from stillhouse.pipeline.further import variants
from stillhouse.pipeline.landing import with_landed
from stillhouse.pipeline.reading import most_readings
from stillhouse.pipeline.setup import (
    STAGES,
    admit_all,
    check,
    check_reading,
    greedy,
    open_teachers,
    today,
)
from stillhouse.prices import KnownPrice, price_of
from stillhouse.recipe import Collect, Recipe, Teacher, run_digest
from stillhouse.records import Watch, unwatched
from stillhouse.workspace import RunFolder, Workspace, locked, read_marker

ENOUGH = 10  # answers from which on those to come are reckoned by them


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
    to_send: int  # requests for the others: the same question goes once, one whose answer was erased never
    canaries: int  # requests beside them, to see whether a teacher changes
    prices: tuple[tuple[str, KnownPrice | None, int | None], ...]  # of each teacher: model, price, days old
    cost: Estimate  # US dollars for what is left
    seconds: Estimate  # for asking what is left, retries aside
    slowed_by: str  # the setting of [collect] that `seconds` follows from; empty where none does
    done: tuple[str, ...]  # stages that finished before
    to_judge: int  # requests to a judge at most, whose cost is known only by what it is asked
    to_read: int  # texts that the teacher reads at its endpoint in all trainings at most; in `cost`
    trainings: int  # further students that the evaluation trains for comparison
    foresight: Foresight  # what margin the test prompts can decide
    reading: str  # how the tokenizers of student and teacher compare; empty where that does not matter
    terms: tuple[dict[str, Any], ...]  # what the gate decided about each use of each teacher
    unmet: tuple[str, ...]  # what a release of this recipe would still lack of what it owes
    unknown: tuple[str, ...]  # what it may owe beside that, by terms that nobody knows


def plan(
    recipe: Recipe,
    workspace: Workspace,
    ledger: Ledger,
    prompts: PromptSet | None = None,
    pilot: int = 0,
    watch: Watch = unwatched,
) -> Plan:
    """What a run of this recipe would do, and what the rest of it would cost by the answers that are there.

    Asks no model and records only what servers say of their terms and the gate's decision, unless `pilot`
    says how many unanswered training questions, drawn at random, are to be asked now: their answers are kept
    and never asked again. Raises what `check` raises, GateRefused, and with a pilot what `ask` raises.
    """
    run = workspace.run(recipe.run.name, run_digest(recipe))
    prompts = with_landed(prompts or load_prompts(recipe), recipe, ledger)
    check(recipe, prompts)
    reading = check_reading(recipe)
    admitted = admit_all(recipe, ledger)
    decisions = admitted.learned
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
        stocks = [_Stock(teacher, recipe.collect) for teacher in teachers]
        watched = zip(teachers, decisions, asked, canaries_of(recipe, asked), strict=True)
        for stock, each in zip(stocks, watched, strict=True):
            stock.add(asking.Part(*each), sampling, ledger, recipe.collect.mode == "batch")
        tested = asking.Part(teachers[0], decisions[0], Asked(prompts.test))
        stocks[0].add(tested, greedy(recipe), ledger)
        answered = sum(stock.answered for stock in stocks)
        done = tuple(stage for stage in STAGES if read_marker(run, stage) is not None)
        trained, further = "train" in done, [each.kind for each in variants(recipe)]
        students = (not trained) + (0 if "evaluate" in done else len(further) - further.count("hard_labels"))
        to_read = most_readings(recipe, sum(map(len, asked)), students, trained)
        seconds, slowed_by = UNKNOWN, ""
        judge = recipe.evaluate.judge
        judged = 0 if judge is None else judge.count or len(prompts.test)  # each in both orders
        if not to_grow and (recipe.collect.mode == "online" or not any(stock.sending for stock in stocks)):
            seconds, slowed_by = slowest([_seconds(stock, recipe.collect, ledger) for stock in stocks])
        return Plan(
            run=run,
            is_new=not run.recipe.exists(),
            prompts=prompts,
            grown=sum(len(one.prompts) for one in grown),
            to_grow=to_grow,
            questions=answered + sum(stock.left for stock in stocks),
            answered=answered,
            to_send=sum(stock.sending - stock.canaries for stock in stocks),
            canaries=sum(stock.canaries for stock in stocks),
            prices=tuple(_price(teacher) for teacher in (recipe.teacher, *recipe.teachers)),
            cost=_total(
                [
                    _reading_cost(stocks[0], to_read, recipe.train.max_length),
                    *(UNKNOWN if to_grow and s.teacher.price != FREE else _cost(s) for s in stocks),
                ]
            ),
            seconds=seconds,
            slowed_by=slowed_by,
            done=done,
            to_read=to_read,
            to_judge=2 * min(judged, len(prompts.test)),
            trainings=len(variants(recipe)),
            foresight=foresee(prompts.test, recipe.evaluate.margin),
            reading=reading,
            terms=tuple(_decided(ledger, leaf) for leaf in admitted.every),
            unmet=admitted.owed.unmet,
            unknown=admitted.owed.unknown,
        )


def _decided(ledger: Ledger, leaf: int) -> dict[str, Any]:
    """A decision's body; where it rests on permissions of so many, with `exchanges_left` by the one of which
    least is left, which is `left_by`."""
    body, known = ledger.leaf(leaf).body, standings(ledger)
    counted = body.get("teacher_permissions", body.get("permissions", ()))
    rests_on = (known[leaf] for leaf in counted if leaf in known)
    left = [(each.volume - each.used, each.leaf) for each in rests_on if each.volume is not None]
    return body | dict(zip(("exchanges_left", "left_by"), min(left), strict=True)) if left else body


def _price(teacher: Teacher) -> tuple[str, KnownPrice | None, int | None]:
    known = price_of(teacher, today())
    return teacher.model, known, None if known is None else known.days_old(today())


@dataclass(slots=True)
class _Stock:
    """What one teacher has answered and is still to be asked: `left` are the questions without an answer,
    `due` the requests that they and the canaries make, with the worst cost of all of them (US dollars), by
    the price at which they are asked. Tokens are of answers that say them, `leaves` of the last ones."""

    teacher: asking.Teacher
    settings: Collect
    answered: int = 0
    left: int = 0
    canaries: int = 0
    due: dict[Price | None, tuple[int, float]] = field(default_factory=dict)
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    completion_tokens: array[int] = field(default_factory=lambda: array("q"))
    leaves: deque[int] = field(default_factory=lambda: deque(maxlen=200))

    @property
    def sending(self) -> int:
        return sum(count for count, _ in self.due.values())

    def add(
        self, part: asking.Part, sampling: asking.Sampling, ledger: Ledger, in_batches: bool = False
    ) -> None:
        payee = asking.at_batch_price(self.teacher) if in_batches else self.teacher
        worst, sent = 0.0, set[int]()  # of the keys the first 64 bits
        for group in looked_up(part.questions, payee, sampling, ledger):
            missing = [key for _, key, stored in group if stored is None]
            unknown = ledger.unknown(missing) if self.settings.unknown == "leave" else set()
            for question, key, stored in group:
                exchange = None if stored is None else as_exchange(question, payee, stored)
                if exchange is not None:
                    self.answered += 1
                    self.leaves.append(exchange.leaf)
                    usage = exchange.completion.usage
                    if usage.prompt_tokens is not None and usage.completion_tokens is not None:
                        self.prompt_tokens.append(usage.prompt_tokens)
                        self.completion_tokens.append(usage.completion_tokens)
                    continue
                self.left += 1
                erased = stored is not None and stored.erased
                if payee.url is None or erased or key in unknown or int(key[:16], 16) in sent:
                    continue
                sent.add(int(key[:16], 16))
                worst += asking.worst_cost(question, payee, sampling)
        self._owe(payee.price, len(sent), worst)
        if part.canary is not None:
            coming = asking.to_ask(part, len(sent), sampling, ledger, in_batches)
            each = [asking.worst_cost(question, self.teacher, sampling) for question in part.canary.questions]
            self.canaries += coming
            self._owe(self.teacher.price, coming, coming * statistics.mean(each))

    def _owe(self, price: Price | None, count: int, worst: float) -> None:
        before = self.due.get(price, (0, 0.0))
        self.due[price] = before[0] + count, before[1] + worst


def _total(parts: Sequence[Estimate]) -> Estimate:
    """The sum, unknown in each figure that is unknown in a part. Intervals are added as if the errors of
    all teachers went the same way, which is never too narrow."""

    def add(figures: Sequence[float | None]) -> float | None:
        return None if None in figures else sum(figure for figure in figures if figure is not None)

    return Estimate(*(add([getattr(part, name) for part in parts]) for name in ("low", "expected", "high")))


def _cost(stock: _Stock) -> Estimate:
    """US dollars for what is left to ask, retries aside: from earlier answers where there are enough, else
    a bound."""
    return _total([_bill(stock, price, *due) for price, due in stock.due.items()])


def _bill(stock: _Stock, price: Price | None, count: int, worst: float) -> Estimate:
    if price == FREE or count == 0:
        return Estimate(0.0, 0.0, 0.0)
    if price is None:
        return UNKNOWN
    if len(stock.prompt_tokens) < ENOUGH:
        return Estimate(None, None, worst)
    costs = list(map(price.of, stock.prompt_tokens, stock.completion_tokens))
    return prediction(costs, count, worst)


def _reading_cost(stock: _Stock, count: int, longest: int) -> Estimate:
    """US dollars for so many rows that are read, prompt and answer as input: by earlier answers where there
    are enough, else a bound, as no row has more than `longest` tokens."""
    price = stock.teacher.price
    if price == FREE or count == 0:
        return Estimate(0.0, 0.0, 0.0)
    if price is None:
        return UNKNOWN
    worst = count * price.of(longest, 1)
    if len(stock.prompt_tokens) < ENOUGH:
        return Estimate(None, None, worst)
    tokens = map(int.__add__, stock.prompt_tokens, stock.completion_tokens)
    return prediction([price.of(each, 1) for each in tokens], count, worst)


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


def _seconds(stock: _Stock, settings: Collect, ledger: Ledger) -> tuple[Estimate, str]:
    """How long what is left takes by each of the bounds on asking, and which of them is the slowest."""
    count = stock.sending
    if count == 0:
        return Estimate(0.0, 0.0, 0.0), ""
    took = (ledger.leaf(index).body.get("milliseconds") for index in stock.leaves)
    each = sorted(milliseconds / 1000 for milliseconds in took if milliseconds is not None)
    times = [(_by_latency(each, count, settings.concurrency), "concurrency")]
    if settings.requests_per_minute is not None:
        known = 60 * count / (MARGIN * settings.requests_per_minute)
        times.append((Estimate(known, known, known), "requests_per_minute"))
    if settings.tokens_per_minute is not None:
        by_tokens = UNKNOWN
        if len(stock.prompt_tokens) >= ENOUGH:
            used = list(map(int.__add__, stock.prompt_tokens, stock.completion_tokens))
            by_tokens = _scaled(prediction(used, count, math.inf), 60 / (MARGIN * settings.tokens_per_minute))
        times.append((by_tokens, "tokens_per_minute"))
    return slowest(times)


def _by_latency(each: Sequence[float], count: int, concurrency: int) -> Estimate:
    """From the seconds that earlier requests took, shortest first."""
    if len(each) < ENOUGH:
        return UNKNOWN
    tenth, mean, rounds = len(each) // 10, statistics.mean(each), count / concurrency
    return Estimate(rounds * min(each[tenth], mean), rounds * mean, rounds * max(each[-1 - tenth], mean))


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    figures = (estimate.low, estimate.expected, estimate.high)
    return Estimate(*(None if figure is None else factor * figure for figure in figures))


def slowest(times: Sequence[tuple[Estimate, str]]) -> tuple[Estimate, str]:
    """The time of what happens side by side, and the name of what takes longest. Where one time is unknown,
    the others say only how long it takes at least."""

    def longest(name: str) -> tuple[float | None, str]:
        known = [(value, who) for each, who in times if (value := getattr(each, name)) is not None]
        return max(known, default=(None, ""))

    if any(each.expected is None for each, _ in times):
        low, who = longest("low")
        return Estimate(low, None, None), who
    (expected, who), (low, _), (high, _) = map(longest, ("expected", "low", "high"))
    return Estimate(low, expected, high), who
