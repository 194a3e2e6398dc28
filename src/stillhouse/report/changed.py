"""What else changed: where the student does other than its teacher, and what training cost it elsewhere."""

from __future__ import annotations

from typing import Any

from stillhouse.report.figures import UNKNOWN, Measure, at, count, interval, measure, number, percent, plural
from stillhouse.report.layout import absent, section, table
from stillhouse.report.markup import Html, join, short, tag
from stillhouse.report.read import Facts

_TASKS = 30  # tasks of lm-eval shown
_MARKS = (("markdown", "markdown"), ("list", "a list"), ("code", "a code block"))


def changed(facts: Facts) -> Html:
    title = "What else changed"
    found = at(facts.evaluation, "fidelity")
    if not isinstance(found, dict):
        return section("changed", title, "", absent("Not measured.", "The run has not been evaluated."))
    return section(
        "changed",
        title,
        "A student may score like its teacher and still answer otherwise, or forget what no test prompt"
        " asks for.",
        _habits(found),
        _weak_spots(found),
        _sureness(found),
        _battery(at(facts.evaluation, "battery"), facts),
        _harness(at(facts.evaluation, "harness")),
    )


def _habits(found: dict[str, Any]) -> Html:
    style, refusals = at(found, "style"), at(found, "refusals")
    rows: list[tuple[object, ...]] = [
        ("characters", "100%", percent(number(style, "characters", "value")), _bounds(style, "characters")),
        ("tokens, each its own", "100%", percent(number(style, "tokens", "value")), _bounds(style, "tokens")),
    ]
    for key, name in _MARKS:
        of = at(style, key)
        rows.append(
            (
                f"answers with {name}",
                percent(number(of, "teacher")),
                percent(number(of, "student")),
                _change(measure(of, "change")),
            )
        )
    punctuation = at(style, "punctuation")
    rows.append(
        (
            "punctuation among characters",
            *(percent(number(punctuation, who)) for who in ("teacher", "student")),
            "",
        )
    )
    n = number(refusals, "n")
    said = [
        f"Of {plural(n, 'prompt')} that both answered the teacher declined"
        f" {count(_sum(refusals, 'both', 'lost'))}; of these refusals the student lost"
        f" {count(number(refusals, 'lost'))}, and it invented {count(number(refusals, 'invented'))}."
    ]
    for key, name in (("json", "JSON"), ("tool_calls", "a tool call")):
        asked = number(found, key, "n")
        if asked:
            said.append(
                f"Where the teacher’s answer was {name} (n = {count(asked)}), the student’s was"
                f" {count(number(found, key, 'valid'))} times, with the same fields"
                f" {count(number(found, key, 'same'))} times."
            )
    head = ("manner", "teacher", "student", "95% interval")
    return join(
        table(f"Manner of answering, over {plural(number(style, 'n'), 'prompt')}", head, rows),
        tag("p", " ".join(said), class_="said"),
        tag(
            "p",
            "Lengths are the student’s to the teacher’s, with a bootstrap interval over prompt groups; for"
            " shares the interval is that of the change in points. Refusals are found by their first words,"
            " in English.",
            class_="method",
        ),
    )


def _weak_spots(found: dict[str, Any]) -> Html | None:
    said: list[str] = []
    apart = at(found, "slice")
    if isinstance(apart, dict):
        names = apart.get("families")
        named = ", ".join(short(str(name), 30) for name in names[:6]) if isinstance(names, list) else ""
        inside, rest = measure(apart, "apart", "retention"), measure(apart, "rest", "retention")
        said.append(
            f"Outside what was trained on ({named}; n = {count(number(apart, 'apart', 'n'))}) the student"
            f" keeps {percent(inside.value)} ({interval(inside) or 'interval unknown'}), elsewhere"
            f" {percent(rest.value)}."
        )
        less = measure(apart, "less")
        if less.low is not None and less.low > 0:
            said.append(
                f"That is {percent(less.value)} less ({percent(less.low)} to {percent(less.high)}): if the"
                " slice is of the same kind and newer, training may have seen the other test questions in"
                " other words."
            )
    return tag("p", " ".join(said), class_="said") if said else None


def _sureness(found: dict[str, Any]) -> Html:
    rows = [
        (
            name,
            count(number(found, "calibration", key, "n")),
            percent(number(found, "calibration", key, "confidence")),
            percent(number(found, "calibration", key, "right")),
            *(_plain(number(found, "calibration", key, what)) for what in ("ece", "brier", "nll")),
        )
        for key, name in (("student_before", "student before"), ("student", "student"))
    ]
    drift = at(found, "divergence")
    said = "How far the student’s probabilities are from the teacher’s was not measured."
    if isinstance(drift, dict) and number(drift, "value") is not None:
        low, high = number(drift, "low"), number(drift, "high")
        bounds = f" ({low:.3g} to {high:.3g})" if low is not None and high is not None else ""
        said = (
            f"On the teacher’s own answers the student’s probabilities are {number(drift, 'value'):.3g} nats"
            f" per token from the teacher’s{bounds}: KL divergence over the whole vocabulary,"
            f" {plural(number(drift, 'n'), 'answer')}, {count(number(drift, 'places'))} places."
        )
    head = ("system", "n", "mean confidence", "right", "ECE", "Brier", "NLL")
    return join(
        tag("h3", "Does it know what it knows"),
        table("Calibration", head, rows),
        tag("p", said, class_="said"),
        tag(
            "p",
            "Confidence is the probability that a model gave its own whole answer. ECE over 15 bins of equal"
            " mass, NLL in nats; lower is better.",
            class_="method",
        ),
    )


def _battery(battery: Any, facts: Facts) -> Html | None:
    if not isinstance(battery, dict):
        return None
    families = battery.get("families")
    rows: list[tuple[object, ...]] = [
        (
            short(str(name), 30),
            count(number(of, "n")),
            percent(number(of, "before")),
            percent(number(of, "after")),
        )
        for name, of in (families.items() if isinstance(families, dict) else ())
    ]
    rows.append(
        (
            "all",
            count(number(battery, "n")),
            percent(number(battery, "before")),
            percent(number(battery, "after")),
        )
    )
    change = measure(battery, "change")
    said = "What the student could do before training is unknown, so what it lost is too."
    if change.value is not None:
        said = (
            f"Change {100 * change.value:+.1f} points (interval {_points(change)});"
            f" {plural(number(battery, 'lost'), 'answer')} lost,"
            f" {count(number(battery, 'gained'))} gained."
        )
    if number(battery, "before") == 0:
        said = (
            "The student could do none of it before training, so nothing could be lost;"
            f" {count(number(battery, 'gained'))} gained."
        )
    return join(
        tag("h3", "A fixed battery of general prompts, before and after training"),
        table("The battery by family", ("family", "n", "before", "after"), rows),
        tag("p", said, class_="said"),
    )


def _harness(harness: Any) -> Html | None:
    if not isinstance(harness, dict):
        return None
    rows: list[tuple[object, ...]] = []
    tasks = at(harness, "tasks")
    for task, of in tasks.items() if isinstance(tasks, dict) else ():
        metrics = at(of, "metrics")
        for metric, by_model in metrics.items() if isinstance(metrics, dict) else ():
            rows.append(
                (
                    short(f"{task}: {metric}", 60),
                    count(number(of, "n")),
                    *(_metric(at(by_model, name)) for name in ("student_before", "student")),
                )
            )
    failed = at(harness, "failed")
    said = [
        f"Not run on {short(str(name), 30)}: {short(str(why), 200)}."
        for name, why in (failed.items() if isinstance(failed, dict) else ())
    ]
    if len(rows) > _TASKS:
        said.append(f"{len(rows) - _TASKS} further figures are in evaluation.json.")
    limit = number(harness, "limit")
    first = f", the first {count(limit)} examples of each" if limit else ""
    return join(
        tag("h3", f"lm-eval {short(str(harness.get('version')), 20)}{first}"),
        table("Tasks of lm-eval", ("task and metric", "n", "before", "after"), rows[:_TASKS]),
        tag("p", " ".join(said), class_="said") if said else None,
        tag("p", "± is 1.96 standard errors as lm-eval gives them.", class_="method"),
    )


def _metric(figure: Any) -> str:
    value, error = number(figure, "value"), number(figure, "error")
    if value is None:
        return UNKNOWN
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {1.96 * error:.3f}"


def _bounds(tree: Any, key: str) -> str:
    return interval(measure(tree, key)) or UNKNOWN


def _change(change: Measure) -> str:
    """As `_points`, and in words where no answer changed."""
    return "no change" if change.value == 0 and change.low is None else _points(change)


def _points(change: Measure) -> str:
    """A change of a share in points, with its interval."""
    if change.value is None or change.low is None or change.high is None:
        return UNKNOWN
    return f"{100 * change.low:+.1f} to {100 * change.high:+.1f} points"


def _plain(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _sum(tree: Any, *keys: str) -> float | None:
    values = [number(tree, key) for key in keys]
    return None if None in values else sum(value for value in values if value is not None)
