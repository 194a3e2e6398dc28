"""What each filter of curation took out, in the order in which they were asked."""

from __future__ import annotations

from typing import Any

from stillhouse.report.figures import at, count, number, percent
from stillhouse.report.layout import numbers, table
from stillhouse.report.markup import Html, join, short, tag
from stillhouse.report.read import Facts

_GROUPS = 20  # families or teachers listed


def filters(facts: Facts) -> Html | None:
    """The funnel with its balance by family and teacher, and what the leak check found; None in a run from
    before there was one."""
    funnel = facts.result("curate", "funnel")
    if not isinstance(funnel, list) or not funnel:
        return None
    caption = "What each filter took out, in order: in = dropped + unscored + out"
    head = ("filter", "in", "dropped", "unscored", "out", "most from")
    rows = [
        (
            _name(step),
            *(count(number(step, key)) for key in ("in", "dropped", "unscored", "out")),
            _most(at(step, "families")),
        )
        for step in funnel
    ]
    return tag(
        "div",
        tag("h3", "Filters"),
        table(caption, head, rows, words=(0, 5)),
        [_balance(facts, name, words) for name, words in (("families", "family"), ("teachers", "teacher"))],
        _leaks(facts),
        _draws(facts),
        class_="filters",
    )


def _name(step: Any) -> str:
    marks = at(step, "marks")
    found = marks if isinstance(marks, dict) else {}
    said = ", ".join(f"{short(str(kind), 24)} in {count(number(found, kind))}" for kind in found)
    return short(str(at(step, "filter")), 48) + (f": {said}" if said else "")


def _most(taken: Any) -> str:
    names = list(taken)[:2] if isinstance(taken, dict) else []
    return ", ".join(f"{short(str(name), 24)} {count(number(taken, name))}" for name in names)


def _balance(facts: Facts, name: str, words: str) -> Html | None:
    groups = facts.result("curate", "balance", name)
    if not isinstance(groups, dict) or not groups:
        return None
    listed = sorted(groups, key=lambda group: (-(number(groups, group, "rows") or 0), str(group)))
    keys = ("rows", "kept", "dropped", "unscored")
    rows = [
        (short(str(group), 40), *(count(number(groups, group, key)) for key in keys))
        for group in listed[:_GROUPS]
    ]
    rest = f" (the largest {_GROUPS} of {count(len(listed))})" if len(listed) > _GROUPS else ""
    caption = f"Rows by {words}: in = kept + dropped + unscored{rest}"
    return numbers(caption, (words, "in", *keys[1:]), rows, f"Rows by {words}")


def _leaks(facts: Facts) -> Html | None:
    exams = facts.result("curate", "leaks")
    if not isinstance(exams, list) or not exams:
        return None
    rows = []
    for exam in exams:
        words, held = number(exam, "test_words"), number(exam, "test_words_held")
        share = percent(held / words) if words and held is not None else "–"
        found = (number(exam, "rows", "leaks"), number(exam, "questions"), number(exam, "questions_held"))
        rows.append((short(str(at(exam, "set")), 40), *map(count, found), share))
    head = ("evaluation set", "rows like it", "its questions", "held by kept rows", "of its words")
    note = (
        "By 8 words in a row, the wording that its questions share aside. A question put in other words "
        "passes: only questions written after the teacher was trained can show that such leaks do not matter."
    )
    return join(table("Test questions among the rows", head, rows), tag("p", note, class_="method"))


def _draws(facts: Facts) -> Html | None:
    draws = facts.result("curate", "draws")
    prompts, answers = number(draws, "prompts"), number(draws, "answers")
    if prompts is None or answers is None:
        return None
    asked = number(facts.result("curate"), "rows")
    said = (
        f"Chosen from {count(answers)} answers that passed, of {count(asked)}, to {count(prompts)} prompts."
    )
    return tag("p", said, class_="said")
