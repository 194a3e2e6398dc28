"""Where the rows went, and what the two models answered."""

from __future__ import annotations

import difflib
import re
from typing import Any

from stillhouse.report.figures import UNKNOWN, count, number, percent, plural, score
from stillhouse.report.filters import filters
from stillhouse.report.layout import absent, rows_link, section, table
from stillhouse.report.markup import Html, clip, join, short, shown, tag
from stillhouse.report.read import Answer, Facts, Pair, dropped, unscored

_LONGEST = 2_000  # characters shown of one text
_REASONS = 24  # reasons listed one by one
_COMPARED = 700  # words compared; longer answers stand without marks
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def funnel(facts: Facts) -> Html:
    title = "Where the rows went"
    curated, trained = facts.result("curate"), facts.result("train")
    prompts = number(facts.result("collect"), "prompts")
    came, kept = number(curated, "rows"), number(curated, "kept")
    came = facts.exchanges if came is None else came
    held = number(trained, "rows_held_out")
    seen = "rows the student saw" + (f", {count(held)} held out" if held else "")
    levels = [
        ("prompts", prompts, "asked of the teacher"),
        ("answers", came, "came back"),
        ("kept", kept, "passed curation"),
        ("trained on", number(trained, "rows"), seen),
    ]
    if all(value is None for _, value, _ in levels):
        return section("rows", title, "", absent("No rows yet.", "Nothing has been collected."))
    most = max((value for _, value, _ in levels if value is not None), default=0)
    rows = [
        (
            name,
            tag("td", tag("span", style=f"width:{100 * value / most:.2f}%"), class_="bar")
            if value is not None and most
            else tag("td", class_="bar"),
            count(value),
            percent(value / prompts) if value is not None and prompts else UNKNOWN,
            note,
        )
        for name, value, note in levels
    ]
    return section(
        "rows",
        title,
        "Nothing is dropped silently: what came in is what was kept and what was dropped.",
        table("Rows at each stage", ("", "", "rows", "of prompts", ""), rows, words=(0, 4), class_="funnel"),
        tag("p", _balance(came, kept, dropped(facts), unscored(facts)), class_="said"),
        filters(facts),
        _reasons(facts, came),
    )


def _balance(came: float | None, kept: float | None, gone: float | None, aside: float | None) -> Html:
    if came is None or kept is None or gone is None or aside is None:
        return join("Curation has no full account of its rows, so the balance is unknown.")
    sums = f"{count(came)} in; {count(kept)} kept + {count(gone)} dropped"
    sums += f" + {count(aside)} unscored" if aside else ""
    out = kept + gone + aside
    if came == out:
        return join(tag("b", "✓ Balances: "), sums, ".")
    return join(tag("b", "▲ Does not balance: "), sums, f" = {count(out)}.")


def _reasons(facts: Facts, came: float | None) -> Html | None:
    """Every reason with its count, at most three examples each, folded."""
    listed: list[tuple[str, str, float | None]] = []
    for stage, tree, words in (
        ("collect", facts.result("collect", "failures"), "request failed"),
        ("curate", facts.result("curate", "reasons"), "dropped"),
        ("curate", facts.result("curate", "unscored"), "unscored"),
        (
            "train",
            facts.result("train", "rows_left_out"),
            "left out of training",
        ),
    ):
        if isinstance(tree, dict):
            found = [(words, str(reason), number(tree, reason)) for reason in tree]
            listed += sorted(found, key=lambda entry: (-(entry[2] or 0), entry[1]))
        elif stage == "curate" and words == "dropped":
            listed += [(words, reason, None) for reason in sorted(facts.drops)]
    broken = number(facts.result("collect"), "broken_lines")
    if broken:
        listed.append(("prompt file", "broken lines", broken))
    if not listed:
        return tag("p", "No row was dropped and no request failed.", class_="said")
    items = []
    for words, reason, n in listed[:_REASONS]:
        of = f"{percent(n / came)} of answers" if n is not None and came and words == "dropped" else ""
        examples = facts.drops.get(reason, ()) if words in ("dropped", "unscored") else ()
        line = join(
            tag("span", count(n), class_="count"),
            tag("span", tag("b", short(reason)), " ", tag("small", words), class_="what"),
            tag("span", of, class_="of"),
        )
        if not examples:
            items.append(tag("p", line, class_="reason"))
            continue
        shown_ = [
            tag(
                "div",
                _text("prompt", example.prompt, 600),
                _text("answer", example.answer, 600),
                class_="example",
            )
            for example in examples
        ]
        note = tag("p", f"{plural(len(examples), 'example')} of {count(n)}.", class_="method")
        items.append(tag("details", tag("summary", line), shown_, note, class_="reason"))
    more = len(listed) - _REASONS
    if more > 0:
        items.append(tag("p", f"and {plural(more, 'further reason')}.", class_="reason"))
    return tag("div", tag("h3", "Reasons"), items, rows_link(facts.run.dropped), class_="reasons")


def answers(facts: Facts, limit: int) -> Html:
    title = "Answers side by side"
    tally = facts.tally
    if not facts.pairs:
        why = "The run has no predictions of both teacher and student."
        return section("answers", title, "", absent("No answers.", why))
    total = tally.worse + tally.same + tally.better + tally.unscored
    lead = (
        f"Of {count(total)} test prompts the student did worse than the teacher on {count(tally.worse)},"
        f" equally well on {count(tally.same)}, better on {count(tally.better)};"
        f" {count(tally.unscored)} unscored."
    )
    legend = tag(
        "p",
        tag("span", tag("del", "only the teacher"), class_="item"),
        tag("span", tag("ins", "only the student"), class_="item"),
        tag("span", "compared word by word", class_="item"),
        class_="legend",
    )
    found = [_pair(index, pair) for index, pair in enumerate(facts.pairs[:limit])]
    order = (
        f"Shown: {plural(len(found), 'prompt')}, chosen by rule and not by taste: largest regressions first,"
        " then ties, then wins; at equal change the families take turns. "
    )
    return section(
        "answers",
        title,
        lead,
        legend,
        found,
        tag("p", order, rows_link(facts.run.predictions), class_="method"),
    )


def _pair(index: int, pair: Pair) -> Html:
    kind, mark = _kind(pair.change)
    teacher, student = difference((pair.teacher.text or "")[:_LONGEST], (pair.student.text or "")[:_LONGEST])
    summary = tag(
        "summary",
        tag("span", tag("i", mark, aria_hidden="true"), f" {kind}", class_=f"verdict-mark {kind}"),
        tag("span", short(pair.family, 24), class_="family"),
        tag("span", short(pair.prompt, 120) or "prompt text not in the run", class_="opening"),
        tag("span", f"{score(pair.teacher.score)} → {score(pair.student.score)}", class_="scores"),
    )
    reference = (
        _text("reference" + (f", scored as {pair.scorer}" if pair.scorer else ""), pair.reference, 800)
        if pair.reference is not None
        else tag("p", "No reference answer.", class_="method")
    )
    return tag(
        "details",
        summary,
        tag("div", _text("prompt", pair.prompt, _LONGEST), reference, class_="asked"),
        tag(
            "div",
            _answer("teacher", pair.teacher, teacher),
            _answer("student", pair.student, student),
            class_="two",
        ),
        tag("p", "prompt ", tag("code", short(pair.prompt_id)), class_="method"),
        class_=f"pair {kind}",
        id=f"answer-{index}",
    )


def _kind(change: float | None) -> tuple[str, str]:
    if change is None:
        return "unscored", "○"
    return ("worse", "▼") if change < 0 else ("better", "▲") if change > 0 else ("same", "=")


def difference(teacher: str, student: str) -> tuple[Html, Html]:
    """Both texts as markup, words of the one that the other lacks in `del` (teacher) and `ins` (student)."""
    left, right = _WORDS.findall(teacher), _WORDS.findall(student)
    if max(len(left), len(right)) > _COMPARED:
        return shown(teacher), shown(student)
    out: tuple[list[Html], list[Html]] = ([], [])
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=len(left) + len(right) > 400)
    for kind, a, b, c, d in matcher.get_opcodes():
        for side, name, words in ((0, "del", left[a:b]), (1, "ins", right[c:d])):
            text = shown("".join(words))
            if words:
                out[side].append(text if kind == "equal" or not "".join(words).strip() else tag(name, text))
    return join(out[0]), join(out[1])


def _answer(name: str, answer: Answer, body: Html) -> Html:
    more = max(0, len(answer.text or "") - _LONGEST)
    nothing = "no answer came" if answer.text is None else "empty answer"
    notes = [answer.reason] if answer.reason else []
    if answer.finish and answer.finish != "stop":
        notes.append(f"ended by {answer.finish}")
    return tag(
        "div",
        tag(
            "h4",
            name,
            tag("span", f"score {score(answer.score)}" if answer.score is not None else "unscored"),
        ),
        tag("div", body if answer.text else tag("i", nothing), _rest(more), class_="text", dir="auto"),
        tag("p", short("; ".join(notes), 240), class_="method") if notes else None,
        class_=f"answer {name}",
    )


def _text(name: str, text: str, limit: int) -> Html:
    part, more = clip(text, limit)
    body: Any = shown(part) if part else tag("i", "empty")
    return tag("div", tag("h4", name), tag("div", body, _rest(more), class_="text", dir="auto"))


def _rest(more: int) -> Html | None:
    return tag("span", f" … {plural(more, 'further character')}", class_="rest") if more else None
