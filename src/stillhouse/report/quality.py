"""The verdict and what it rests on: quality against cost, the families, the loss curves."""

from __future__ import annotations

from typing import Any

from stillhouse.report import svg
from stillhouse.report.cost import bill, imported, said, served_here
from stillhouse.report.figures import (
    UNKNOWN,
    Measure,
    at,
    count,
    duration,
    interval,
    measure,
    moment,
    number,
    percent,
    plural,
    scaled,
)
from stillhouse.report.layout import (
    FAMILY_METHOD,
    IMPORTED,
    SCORE_METHOD,
    SHARE_METHOD,
    SYSTEMS,
    WIDTHS,
    absent,
    cell,
    figure,
    numbers,
    rows_link,
    section,
    table,
)
from stillhouse.report.markup import Html, join, short, tag
from stillhouse.report.read import STAGES, Facts

_FAMILIES = 60  # rows of the table of families
_KEPT = (
    (0.95, "full", "●", "95% or more"),
    (0.85, "most", "◐", "85% to 95%"),
    (float("-inf"), "low", "▲", "below 85%"),
)


def headline(facts: Facts) -> str:
    """The verdict as one plain sentence; the page's title."""
    kept = number(facts.evaluation, "retention", "value")
    if kept is None:
        if facts.evaluation:
            return "The share of the teacher's quality that the student keeps is unknown"
        return "No verdict yet: this run has not been evaluated"
    ratio = number(facts.evaluation, "flops_ratio")
    cost = (
        f"at {percent(ratio)} of its FLOPs per answer" if ratio is not None else "at a cost that is unknown"
    )
    return f"The student keeps {percent(kept)} of the teacher’s score, {cost}"


def verdict(facts: Facts) -> Html:
    evaluation = facts.evaluation
    kept, ratio = measure(evaluation, "retention"), number(evaluation, "flops_ratio")
    if kept.value is None:
        title: object = headline(facts) + "."
    else:
        cost: object = "at a cost that is unknown"
        if ratio is not None:
            cost = join("at ", tag("span", percent(ratio), class_="figure"), " of its FLOPs per answer")
        title = join(
            "The student keeps ",
            tag("span", percent(kept.value), class_="figure kept"),
            " of the teacher’s score, ",
            cost,
            ".",
        )
    n, among = (number(evaluation, "retention", key) for key in ("n", "groups"))
    bounds = interval(kept)
    basis = [f"{SHARE_METHOD}: {bounds}" if bounds else "the interval of that share is unknown"]
    if n is not None:
        groups = f" in {plural(among, 'group')}" if among else ""
        basis.append(f"n = {count(n)} test prompts{groups}")
    finished = [at(facts.markers[stage], "finished") for stage in STAGES]
    times = [time for time in finished if isinstance(time, str)]
    facts_line = [moment(max(times)) if times else "not finished", tag("code", facts.name)]
    if facts.digest:
        facts_line.append(tag("code", facts.digest[:16], title=f"recipe digest {facts.digest}"))
    return tag(
        "header",
        tag("p", tag("b", "stillhouse"), " distillation report", class_="brand"),
        tag("p", [tag("span", part) for part in facts_line], class_="run"),
        tag("h1", title),
        tag("p", " · ".join(basis) + ".", class_="basis") if kept.value is not None else None,
        tag("p", ruling, class_="basis") if (ruling := _ruling(evaluation)) else None,
        _tiles(facts),
        class_="verdict",
    )


def _ruling(evaluation: dict[str, Any]) -> str | None:
    """The verdict on the declared margin as a sentence; None where no margin was declared."""
    margin = number(evaluation, "verdict", "margin")
    if margin is None:
        return None
    declared = f"Declared margin: {percent(margin)} of the teacher’s score"
    ruling = at(evaluation, "verdict", "ruling")
    changed = (
        " The margin was another when this run was scored before."
        if at(evaluation, "verdict", "earlier")
        else ""
    )
    if ruling not in ("non-inferior", "inferior", "not decided"):
        return f"{declared}. No verdict: {at(evaluation, 'verdict', 'reason') or UNKNOWN}.{changed}"
    more = number(evaluation, "verdict", "more")
    needed = f", about {plural(more, 'more prompt')} needed" if more else ""
    return f"{declared}. Verdict: {ruling}{needed}, at a one-sided level of 2.5%.{changed}"


def _tiles(facts: Facts) -> Html:
    evaluation = facts.evaluation
    teacher, student, before = (measure(evaluation, key) for key in ("teacher", "student", "student_before"))
    gap = measure(evaluation, "gap_closed")
    owed = bill(facts)
    note = "for its answers" if owed.expected is not None else "the difference may have been billed"
    note = "no price known" if owed.high is None else note
    note = IMPORTED if imported(facts) else note
    bills = ("none", "the run serves it itself") if served_here(facts) else (said(owed), note)
    whole = number(evaluation, "seconds", "total")
    sent, reused = (number(evaluation, "exchanges", key) for key in ("sent", "reused"))
    params = [number(evaluation, "parameters", key) for key in ("student", "teacher")]
    speed = [number(evaluation, "tokens_per_second", key) for key in ("student", "teacher")]
    tiles = [
        ("teacher", percent(teacher.value), interval(teacher), "teacher"),
        ("student", percent(student.value), interval(student), "student"),
        ("student before", percent(before.value), interval(before), "before"),
        ("gap closed", percent(gap.value), interval(gap) or "from student before to teacher", ""),
        ("student’s size", scaled(params[0]), f"parameters, teacher {scaled(params[1])}", ""),
        ("student’s speed", scaled(speed[0]), f"tokens/s, teacher {scaled(speed[1])}", ""),
        ("teacher’s bill", *bills, ""),
        ("whole run", duration(whole), f"{count(sent)} requests sent, {count(reused)} reused", ""),
    ]
    return tag(
        "dl",
        [
            tag(
                "div",
                tag("dt", svg.key(kind) if kind else None, name),
                tag("dd", value, class_="unknown" if value == UNKNOWN else None),
                tag("dd", note, class_="note"),
            )
            for name, value, note, kind in tiles
        ],
        class_="tiles",
    )


_LOSSES = {
    "sequence": "Mean cross-entropy per token of the teacher’s answers.",
    "distil": "Mean divergence per token from what the teacher would have said at each place of its answers.",
    "on_policy": "Mean divergence per token from what the teacher would have said, along its own answers and"
    " along what the student wrote itself.",
}


def against_cost(facts: Facts) -> Html:
    title = "Quality against cost"
    evaluation = facts.evaluation
    points = []
    for key, kind, label in SYSTEMS:
        flops = number(evaluation, "flops", key)
        plausible = flops if flops is not None and 0 < flops < 1e30 else None
        points.append(svg.Point(kind, label, plausible, measure(evaluation, key)))
    scored = [p for p in points if p.score.value is not None]
    if not scored:
        return section("quality", title, "", absent("No scores.", "The run has not been evaluated."))
    about = "; ".join(
        f"{p.label} {percent(p.score.value)} at {scaled(p.flops, 'FLOP')} per answer" for p in scored
    )
    drawings = [svg.scatter(scored, width, "Score against FLOPs per answer", about) for width in WIDTHS]
    rows = [
        (
            join(svg.key(p.kind), p.label),
            percent(p.score.value),
            interval(p.score) or UNKNOWN,
            count(number(evaluation, key, "n")),
            count(number(evaluation, key, "unscored")),
            count(number(evaluation, key, "failed")),
            "not counted" if key == "baseline" and not p.flops else scaled(p.flops, "FLOP"),
        )
        for p, (key, _, _) in zip(points, SYSTEMS, strict=True)
    ]
    head = ("system", "score", "95% interval", "n", "unscored", "failed", "FLOPs per answer")
    caption = join(
        "Mean score on the test prompts; whiskers are ", SCORE_METHOD, ". FLOPs are counted from the"
        " architecture and the answer’s length, not measured. ", rows_link(facts.run.predictions),
    )  # fmt: skip
    return section(
        "quality",
        title,
        "Up is better, left is cheaper. The student should stand near the teacher’s line, far to its left,"
        " and above what a plain baseline reaches.",
        figure(drawings, caption, numbers("Scores and cost of each system", head, rows)),
        _comparison(evaluation),
    )


def _comparison(evaluation: dict[str, Any]) -> Html | None:
    """Agreement and the paired test as sentences, each only where it was measured."""
    parts = []
    agreement = measure(evaluation, "agreement")
    if agreement.value is not None:
        bounds = f" ({interval(agreement)})" if interval(agreement) else ""
        parts.append(
            f"Teacher and student give the same answer to {percent(agreement.value)} of the prompts{bounds}."
        )
    copied = measure(evaluation, "agreement", "teacher_wrong")
    if copied.value is not None:
        n = number(evaluation, "agreement", "teacher_wrong", "n")
        parts.append(
            f"Where the teacher was wrong (n = {count(n)}) the student gave the same wrong answer in"
            f" {percent(copied.value)}."
        )
    less, swapped = measure(evaluation, "difference"), number(evaluation, "difference", "p")
    if less.value is not None and less.low is not None and less.high is not None:
        tested = f"; {_p(swapped)} by swapping the two in whole groups" if swapped is not None else ""
        among = count(number(evaluation, "difference", "n"))
        parts.append(
            f"The student’s score less the teacher’s is {100 * less.value:+.1f} points"
            f" ({100 * less.low:+.1f} to {100 * less.high:+.1f}, n = {among}{tested})."
        )
    test, p = at(evaluation, "mcnemar"), number(evaluation, "mcnemar", "p")
    if p is not None:
        only = [number(test, key) for key in ("teacher_only", "student_only")]
        sides = (
            f" (only the teacher right {count(only[0])}, only the student {count(only[1])})"
            if None not in only
            else ""
        )
        parts.append(f"McNemar’s exact test of the two, prompts taken as independent: {_p(p)}{sides}.")
    worst, adjusted = at(evaluation, "worst_family"), number(evaluation, "worst_family", "p_adjusted")
    name, share = at(worst, "name"), number(worst, "value")
    if isinstance(name, str) and share is not None:
        tested = "could not be tested alone" if adjusted is None else f"{_p(adjusted)} after Holm"
        bounds = f"{interval(measure(worst)) or 'interval unknown'}, n = {count(number(worst, 'n'))}"
        parts.append(
            f"The worst family is {short(name, 40)}: it keeps {percent(share)} ({bounds}; {tested})."
        )
    return tag("p", " ".join(parts), class_="said") if parts else None


def _p(value: float) -> str:
    return "p\u00a0<\u00a00.0001" if value < 0.0001 else f"p\u00a0=\u00a0{value:.2g}"


def families(facts: Facts, shown: int) -> Html:
    """Links lead to answers that are on the page: the first `shown`."""
    title = "Families, worst first"
    found = at(facts.evaluation, "families")
    entries = (
        [(str(k), v) for k, v in found.items() if isinstance(v, dict)] if isinstance(found, dict) else []
    )
    if not entries:
        return section("families", title, "", absent("No families.", "The evaluation names none."))

    def worst(entry: tuple[str, Any]) -> tuple[bool, float, str]:
        kept = measure(entry[1], "retention").value
        return kept is None, 0.0 if kept is None else kept, entry[0]

    entries.sort(key=worst)
    first: dict[str, int] = {}
    for index, pair in enumerate(facts.pairs[:shown]):
        first.setdefault(pair.family, index)
    rows = []
    for name, entry in entries[:_FAMILIES]:
        label: object = short(name, 40)
        if name in first:
            label = tag("a", label, href=f"#answer-{first[name]}", title="to its answers side by side")
        kept = measure(entry, "retention")
        rows.append(
            [
                label,
                _kept(kept),
                *(_heat(at(entry, key)) for key in ("student", "teacher", "student_before", "baseline")),
                count(number(entry, "n")),
                count(number(entry, "groups")),
            ]
        )
    marks = {key: join(svg.key(kind), label) for key, kind, label in SYSTEMS}
    head = ["family", "share kept", *(marks[k] for k in ("student", "teacher", "student_before", "baseline"))]
    more = len(entries) - len(rows)
    legend = [
        tag("span", tag("i", mark, class_=f"glyph {name}", aria_hidden="true"), f" {words}")
        for _, name, mark, words in _KEPT
    ]
    return section(
        "families",
        title,
        "One mean can hide a family that was lost. The worst stands at the top.",
        table("Scores by family, worst share kept first", [*head, "n", "groups"], rows, class_="heat"),
        tag("p", "Share kept: ", legend, class_="legend"),
        tag(
            "p",
            f"{plural(more, 'further family').replace('familys', 'families')} left out, none of them worse.",
        )
        if more > 0
        else None,
        tag("p", f"Small figures: {FAMILY_METHOD}. A deeper blue is a higher score.", class_="method"),
    )


def _kept(kept: Measure) -> Html:
    if kept.value is None:
        return cell(UNKNOWN, "n")
    value = kept.value
    name, mark = next((name, mark) for floor, name, mark, _ in _KEPT if value >= floor)
    glyph = tag("i", mark, class_="glyph", aria_hidden="true")
    return tag(
        "td", glyph, tag("b", percent(value)), tag("small", interval(kept) or " "), class_=f"n share {name}"
    )


def _heat(entry: Any) -> Html:
    """A score with its interval; the tint has eleven steps, finer at the top, where systems differ."""
    figure_ = measure(entry)
    if figure_.value is None:
        return tag("td", "not scored" if number(entry, "n") == 0 else UNKNOWN, class_="n unknown")
    step = round(10 * min(1.0, max(0.0, figure_.value)) ** 2)
    return tag("td", percent(figure_.value), tag("small", interval(figure_) or " "), class_=f"n h{step}")


def loss_curves(facts: Facts) -> Html:
    title = "Loss"
    train = [(s.step, s.loss) for s in facts.steps if s.loss is not None]
    held = [(s.step, s.held_out) for s in facts.steps if s.held_out is not None]
    rate = [(s.step, s.rate) for s in facts.steps if s.rate is not None]
    if not train and not held:
        return section("loss", title, "", absent("No loss curve.", "The run has no readable loss log."))
    steps, epochs = number(facts.result("train"), "steps"), number(facts.result("train"), "epochs")
    last = train[-1][1] if train else None
    best = min(held, key=lambda point: point[1]) if held else None
    rows: list[tuple[object, ...]] = []
    if train:
        rows += [("training", "first", count(train[0][0]), f"{train[0][1]:.4f}")]
        rows += [("training", "last", count(train[-1][0]), f"{train[-1][1]:.4f}")]
    if held and best:
        rows += [("held out", "lowest", count(best[0]), f"{best[1]:.4f}")]
        rows += [("held out", "last", count(held[-1][0]), f"{held[-1][1]:.4f}")]
    about = f"Training loss over {plural(len(train), 'logged step')}"
    about += f", last {last:.3f}" if last is not None else ""
    about += f"; held-out lowest {best[1]:.3f} at step {count(best[0])}" if best else "; no held-out loss"
    drawings = [svg.losses(train, held, rate, w, "Loss over optimiser steps", about) for w in WIDTHS]
    legend = join(
        tag("span", tag("i", class_="stroke train"), " training", class_="item"),
        tag("span", tag("i", class_="stroke held"), " held out (dots)", class_="item") if held else None,
        tag("span", tag("i", class_="stroke rate"), " learning rate", class_="item") if rate else None,
    )
    n = (
        f"n = {plural(number(facts.result('train'), 'rows'), 'row')}. "
        if facts.result("train", "rows")
        else ""
    )
    lead = _LOSSES.get(str(facts.result("train", "objective")), _LOSSES["sequence"])
    if steps is not None:
        lead += f" {plural(steps, 'step')}" + (f", {epochs:g} epochs." if epochs is not None else ".")
    if (preferred := facts.result("train", "preference")) is not None:
        lead += f" Not drawn: {plural(number(preferred, 'pairs'), 'pair')} of answers after that,"
        lead += f" {percent(number(preferred, 'accuracy'))} in the right order in the end."
    return section(
        "loss",
        title,
        lead,
        tag("p", legend, class_="legend"),
        figure(
            drawings,
            join(n, "One run, one seed: no interval. ", rows_link(facts.run.losses)),
            numbers("Losses in nats per token", ("rows", "which", "step", "loss"), rows),
        ),
    )
