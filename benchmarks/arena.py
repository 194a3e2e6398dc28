"""stillhouse's collector against stillhouse's guard: what a copy still learns, and whom else it costs.

    .venv/bin/python benchmarks/arena.py [--quick] [--json FILE] [--folder FOLDER]

SIMULATED accounts (docs/simulation.md), in one process: nothing is sent anywhere. The collect stage asks the
shipped teacher; what it asked is put before each defence as if accounts of the guard had sent it, and what
comes after a defence ended an account was not answered. The train stage makes students of given numbers of
exchanges, by which the exchanges that got through are turned into the share of the teacher's score that they
buy. The same defences, set on ordinary accounts of the calibration month, look at ordinary accounts of the
test month. A copier has the way that it is given and keeps to it, except that it knows nothing is to be had
from an account that was ended. --quick trains nothing: its curve is the example of prices_study.py. The
students are those of queries.py, whose --folder can be given here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
from prices_study import EXAMPLE, TODAY
from queries import FULL as TRAINING
from queries import recipe_of, score_of, stillhouse, student_of
from rows import DATA, Row, arguments, header, need, show, working_folder
from traffic.people import people, requests
from traffic.sources import shelf
from traffic.wording import Month

from stillhouse.guard.calibrating import threshold
from stillhouse.guard.clusters import clusters
from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.likeness import Sketch, note
from stillhouse.guard.limits import Step
from stillhouse.guard.pricing import Bounds, Learned, best_levels, bill, copied, steps_of
from stillhouse.guard.pricing import Month as Used
from stillhouse.guard.scoring import score, shipped
from stillhouse.guard.seen import seen_of
from stillhouse.models import source_folder
from stillhouse.stats import wilson

KEY = b"the benchmark's key, of 32 bytes"
SEED = 8
DAY = 86_400.0
BEGIN = 1_790_812_800.0  # of the month in which copies are made: 1 October 2026
CAMPAIGN = 3.0  # days that an account works
SHARES = (0.001, 0.01, 0.03, 0.1)  # of ordinary accounts, that a defence may stop as it was set
SEARCHED = (12, 16, 20, 30, 40, 60, 100, 200)  # exchanges of an account at which clusters are looked for
FOUND = 0.4  # of an operator's accounts


@dataclass(frozen=True, slots=True)
class Scale:
    """`ordinary` accounts of either month; a copy wants `wanted` exchanges; students of `budgets` of them."""

    ordinary: int
    wanted: int
    budgets: Sequence[int]


FULL = Scale(1_000, 3_000, (750, 1_500, 3_000))
QUICK = Scale(40, 100, ())


@dataclass(frozen=True, slots=True)
class Exchange:
    body: dict[str, Any]
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Way:
    """How a copy is made: over how many accounts, with so many ordinary requests to each of its own, all
    accounts in the same days or each in days of its own; `broad` asks instructions of every kind in place of
    the desk's questions."""

    name: str
    accounts: int
    cover: int = 0
    together: bool = True
    broad: bool = False


WAYS = (
    Way("one account", 1),
    Way("one account, 3 of 4 requests ordinary", 1, cover=3),
    Way("50 accounts in the same days", 50),
    Way("50 accounts, each in days of its own", 50, together=False),
    Way("500 accounts in the same days", 500),
    Way("one account, broad questions", 1, broad=True),
)
FIXED, SET = ("none", "clusters"), ("limits", "prices", "detection", "together")


class Watch:
    """What the guard knows of one account."""

    def __init__(self) -> None:
        self.evidence, self.sketch = Evidence(), Sketch()
        self.highest = 0.0
        self.input_tokens = self.output_tokens = 0

    def see(self, exchange: Exchange, at: float) -> float:
        seen = seen_of(KEY, exchange.body, "chat/completions", exchange.output_tokens, at)
        use = observe(self.evidence, seen)
        note(self.sketch, self.evidence, seen, str(exchange.body["model"]))
        self.highest = max(self.highest, score(self.evidence, use, shipped()))
        self.input_tokens += exchange.input_tokens
        self.output_tokens += exchange.output_tokens
        return self.highest

    @property
    def used(self) -> Used:
        return Used("", self.input_tokens, self.output_tokens)


def customers(month: Month, count: int) -> dict[str, Watch]:
    """A month of so many ordinary accounts."""
    found: dict[str, Watch] = {}
    for person in people(month, SEED, round(count / 0.8)):
        if person.side == "ordinary" and len(found) < count:
            watch = found[person.id] = Watch()
            for request in requests(person, month, SEED):
                exchange = Exchange(request.body(), request.input_tokens, request.output_tokens)
                watch.see(exchange, request.at)
    return found


def collected(folder: Path, count: int) -> list[Exchange]:
    """What stillhouse's collect stage asks the shipped teacher, and how long the answers are."""
    tree = recipe_of("text", count, TRAINING.seeds[0], TRAINING)
    path = folder / "collected.json"
    path.write_text(json.dumps(tree))
    run = Path(stillhouse(folder, "collect", path.name)["folder"])
    rows = pq.read_table(run / "exchanges.parquet").to_pylist()
    longest = tree["collect"]["max_tokens"]
    return [
        Exchange(
            body_of(
                [{"role": each["role"], "content": each["content"]} for each in row["messages"]], longest
            ),
            row["prompt_tokens"],
            row["completion_tokens"],
        )
        for row in rows
    ]


def broad(count: int) -> list[Exchange]:
    """The same collector with the test month's instructions of every kind. No student is made of these: what
    they teach is taken from the desk's curve, as if as many of them were needed."""
    draw = Random(SEED)
    various, school = (
        [text for pool in shelf("test").of(names) for text in pool.prompts]
        for names in ("ultrafeedback+alpacaeval+wizardlm", "gsm8k")
    )
    texts = draw.sample(various, min(count, len(various)))
    texts += draw.sample(school, count - len(texts))
    draw.shuffle(texts)
    return [
        Exchange(
            body_of([{"role": "user", "content": text.prompt}], 1_024),
            len(text.prompt) // 4 + 8,
            min(1_024, len(text.answer) // 4 or round(draw.lognormvariate(5.2, 0.6))),
        )
        for text in texts
    ]


def body_of(messages: list[dict[str, str]], longest: int) -> dict[str, Any]:
    """As the collect stage asks."""
    return {
        "model": "house-large-1",
        "messages": messages,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": longest,
    }


def curve_of(folder: Path, budgets: Sequence[int]) -> tuple[Learned, ...]:
    """The share of the teacher's score that students of so many exchanges keep, by stillhouse's own train
    stage: the mean over seeds, and never less than with fewer exchanges. It depends on nothing of the guard,
    and is kept in the folder."""
    if not budgets:
        return EXAMPLE
    known = folder / f"curve-{'-'.join(map(str, budgets))}.json"
    if known.exists():
        return tuple(Learned(*point) for point in json.loads(known.read_text()))
    teacher = folder / "teacher" / "model"
    teacher.parent.mkdir(exist_ok=True)
    if not teacher.exists():
        teacher.symlink_to(source_folder("embedded:desk"))
    level = score_of(teacher, TRAINING.test)
    kept, points = 0.0, []
    for budget in budgets:
        runs = [student_of(folder, "text", budget, seed, TRAINING, None) for seed in TRAINING.seeds]
        kept = max(kept, fmean(score_of(run / "student", TRAINING.test) for run in runs) / level)
        points.append(Learned(budget, kept))
    known.write_text(json.dumps([[point.exchanges, point.kept] for point in points]))
    return tuple(points)


def retention(curve: Sequence[Learned], exchanges: float) -> float:
    """Straight over the logarithm between two points; from nothing to the first one straight as well, which
    is more than so few teach."""
    if exchanges <= curve[0].exchanges:
        return curve[0].kept * exchanges / curve[0].exchanges
    for before, after in pairwise(curve):
        if exchanges <= after.exchanges:
            share = math.log(exchanges / before.exchanges) / math.log(after.exchanges / before.exchanges)
            return before.kept + share * (after.kept - before.kept)
    return curve[-1].kept


@dataclass(frozen=True, slots=True)
class Copy:
    """What the guard saw of one copy: for each account after how many exchanges and requests it rose to which
    score; at how many exchanges an account its accounts were found to be one operator's, and which were."""

    trails: tuple[tuple[tuple[int, float], ...], ...]
    wanted: tuple[int, ...]
    cover: int
    found_at: int | None
    in_cluster: frozenset[int]


def made(way: Way, exchanges: Sequence[Exchange], honest: dict[str, Watch]) -> Copy:
    """A copy whose accounts share the exchanges out, before the guard's eyes."""
    parts = [exchanges[number :: way.accounts] for number in range(way.accounts)]
    longest = max(map(len, parts))
    marks = [mark for mark in SEARCHED if mark < longest] + [longest]
    trails: list[tuple[tuple[int, float], ...]] = []
    sketches: dict[int, dict[str, Sketch]] = {mark: {} for mark in marks}
    for number, part in enumerate(parts):
        draw = Random(f"{way.name}/{number}")
        first = 10.0 if way.together else draw.uniform(0.0, 27.0)
        sent = len(part) * (1 + way.cover)
        times = iter(sorted(BEGIN + (first + draw.random() * CAMPAIGN) * DAY for _ in range(sent)))
        cover = covering(number) if way.cover else iter(())
        watch, trail = Watch(), []
        for count, exchange in enumerate(part, 1):
            for other in islice(cover, way.cover):
                watch.see(other, next(times))
            before = watch.highest
            if watch.see(exchange, next(times)) > before:
                trail.append((count, watch.highest))
            if count in sketches:
                sketches[count][str(number)] = Sketch.unpacked(watch.sketch.packed())
        for mark in marks:
            sketches[mark].setdefault(str(number), watch.sketch)
        trails.append(tuple(trail))
    found_at, members = found(sketches, honest) if way.accounts > 1 else (None, frozenset())
    return Copy(tuple(trails), tuple(map(len, parts)), way.cover, found_at, members)


def covering(number: int) -> Iterator[Exchange]:
    """The requests of an ordinary front-end of many users, over and over."""
    person = people("test", SEED + 1, 50, {"chat:many": 1.0})[number % 50]
    while True:
        for request in requests(person, "test", SEED + 1):
            yield Exchange(request.body(), request.input_tokens, request.output_tokens)


def found(
    sketches: dict[int, dict[str, Sketch]], honest: dict[str, Watch]
) -> tuple[int | None, frozenset[int]]:
    others = {name: watch.sketch for name, watch in honest.items()}
    for mark, theirs in sketches.items():
        for cluster in clusters(others | theirs, Random(mark)).clusters:
            members = frozenset(int(name) for name in cluster.accounts if name in theirs)
            if len(members) >= FOUND * len(theirs) and 2 * len(members) > len(cluster.accounts):
                return mark, members
    return None, frozenset()


@dataclass(frozen=True, slots=True)
class Settings:
    """The defences, each set so that it stops a share of the calibration month's ordinary accounts: requests
    a month, a schedule of prices, a score."""

    requests: float
    steps: tuple[Step, ...]
    line: float


def settings(share: float, honest: Iterable[Watch], copy: Used) -> Settings:
    seen = list(honest)
    levels = best_levels([each.used for each in seen], TODAY, copy.tokens, Bounds(share=share))
    return Settings(
        threshold([each.evidence.requests for each in seen], share).score,
        steps_of(levels, TODAY),
        threshold([each.highest for each in seen], share).score,
    )


def through(copy: Copy, defence: str, at: Settings, exchange: Used, budget: float) -> int:
    """Exchanges that are answered. `exchange` is the mean one, `budget` what the whole copy costs today."""
    everything = defence == "together"
    left = list(copy.wanted)
    for number, trail in enumerate(copy.trails):
        if defence == "limits" or everything:
            left[number] = int(min(left[number], at.requests // (1 + copy.cover)))
        if defence == "detection" or everything:
            passed = next((count for count, reached in trail if reached > at.line), left[number])
            left[number] = min(left[number], passed)
        if (defence == "clusters" or everything) and number in copy.in_cluster:
            left[number] = min(left[number], copy.found_at or left[number])
    if defence == "prices" or everything:
        return affordable(left, at.steps, exchange, budget)
    return sum(left)


def affordable(left: Sequence[int], steps: tuple[Step, ...], exchange: Used, budget: float) -> int:
    """Of so many exchanges an account those that the budget pays for, dealt out evenly."""
    low, high = 0, max(left)
    while low < high:
        middle = (low + high + 1) // 2
        counts = [min(middle, each) for each in left if each]
        cost = sum(bill(steps, copied(exchange, each)) for each in counts)
        low, high = (middle, high) if cost <= budget else (low, middle - 1)
    return sum(min(low, each) for each in left)


def harmed(defence: str, at: Settings, honest: dict[str, Watch], clustered: set[str]) -> list[bool]:
    """Of the test month's ordinary accounts, which are stopped or pay over 5 % more."""
    found = []
    for name, watch in honest.items():
        hits = {
            "limits": watch.evidence.requests > at.requests,
            "prices": bill(at.steps, watch.used) > 1.05 * bill((TODAY,), watch.used),
            "detection": watch.highest > at.line,
            "clusters": name in clustered,
        }
        found.append(any(hits.values()) if defence == "together" else hits.get(defence, False))
    return found


def mean_of(exchanges: Sequence[Exchange]) -> Used:
    sides = ([each.input_tokens for each in exchanges], [each.output_tokens for each in exchanges])
    return Used("", *(round(fmean(side)) for side in sides))


def figures(folder: Path, scale: Scale) -> list[Row]:
    first, second = customers("calibrate", scale.ordinary), customers("test", scale.ordinary)
    exchanges = collected(folder, scale.wanted)
    curve = curve_of(folder, scale.budgets)
    asked = {False: exchanges, True: broad(scale.wanted)}
    means = {of: mean_of(each) for of, each in asked.items()}
    budgets = {of: bill((TODAY,), copied(mean, scale.wanted)) * 1.000_001 for of, mean in means.items()}
    sketches = {name: watch.sketch for name, watch in second.items()}
    alone = {name for each in clusters(sketches, Random(SEED)).clusters for name in each.accounts}
    copies = {way: made(way, asked[way.broad], second) for way in WAYS}
    rows = [
        Row("ordinary accounts of either month", len(second), ""),
        Row("exchanges that a copy wants", len(exchanges), ""),
        *(
            Row(
                f"{'trained' if scale.budgets else 'example'} curve: {point.exchanges:,.0f} exchanges keep",
                point.kept,
                "",
            )
            for point in curve
        ),
    ]
    for way, copy in copies.items():
        if way.accounts > 1:
            rows.append(Row(f"{way.name}: exchanges an account until found as one", copy.found_at, ""))
    for share in SHARES:
        at = {of: settings(share, first.values(), copied(mean, scale.wanted)) for of, mean in means.items()}
        for defence in (*(FIXED if share == SHARES[0] else ()), *SET):
            what = defence if defence in FIXED else f"{defence}, set to {share:.1%}"
            hits = harmed(defence, at[False], second, alone)
            span = wilson(sum(hits), len(hits))
            rows.append(Row(f"{what}: ordinary accounts harmed", span.value, "", span.low, span.high))
            for way, copy in copies.items():
                of = way.broad
                count = through(copy, defence, at[of], means[of], budgets[of])
                rows.append(
                    Row(f"{what}; {way.name}: kept", retention(curve, count), f"({count:,} exchanges)")
                )
    return rows


def main() -> None:
    options = arguments((__doc__ or "").split("\n", 1)[0], resumable=True)
    need(DATA / "traffic")
    scale = QUICK if options.quick else FULL
    with working_folder(options.folder) as folder:
        rows = figures(folder, scale)
    show(header(SEED, ["stillhouse", "torch"]), rows, options.json)


if __name__ == "__main__":
    main()
