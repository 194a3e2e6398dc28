"""What the student scores with its teacher behind it, by the share of requests that goes to the teacher."""

from __future__ import annotations

from typing import Any

from stillhouse.report import svg
from stillhouse.report.figures import UNKNOWN, Measure, at, count, interval, measure, number, percent
from stillhouse.report.layout import WIDTHS, figure, numbers, rows_link, section
from stillhouse.report.markup import Html, join, short, tag
from stillhouse.report.read import Facts

_LOST = {
    "regressions": "answers that the teacher has right and the cascade has not",
    "score": "how far the cascade’s score lies below the teacher’s",
    "differences": "answers that differ from the teacher’s, as the test prompts have no reference",
}


def cascaded(facts: Facts) -> Html | None:
    """None where no cascade was calibrated."""
    found = facts.cascade
    points, plain = _points(found, "score"), _points(found, "logprob")
    student, teacher = number(found, "student"), number(found, "teacher")
    if not points or student is None or teacher is None:
        return None
    chance = [(share, Measure(student + share * (teacher - student), None, None)) for share in (0.0, 1.0)]
    promised = number(found, "promise", "threshold") is not None
    chosen = number(found, "promise", "deferred") if promised else None
    about = "; ".join(f"{percent(score.value)} with {percent(share, 0)} deferred" for share, score in points)
    lines = [("train", points), ("rate", plain), ("held", chance)]
    titles, axes = (
        ("Score against share deferred", about),
        ("score", "share of requests that go to the teacher"),
    )
    return section(
        "cascade",
        "With the teacher behind it",
        "The student answers, and what it is least sure of goes to the teacher.",
        _promise(found),
        figure(
            [svg.shares(lines, chosen, width, titles, axes) for width in WIDTHS],
            join(
                tag("span", class_="stroke train"),
                "by the fitted score ",
                tag("span", class_="stroke rate"),
                "by the mean log-probability alone ",
                tag("span", class_="stroke held"),
                "at random; at the left the student alone, at the right the teacher.",
            ),
            numbers(
                "Score by share deferred",
                ("deferred", "score", "95% interval", "by log-probability", "at random"),
                [
                    (
                        percent(share, 0),
                        percent(score.value),
                        interval(score) or UNKNOWN,
                        percent(other.value),
                        percent(student + share * (teacher - student)),
                    )
                    for (share, score), (_, other) in zip(points, plain, strict=False)
                ],
            ),
        ),
        tag(
            "p",
            f"On the {count(number(found, 'n'))} test prompts on which the score was not fitted. Intervals of"
            " 95% for independent rows, by Wilson’s method; the threshold by Learn then Test, exactly. ",
            rows_link(facts.run.cascade_curve),
            class_="method",
        ),
    )


def _promise(found: dict[str, Any]) -> Html:
    deferred, most, level = (
        number(found, "promise", "deferred"),
        number(found, "most"),
        number(found, "level"),
    )
    lost = _LOST.get(str(at(found, "lost")), short(str(at(found, "lost")), 40))
    if number(found, "promise", "threshold") is None:
        more = number(found, "promise", "more")
        need = "and no number of rows like these would do" if more is None else f"{count(more)} more needed"
        rows = count(number(found, "promise", "n"))
        said = f"No promise is attainable with these {rows} prompts, {need}."
    else:
        said = (
            f"With {percent(deferred)} deferred, at most {percent(most)} is lost with"
            f" {percent(None if level is None else 1 - level, 0)} confidence: {lost}."
        )
    return tag("p", said, class_="said")


def _points(found: dict[str, Any], order: str) -> list[tuple[float, Measure]]:
    points = at(found, order, "points")
    if not isinstance(points, list):
        return []
    shares = [(number(point, "deferred"), measure(point)) for point in points]
    return [(share, score) for share, score in shares if share is not None and score.value is not None]
