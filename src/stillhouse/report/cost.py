"""What the run cost: money, time and compute, stage by stage."""

from __future__ import annotations

import math
from typing import Any

from stillhouse.money import UNKNOWN as NOT_KNOWN
from stillhouse.money import Estimate
from stillhouse.report.figures import (
    UNKNOWN,
    at,
    count,
    duration,
    money,
    number,
    percent,
    plural,
    scaled,
)
from stillhouse.report.layout import IMPORTED, absent, pairs, section, table
from stillhouse.report.markup import Html, join, short, tag
from stillhouse.report.read import STAGES, Facts, dropped


def cost(facts: Facts) -> Html:
    title = "Money, time and compute"
    if not any(facts.markers.values()) and not facts.evaluation:
        return section("cost", title, "", absent("Nothing spent yet.", "No stage has finished."))
    seconds = {stage: _seconds(facts, stage) for stage in STAGES}
    known = [value for value in seconds.values() if value is not None]
    total = number(facts.evaluation, "seconds", "total")
    whole = sum(known) if known else None
    longest = max(known, default=0.0) or 1.0
    rows: list[tuple[object, ...]] = [
        (
            stage,
            tag("td", tag("span", style=f"width:{100 * (seconds[stage] or 0) / longest:.2f}%"), class_="bar"),
            duration(seconds[stage]),
            tag("td", _work(facts, stage), class_="words"),
        )
        for stage in STAGES
    ]
    sums = f"All stages together {duration(whole)}."
    if total is not None:
        sums += f" Collect to evaluate {duration(total)}."
    return section(
        "cost",
        title,
        "Times are of each stage’s last run; an answer that the workspace held already costs nothing again.",
        table("Stages", ("stage", "", "time", "work"), rows, words=(0, 3), class_="stages"),
        tag("p", sums, class_="said"),
        tag("h3", "Money"),
        pairs(_money(facts)),
        tag("h3", "Compute"),
        pairs(_compute(facts)),
    )


def _seconds(facts: Facts, stage: str) -> float | None:
    value = number(facts.evaluation, "seconds", stage)
    return number(facts.markers[stage], "seconds") if value is None else value


def _work(facts: Facts, stage: str) -> str:
    def n(*path: str) -> float | None:
        return number(facts.result(stage, *path))

    if not facts.markers[stage]:
        return "not finished"
    if stage == "collect":
        unknown = n("unknown")
        more = f", {count(unknown)} sent with unknown outcome" if unknown else ""
        return (
            f"{plural(n('prompts'), 'prompt')}: {count(n('sent'))} sent, {count(n('reused'))} reused,"
            f" {count(n('failed'))} failed{more}; {scaled(n('prompt_tokens'))} tokens in,"
            f" {scaled(n('completion_tokens'))} out"
        )
    if stage == "curate":
        return f"{count(n('kept'))} kept, {count(dropped(facts))} dropped"
    if stage == "train":
        rate = None
        if n("tokens") is not None and n("seconds"):
            rate = (n("tokens") or 0.0) / (n("seconds") or 1.0)
        speed = f" ({scaled(rate)} tokens/s)" if rate is not None else ""
        how = [short(str(facts.result(stage, key)), 24) for key in ("dtype", "device")]
        numbers_ = "".join(f", {name}" for name in how if name != "None")
        return f"{plural(n('steps'), 'step')}, {scaled(n('tokens'))} tokens{speed}{numbers_}"
    if stage == "evaluate":
        return f"{count(number(facts.evaluation, 'student', 'n'))} test prompts for each system"
    files = facts.result(stage, "files")
    return plural(len(files) if isinstance(files, dict) else None, "file")


def imported(facts: Facts) -> bool:
    """Whether answers were collected elsewhere and read from a file: then the bill is not known here."""
    return any(teacher.get("imported") is True for teacher in _teachers(facts))


def served_here(facts: Facts) -> bool:
    """Whether the run itself serves every teacher, without a price: then nobody sends a bill."""
    teachers = _teachers(facts)
    if not teachers or imported(facts):
        return False
    return not any(teacher.get("endpoint") or teacher.get("price") for teacher in teachers)


def _teachers(facts: Facts) -> list[dict[str, Any]]:
    """[teacher] and [[teachers]] of the recipe, as far as it could be read."""
    more = at(facts.recipe, "teachers")
    found = [at(facts.recipe, "teacher"), *(more if isinstance(more, list) else [])]
    return [teacher for teacher in found if isinstance(teacher, dict)]


def bill(facts: Facts) -> Estimate:
    """US dollars that this run owes its teacher, training and test prompts together.

    What it owes a judge is not in it. `low` is for the answers that it bought; `high` adds requests without
    an answer, which may have been billed too; `expected` is known where there are none. UNKNOWN without a
    price and for imported answers.
    """
    costs = [facts.result(stage, "cost") for stage in ("collect", "evaluate") if facts.markers[stage]]
    lows, highs = ([number(cost, end) for cost in costs] for end in ("low", "high"))
    low = sum(cost or 0.0 for cost in lows)
    high = max(
        (cost or 0.0 for cost in highs), default=0.0
    )  # what evaluate counts begins with what collect spent
    if imported(facts) or not costs or None in (*lows, *highs):
        return NOT_KNOWN
    judged = number(facts.result("evaluate", "judge", "billed")) or 0.0  # both hold the judge's bill too
    low, high = low - judged, high - judged
    return Estimate(low, low, low) if math.isclose(low, high, abs_tol=1e-9) else Estimate(low, None, high)


def said(estimate: Estimate) -> str:
    """`US$ 4.10`, `US$ 3.20 to US$ 6.80` or `unknown`."""
    if estimate.expected is not None or estimate.low is None:
        return money(estimate.expected)
    return f"{money(estimate.low)} to {money(estimate.high)}"


def requests(facts: Facts, key: str) -> float | None:
    """`sent`, `reused` or `failed` of the last call, or `unknown` of the run; of collect alone where the run
    was not evaluated."""
    known = number(facts.evaluation, "exchanges", key)
    return number(facts.result("collect", key)) if known is None else known


def _rates(facts: Facts) -> object:
    """What each teacher's answers were reckoned by, who told it and when."""
    teachers = _teachers(facts)
    if served_here(facts):
        return f"none applies: the run serves the {'teachers' if len(teachers) > 1 else 'teacher'} itself"
    if not teachers:
        return UNKNOWN
    asked = facts.result("collect", "teachers")
    found = [at(who, "price") for who in asked] if isinstance(asked, list) else []
    if len(found) != len(teachers):  # of a run from before each teacher's was kept
        found = [facts.result("collect", "price"), *([None] * (len(teachers) - 1))]
    rates = [_rate(*each) for each in zip(teachers, found, strict=True)]
    if len(teachers) == 1:
        return rates[0]
    named = (f"{short(str(who.get('model')), 60)}: {rate}" for who, rate in zip(teachers, rates, strict=True))
    return join(*(tag("div", line) for line in named))


def _rate(teacher: dict[str, Any], found: object) -> str:
    """The price of one teacher: the recipe's, else the one that collect found recorded."""
    given = teacher.get("price")
    price = given if isinstance(given, dict) else found
    if teacher.get("imported") is True:
        return IMPORTED
    if price is not given and not teacher.get("endpoint"):
        return "none applies: the run serves it itself"
    if not isinstance(price, dict):
        return "none known"
    rate = f"US$ {number(price, 'input')} in, {number(price, 'output')} out, per million tokens"
    if price is given:
        return f"{rate}, by the recipe"
    note = price.get("note")
    return f"{rate}{f' ({note})' if note else ''}, read on {price.get('read_on')} at {price.get('source')}"


def _money(facts: Facts) -> list[tuple[str, object]]:
    owed = "nothing; its computing is not priced" if served_here(facts) else said(bill(facts))
    cap = number(facts.recipe, "collect", "max_cost")
    unknown = requests(facts, "unknown")
    words = f"{count(unknown)}, counted as possibly billed" if unknown else count(unknown)
    return [
        ("price", _rates(facts)),
        ("billed", owed),
        *_judges_bill(facts),
        ("cap", money(cap) if cap is not None else "none set" if facts.recipe else UNKNOWN),
        (
            "requests",
            ", ".join(f"{count(requests(facts, key))} {key}" for key in ("sent", "reused", "failed")),
        ),
        ("sent, unknown", words),
    ]


def _judges_bill(facts: Facts) -> list[tuple[str, object]]:
    """On top of the teacher's; nothing where no judge was asked."""
    found = facts.result("evaluate", "judge")
    if not isinstance(found, dict):
        return []
    answers = plural(number(found, "answers"), "answer")
    return [("billed by the judge", f"{money(number(found, 'billed'))}, {answers}")]


def _compute(facts: Facts) -> list[tuple[str, object]]:
    evaluation = facts.evaluation
    teacher, student = (
        {
            "flops": number(evaluation, "flops", who),
            "size": number(evaluation, "parameters", who),
            "speed": number(evaluation, "tokens_per_second", who),
        }
        for who in ("teacher", "student")
    )
    ratio = number(evaluation, "flops_ratio")
    size, tokens = (
        student["size"] or number(facts.result("train", "parameters")),
        number(facts.result("train", "tokens")),
    )
    training = UNKNOWN
    if size is not None and tokens is not None:
        training = f"about {scaled(6 * size * tokens, 'FLOP')}: 6 × parameters × tokens, attention left out"
    return [
        (
            "FLOPs per answer",
            f"student {scaled(student['flops'], 'FLOP')}, teacher {scaled(teacher['flops'], 'FLOP')},"
            f" ratio {percent(ratio)}",
        ),
        ("parameters", f"student {scaled(size)}, teacher {scaled(teacher['size'])}"),
        (
            "measured speed",
            f"student {scaled(student['speed'])}, teacher {scaled(teacher['speed'])} tokens/s, one machine",
        ),
        ("training", training),
    ]
