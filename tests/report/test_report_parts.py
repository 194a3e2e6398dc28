"""The parts of the page by themselves: escaping, numbers, drawings, colours, the choice of answers."""

from __future__ import annotations

import html
import re
from xml.dom import minidom

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.report import svg
from stillhouse.report.figures import (
    Measure,
    duration,
    measure,
    moment,
    money,
    number,
    percent,
    scaled,
    score,
)
from stillhouse.report.markup import plain, shown, tag
from stillhouse.report.read import order
from stillhouse.report.rows import difference
from stillhouse.report.style import CSS


def bare(markup: str) -> str:
    """The words of markup without its elements."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


@given(st.text(st.characters(codec="utf-8")))
def test_text_never_becomes_markup(text):
    made = tag("p", text, title=text)
    assert made.count("<") == 2
    assert bare(made) == plain(text)


@given(st.text("ab<>&\"' \n\té漢ا"))
def test_ordinary_text_is_shown_as_it_is(text):
    assert bare(shown(text)) == plain(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\u202eb", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("\x00\x00\x00", "U+0000 control character ×3"),
        ("\u200b", "U+200B ZERO WIDTH SPACE"),
        ("\U000e0041", "U+E0041 TAG LATIN CAPITAL LETTER A"),
        ("\u3164", "U+3164 HANGUL FILLER"),
        ("\ud800", "U+D800 control character"),
    ],
)
def test_what_cannot_be_seen_is_named(text, said):
    assert f'title="{said}"' in shown(text)
    assert not set(text) - {"a", "b"} & set(shown(text))


def test_a_text_full_of_marks_stays_small():
    odd = "\u202a\u202b" * 1000
    assert bare(shown(odd)).count("U+202A") == 1000
    assert len(shown(odd)) < 20 * len(odd)


def test_numbers_read_well():
    assert [percent(v) for v in (0.96412, 1.0, 0.0, 0.00042, None)] == [
        "96.4%",
        "100.0%",
        "0.0%",
        "0.042%",
        "unknown",
    ]
    assert [scaled(v, "FLOP") for v in (4.07e7, 421e6, 999.9e6, 12.0, None)] == [
        "40.7 MFLOP",
        "421 MFLOP",
        "1 GFLOP",
        "12 FLOP",
        "unknown",
    ]
    assert [duration(v) for v in (1.94, 48.2, 131.4, 7325, None)] == [
        "1.9 s",
        "48 s",
        "2 min 11 s",
        "2 h 02 min",
        "unknown",
    ]
    assert [money(v) for v in (0.0, 0.0042, 12.5, None)] == ["US$ 0.00", "US$ 0.0042", "US$ 12.50", "unknown"]
    assert [score(v) for v in (1.0, 0.5, 0.0, 0.25, None)] == ["1", "0.5", "0", "0.25", "unscored"]
    assert moment("2026-11-21T10:44:07+01:00") == "2026-11-21 09:44 UTC"


def test_only_finite_numbers_are_numbers():
    tree = {"a": float("nan"), "b": float("inf"), "c": True, "d": "1", "e": 10**400, "f": 2, "g": {"h": 0.5}}
    assert [number(tree, key) for key in "abcdefg"] == [None, None, None, None, None, 2.0, None]
    assert number(tree, "g", "h") == 0.5
    assert number(tree, "f", "h") is None
    assert measure({"x": {"score": 1, "low": None}}, "x") == Measure(1.0, None, None)


def test_difference_marks_what_the_other_lacks():
    teacher, student = difference("total: 51.50 now", "total: 51.60 now and <b>")
    assert teacher == "total: 51.<del>50</del> now"
    assert student == "total: 51.<ins>60</ins> now<ins> and &lt;b&gt;</ins>"


@given(st.text("ab <\n", max_size=60), st.text("ab <\n", max_size=60))
def test_difference_keeps_both_texts(teacher, student):
    left, right = difference(teacher, student)
    assert (bare(left), bare(right)) == (teacher, student)


def test_order_puts_largest_regression_first_and_lets_families_take_turns():
    rows = [(f"a{n}", "a", -1.0, 0.0) for n in range(50)] + [("b0", "b", -1.0, 0.0), ("c0", "c", -0.5, 0.5)]
    rows += [(f"t{n:02}", "a", 0.0, n % 2) for n in range(50)] + [
        ("w0", "a", 1.0, 1.0),
        ("u0", "a", None, None),
    ]
    found = order(rows, 20)
    assert len(found) == len(set(found)) == 20
    assert found[:3] == ["a0", "b0", "a1"]
    kinds = "".join(name[0] for name in found).replace("b", "a")
    assert kinds == "a" * 15 + "t" * 4 + "w"  # places that wins leave free go to regressions
    assert [name for name in found if name[0] == "t"] == ["t00", "t02", "t04", "t06"]  # wrong answers first


def test_order_shows_all_when_there_are_few():
    rows = [("w", "f", 1.0, 1.0), ("u", "f", None, 0.0), ("t", "f", 0.0, 1.0), ("r2", "f", -0.2, 0.8)]
    assert order([*rows, ("r1", "f", -0.9, 0.1)], 20) == ["r1", "r2", "t", "w", "u"]


def points(*flops: float | None) -> list[svg.Point]:
    kinds = ("teacher", "student", "before", "baseline")
    return [
        svg.Point(kind, kind, cost, Measure(0.9 - n / 5, 0.85 - n / 5, 0.95 - n / 5))
        for n, (kind, cost) in enumerate(zip(kinds, flops, strict=True))
    ]


@pytest.mark.parametrize("width", [800, 358])
@pytest.mark.parametrize(
    "flops", [(4e8, 4e7, 4e7, None), (None, None, None, None), (1e3, 1e15, 2e15, 1.0), (5.0, 5.0, 5.0, 5.0)]
)
def test_scatter_is_well_formed_and_inside_its_frame(width, flops):
    drawing = svg.scatter(points(*flops), width, "title <&", "description")
    root = minidom.parseString(drawing).documentElement
    height = float(root.getAttribute("viewBox").split()[3])
    for element in root.getElementsByTagName("text"):
        assert 0 <= float(element.getAttribute("x")) <= width
        assert 0 <= float(element.getAttribute("y")) <= height
    assert len(re.findall('class="mark ', drawing)) == 4


def test_long_logs_are_thinned_without_losing_their_end():
    train = [(float(n), 2.0 / (1 + n)) for n in range(100_000)]
    drawing = svg.losses(train, train[::10], [], 800, "loss", "words")
    minidom.parseString(drawing)
    assert len(drawing) < 30_000
    assert "99,999" not in drawing
    assert re.search(r'd="M[^"]*L784 [\d.]+" class="line train"', drawing)


@pytest.mark.parametrize(
    "values", [[(0.0, 0.0)], [(1.0, 5.0)], [(1.0, -1.0), (2.0, 3.0)], [(5.0, 1e-9), (9.0, 9.0)]]
)
def test_odd_losses_can_be_drawn(values):
    for train, held in ((values, []), ([], values), (values, values)):
        drawing = svg.losses(train, held, values, 358, "loss", "words")
        minidom.parseString(drawing)
        assert "nan" not in drawing


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_keep_their_contrast(scheme):
    """WCAG AA: 4.5 for text, 3 for marks, on the page's and on the raised ground, light and dark."""
    colours = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", CSS.split(":root{")[1 + scheme].split("}")[0]))
    for ground in ("bg", "raised"):
        for text in ("ink", "soft", "orange-ink", "blue"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for mark in ("blue", "orange", "grey"):
            assert contrast(colours[mark], colours[ground]) >= 3, (mark, ground)
