"""What the distillation is worth, and what a judge says: both with what is not known said as such."""

from __future__ import annotations

from typing import Any

from stillhouse.report.figures import UNKNOWN, at, count, interval, measure, money, number, percent, plural
from stillhouse.report.layout import absent, pairs, rows_link, section, table
from stillhouse.report.markup import Html, short, tag
from stillhouse.report.read import Facts

_OUTCOMES = (
    ("student", "the student’s preferred"),
    ("teacher", "the teacher’s preferred"),
    ("tie", "a tie"),
    ("inconsistent", "a tie, for the verdict changed with the order"),
    ("unscored", "no verdict"),
)


def worth(facts: Facts) -> Html:
    title = "What it is worth"
    found = at(facts.evaluation, "economics")
    if not isinstance(found, dict):
        return section("worth", title, "", absent("Not reckoned.", "The run has not been evaluated."))
    even = number(found, "break_even", "answers")
    why = str(at(found, "break_even", "why") or "")
    machine = number(found, "machine")
    rows = [
        (
            short(str(at(pair, "basis")), 40),
            _with_bounds(at(pair, "kept")),
            _with_bounds(at(pair, "cost")),
            short(str(at(pair, "claim")), 20),
        )
        for pair in (found.get("pairs") if isinstance(found.get("pairs"), list) else ()) or ()
    ]
    return section(
        "worth",
        title,
        "It is often said that distilling buys 80% of the capability at 20% of the cost. These are the pairs"
        " of this run.",
        table(
            "Share kept against share of the cost",
            ("cost in", "of the score", "of the cost", "80 for 20"),
            rows,
            words=(0, 3),
        ),
        tag("h3", "In money and time"),
        pairs(
            [
                ("1,000 answers", _both(*(_price(number(found, who)) for who in ("teacher", "student")))),
                ("spent", _spent(found)),
                ("break-even", plural(even, "answer") if even is not None else short(why, 200) or UNKNOWN),
                ("an hour of this machine", money(machine)),
                ("one answer at a time", _both(*(_wait(facts, who) for who in ("teacher", "student")))),
            ]
        ),
        tag(
            "p",
            "The claim holds where the low end of the score kept is at least 80% and the high end of the cost"
            " at most 20%. A model served here costs the machine’s time, at the speed measured in batches;"
            " prices and speeds are taken as exact.",
            class_="method",
        ),
    )


def judged(facts: Facts) -> Html | None:
    found = at(facts.evaluation, "judge")
    if not isinstance(found, dict):
        return None
    usable = found.get("usable")
    verified = measure(found, "verified")
    outcomes = at(found, "outcomes")
    rows = [(words, count(number(outcomes, key) or 0)) for key, words in _OUTCOMES]
    standing = (
        f"{percent(verified.value)} ({interval(verified) or 'interval unknown'}),"
        f" n = {count(number(found, 'verified', 'n'))}"
    )
    verdict = "Usable: " if usable is True else "Not usable: " if usable is False else "Not to be relied on: "
    reasons = at(found, "reasons")
    unscored = "; ".join(
        f"{count(number(reasons, why))} × {short(why, 80)}"
        for why in (list(reasons)[:5] if isinstance(reasons, dict) else ())
    )
    return section(
        "judge",
        "A judge’s view",
        "First what its verdicts are worth, then what they say.",
        tag("p", tag("b", verdict), short(str(found.get("why")), 300), ".", class_="said"),
        pairs(
            [
                ("judge", short(str(found.get("model")), 60)),
                ("agreement with verified labels", standing if verified.value is not None else UNKNOWN),
                *(
                    []
                    if usable is False
                    else [
                        ("student preferred", _with_bounds(at(found, "win_rate"))),
                        ("at equal length", _with_bounds(at(found, "length_adjusted"))),
                    ]
                ),
                ("verdicts for the first place", percent(number(found, "first_place"))),
                ("not asked, the answers are the same", count(number(found, "same"))),
                *([("no verdict because", unscored)] if unscored else []),
            ]
        ),
        tag("h3", "Verdicts"),
        table("Pairs by outcome", ("outcome", "pairs"), rows),
        tag(
            "p",
            "Each pair is judged in both orders, and only a verdict that stays with the answer counts; ties"
            " count half. Verified labels are answers whose scores are known and differ; chance is 50%. At"
            " equal length: logistic regression on the difference in length, after AlpacaEval 2. ",
            rows_link(facts.run.judgements),
            class_="method",
        ),
    )


def _with_bounds(figure: Any) -> str:
    known = measure(figure)
    if known.value is None:
        return UNKNOWN
    return f"{percent(known.value)} ({interval(known) or 'interval unknown'})"


def _spent(found: dict[str, Any]) -> str:
    teacher, training, whole = (
        money(number(found, "spent", key)) for key in ("teacher", "training", "total")
    )
    return f"teacher’s answers {teacher}, training {training}, together {whole}"


def _wait(facts: Facts, who: str) -> str:
    median = number(facts.evaluation, "latency", who, "median")
    slowest = number(facts.evaluation, "latency", who, "slowest")
    if median is None:
        return UNKNOWN
    n = count(number(facts.evaluation, "latency", who, "n"))
    return f"{_seconds(median)} (slowest of {n}: {_seconds(slowest)})"


def _price(value: float | None) -> str:
    """Dollars for 1,000 answers; a tiny model's are spelt out no further than to a hundredth of a cent."""
    return "under US$ 0.0001" if value is not None and 0 < value < 0.0001 else money(value)


def _both(teacher: str, student: str) -> str:
    return f"teacher {teacher}; student {student}"


def _seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
