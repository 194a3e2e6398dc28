"""Students that were trained for comparison: other seeds, hard labels, fewer samples, other sizes."""

from __future__ import annotations

from typing import Any

from stillhouse.report import svg
from stillhouse.report.figures import (
    UNKNOWN,
    Measure,
    at,
    count,
    interval,
    measure,
    number,
    percent,
    scaled,
)
from stillhouse.report.layout import WIDTHS, figure, numbers, section, table
from stillhouse.report.markup import Html, join, short, tag
from stillhouse.report.read import Facts


def further(facts: Facts) -> Html | None:
    found = at(facts.evaluation, "further")
    if not isinstance(found, dict):
        return None
    return section(
        "further",
        "Other students",
        "Trained like the student but for one thing each, and asked the same test prompts.",
        _seeds(at(found, "seeds")),
        _hard_labels(at(found, "hard_labels")),
        _curve(at(found, "curve")),
        _sizes(at(found, "sizes"), number(facts.evaluation, "flops", "teacher")),
    )


def _seeds(seeds: Any) -> Html | None:
    if not isinstance(seeds, dict):
        return None
    spread = Measure(number(seeds, "mean"), number(seeds, "low"), number(seeds, "high"))
    sd = number(seeds, "sd")
    said = (
        f"Mean over seeds {percent(spread.value)} ({interval(spread) or 'interval unknown'}, of the seeds"
        f" alone); lowest {percent(number(seeds, 'lowest'))}, highest {percent(number(seeds, 'highest'))}"
        f"{f', standard deviation {100 * sd:.2g} points' if sd is not None else ''}."
    )
    return join(
        table("Scores by seed", ("seed", "score", "95% interval", "n"), _rows(seeds.get("rows"), "seed")),
        tag("p", said, class_="said"),
    )


def _hard_labels(hard: Any) -> Html | None:
    if not isinstance(hard, dict):
        return None
    own, ahead = measure(hard), measure(hard, "ahead")
    points = UNKNOWN if ahead.value is None else f"{100 * ahead.value:+.1f} points"
    if ahead.value is not None and (ahead.low is None or ahead.high is None):
        points += " (interval unknown)"
    elif ahead.low is not None and ahead.high is not None:
        points += f" ({100 * ahead.low:+.1f} to {100 * ahead.high:+.1f})"
    return tag(
        "p",
        f"Trained on {count(number(hard, 'samples'))} references alone, without the teacher, a student scores"
        f" {percent(own.value)} ({interval(own) or 'interval unknown'}). The distilled one is ahead of it by"
        f" {points}, paired over {count(number(hard, 'ahead', 'n'))} prompts.",
        class_="said",
    )


def _curve(curve: Any) -> Html | None:
    if not isinstance(curve, list):
        return None
    points = [(number(row, "samples"), measure(row)) for row in curve]
    drawn = [(place, score) for place, score in points if place and score.value is not None]
    about = "; ".join(f"{percent(score.value)} with {count(place)}" for place, score in drawn)
    titles, axes = ("Score against samples", about), ("score", "samples that were trained on")
    head = ("samples", "score", "95% interval", "n")
    return join(
        tag("h3", "Would more samples bring more"),
        figure(
            [svg.trend(drawn, width, "curve", titles, axes, count) for width in WIDTHS if drawn],
            "Each set holds every smaller one; the same settings and number of epochs, so fewer samples are"
            " fewer steps too.",
            numbers("Scores by number of samples", head, _rows(curve, "samples")),
        ),
    )


def _sizes(sizes: Any, teacher: float | None) -> Html | None:
    if not isinstance(sizes, list):
        return None
    rows: list[tuple[object, ...]] = []
    drawn: list[tuple[float, Measure]] = []
    for row in sizes:
        flops = number(row, "flops")
        ratio = flops / teacher if flops is not None and teacher else None
        kept = measure(row, "retention")
        if ratio and kept.value is not None:
            drawn.append((ratio, kept))
        rows.append(
            (
                short(str(at(row, "label") or "the student"), 50),
                scaled(number(row, "parameters")),
                percent(ratio),
                percent(number(row, "score")),
                percent(kept.value),
                interval(kept) or UNKNOWN,
            )
        )
    drawn.sort(key=lambda point: point[0])
    about = "; ".join(f"{percent(kept.value)} at {percent(ratio)} of the FLOPs" for ratio, kept in drawn)
    titles, axes = ("Score kept against cost", about), ("of the teacher’s score", "of the teacher’s FLOPs")
    head = ("began as", "parameters", "of the teacher’s FLOPs", "score", "of its score", "95% interval")
    return join(
        tag("h3", "What is kept at what size"),
        figure(
            [svg.trend(drawn, width, "sizes", titles, axes, percent, 1.0) for width in WIDTHS if drawn],
            "Students of all sizes, each with its share of the teacher’s score and FLOPs; the line is the"
            " teacher’s own score.",
            numbers("Score kept by size, smallest first", head, rows),
        ),
    )


def _rows(rows: Any, key: str) -> list[tuple[object, ...]]:
    return [
        (
            count(number(row, key)),
            percent(number(row, "score")),
            interval(measure(row)) or UNKNOWN,
            count(number(row, "n")),
        )
        for row in (rows if isinstance(rows, list) else [])
    ]
