"""The verdict on a declared margin, and what test prompts can decide before anything is asked."""

import pytest

from stillhouse.evaluate.figures import lay_out
from stillhouse.evaluate.predictions import Prediction
from stillhouse.evaluate.verdict import foresee, margins_before, notes_on_verdict, verdict
from stillhouse.records import Message, Prompt


def sheet(both, teacher_only, student_only, neither, group=""):
    cells = [(1, 1)] * both + [(1, 0)] * teacher_only + [(0, 1)] * student_only + [(0, 0)] * neither
    return lay_out(
        [
            Prediction(f"p{i}", "f", group, system, "a", float(score), "", 1, 1, "stop")
            for i, cell in enumerate(cells)
            for system, score in zip(("teacher", "student"), cell, strict=True)
        ]
    )


def test_each_ruling_and_how_many_more_prompts_would_decide():
    held = verdict(sheet(950, 5, 6, 39), 0.05)
    assert (held["ruling"], held["more"], held["reason"]) == ("non-inferior", 0, "")
    assert verdict(sheet(800, 150, 2, 48), 0.05)["ruling"] == "inferior"
    open_ = verdict(sheet(45, 2, 1, 2), 0.05)
    assert open_["ruling"] == "not decided"
    assert open_["more"] > 0
    assert (open_["level"], open_["margin"]) == (0.025, 0.05)


@pytest.mark.parametrize(
    ("rows", "margin", "reason"),
    [
        (sheet(9, 1, 0, 0), None, "no `evaluate.margin` is declared in the recipe"),
        (lay_out([]), 0.05, "no prompt was scored for both teacher and student"),
        (sheet(0, 0, 3, 3), 0.05, "the teacher scored nothing"),
        (sheet(9, 1, 0, 0, group="g"), 0.05, "all scored prompts are of one group"),
        (sheet(1, 0, 0, 0), 0.05, "all scored prompts are of one group"),
    ],
)
def test_without_anything_to_tell_by_there_is_no_ruling_but_its_reason(rows, margin, reason):
    found = verdict(rows, margin)
    assert (found["ruling"], found["more"], found["reason"]) == (None, None, reason)
    assert any(reason in note for note in notes_on_verdict(found)) == (margin is not None)


def test_a_margin_that_is_chosen_after_the_scores_is_told():
    first = verdict(sheet(90, 8, 1, 1), 0.02)
    again = verdict(sheet(90, 8, 1, 1), 0.2, margins_before({"verdict": first}))
    assert again["ruling"] == "non-inferior"
    assert again["earlier"] == [0.02]
    assert any("another margin (0.02)" in note for note in notes_on_verdict(again))
    back = verdict(sheet(90, 8, 1, 1), 0.02, margins_before({"verdict": again}))
    assert back["earlier"] == [0.2], "and going back does not wash it away"
    assert margins_before(None) == margins_before({}) == margins_before({"verdict": None}) == []
    undeclared = verdict(sheet(90, 8, 1, 1), None)
    assert margins_before({"verdict": undeclared}) == []


def prompts(n, groups=0, scorer="exact", reference="a"):
    return [
        Prompt(f"p{i}", (Message("user", "?"),), "f", f"g{i % groups}" if groups else "", reference, scorer)
        for i in range(n)
    ]


def test_a_plan_knows_what_margin_its_prompts_decide():
    plain = foresee(prompts(1000), 0.05)
    assert (plain.n, plain.groups, plain.unscored) == (1000, 1000, 0)
    assert plain.alone == plain.alike
    assert 0.02 < plain.alone < 0.05
    assert plain.needed < 1000
    grouped = foresee(prompts(1000, 50), 0.01)
    assert grouped.groups == 50
    assert grouped.alone == plain.alone
    assert grouped.alike == foresee(prompts(50), None).alone
    assert grouped.needed > 1000
    assert foresee(prompts(10), None).needed is None


def test_a_plan_without_anything_to_score_knows_that():
    found = foresee([*prompts(3, scorer=None), *prompts(2, reference=None)], 0.05)
    assert (found.n, found.unscored, found.alone, found.alike) == (0, 5, None, None)
    assert foresee(prompts(5, groups=1), 0.05).alike is None
