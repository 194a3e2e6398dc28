"""What else changed: each figure against rows of which the truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluate.battery import battery_figures, battery_prompts
from stillhouse.evaluate.calibration import (
    calibration,
)
from stillhouse.evaluate.fidelity import fidelity_figures, tool_calls, whole_json
from stillhouse.evaluate.predictions import Prediction
from stillhouse.refusals import declines
from stillhouse.scoring import BUILTIN, score


def row(i, system, answer, score=1.0, family="f", tokens=4, logprob=None, finish="stop"):
    return Prediction(f"p{i}", family, f"g{i}", system, answer, score, "", 9, tokens, finish, logprob)


def both(*answers, **more):
    made = []
    for i, (teacher, student) in enumerate(answers):
        made += [row(i, "teacher", teacher, **more), row(i, "student", student, **more)]
    return made


def figures(rows, apart=()):
    return fidelity_figures(rows, apart, 17, 200)


def test_lengths_and_marks_are_compared_on_what_both_answered():
    rows = both(("**bold** words", "plain"), ("- one\n- two", "one and two"), ("four", "four"), ("x", None))
    found = figures(rows)["style"]
    assert found["n"] == 3
    assert found["characters"]["value"] == pytest.approx((5 + 11 + 4) / (14 + 11 + 4))
    assert found["tokens"]["value"] == 1.0
    assert found["markdown"]["teacher"] == pytest.approx(1 / 3)
    assert (found["list"]["teacher"], found["list"]["student"]) == (pytest.approx(1 / 3), 0.0)
    assert found["list"]["change"]["value"] == pytest.approx(-1 / 3)
    assert found["punctuation"]["student"] == 0.0
    assert found["punctuation"]["teacher"] > 0.1


def test_refusals_are_counted_lost_and_invented():
    no = "I'm sorry, but I can't help with that."
    rows = [
        *both((no, "Sure."), (no, "I cannot assist you there."), ("Sure.", no), ("Sure.", "Sure.")),
        row(9, "teacher", "Sure."),
        row(9, "student", "", finish="content_filter"),
    ]
    assert figures(rows)["refusals"] == {"n": 5, "both": 1, "lost": 1, "invented": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I\u2019m sorry, but I can\u2019t help with that.", True),
        ("As an AI language model, I cannot offer an opinion.", True),
        ("I am sorry that your lamp broke. We send a new one.", False),
        ("You can't return it after 30 days.", False),
        ("", False),
    ],
)
def test_only_an_answer_that_opens_by_declining_declines(text, said):
    assert declines(text) is said


def test_json_and_tool_calls_are_checked_where_the_teacher_gives_them():
    call = '<tool_call>{"name": "find", "arguments": {"q": 1}}</tool_call>'
    rows = both(
        ('{"a": 1, "b": 2}', '```json\n{"b": 3, "a": 1}\n```'),
        ('{"a": 1}', '{"a": 1'),
        ('{"a": 1}', '{"c": 1}'),
        ("text", "[1]"),
        (call, call),
        (call, '<tool_call>{"name": "find"}</tool_call>'),
    )
    found = figures(rows)
    assert found["json"] == {"n": 3, "valid": 2, "same": 1, "invented": 1}
    assert found["tool_calls"] == {"n": 2, "valid": 1, "same": 1, "invented": 0}


@given(st.text())
def test_no_answer_is_too_odd_to_be_read(text):
    whole_json(text)
    tool_calls(f"<tool_call>{text}")
    figures(both((text, text[::-1])))


def test_families_outside_what_was_trained_on_are_scored_apart():
    rows = [
        *both(*[("a", "a")] * 3, score=1.0),
        row(7, "teacher", "a", 1.0, "oos"),
        row(7, "student", "b", 0.0, "oos"),
        row(8, "teacher", "a", 1.0, "oos"),
        row(8, "student", "b", 0.0, "oos"),
    ]
    found = figures(rows, ["oos"])["slice"]
    assert (found["apart"]["student"]["score"], found["rest"]["student"]["score"]) == (0.0, 1.0)
    assert found["apart"]["retention"]["value"] == 0.0
    assert found["less"]["value"] == 1.0
    assert figures(rows)["slice"] is None


@pytest.mark.parametrize(("right", "shown"), [(0.5, True), (0.9, False)])
def test_a_slice_on_which_less_is_kept_is_told_from_one_that_is_only_smaller(right, shown):
    """As where the old test questions were learnt in other words, and the new ones were not."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(300):
        family, chance = ("fresh", right) if i % 3 == 0 else ("old", 0.9)
        student = float(rng.random() < chance)
        rows += [row(i, "teacher", "a", 1.0, family), row(i, "student", "a", student, family)]
    less = figures(rows, ["fresh"])["slice"]["less"]
    assert (less["low"] > 0) is shown
    assert less["low"] < less["value"] < less["high"]


def test_nothing_to_compare_is_no_crash_and_no_zero():
    found = figures([])
    assert found["style"]["characters"]["value"] is None
    assert found["style"]["markdown"]["teacher"] is None
    assert found["refusals"]["n"] == 0
    assert found["calibration"]["student"]["ece"] is None
    assert json.loads(json.dumps(found)) == found


def test_calibration_takes_the_probability_of_the_whole_answer():
    rows = [
        row(0, "student", "a", 1.0, logprob=math.log(0.5)),
        row(1, "student", "a", 0.0, logprob=math.log(0.5)),
        row(2, "student", "a", None, logprob=math.log(0.5)),
        row(3, "student", None, 0.0),
    ]
    found = calibration(rows)["student"]
    assert (found["n"], found["confidence"], found["right"]) == (2, pytest.approx(0.5), 0.5)
    assert found["brier"] == pytest.approx(0.25)


def test_the_battery_holds_prompts_that_their_own_scorers_can_score():
    prompts = battery_prompts()
    assert len({prompt.id for prompt in prompts}) == len(prompts) >= 24
    for prompt in prompts:
        assert score(prompt.scorer, prompt.reference, prompt.reference, BUILTIN).value == 1.0, prompt.id
        assert score(prompt.scorer, "zebra crossing", prompt.reference, BUILTIN).value == 0.0, prompt.id


def test_the_battery_tells_what_was_lost():
    names = [prompt.id for prompt in battery_prompts()]
    rows = [
        Prediction(name, name.split("-")[0], "", system, "x", float(place % 2 == 0 or gone), "", 1, 1, "stop")
        for system, gone in (("student_before", 1), ("student", 0))
        for place, name in enumerate(names)
    ]
    found = battery_figures(rows)
    assert (found["before"], found["after"], found["lost"], found["gained"]) == (1.0, 0.5, 14, 0)
    assert found["change"]["high"] < -0.2
    assert found["p"] < 0.001
    assert set(found["families"]) == {"arithmetic", "copy", "format", "choice"}
    only_after = battery_figures([each for each in rows if each.system == "student"])
    assert (only_after["before"], only_after["change"]["value"], only_after["p"]) == (None, None, None)
