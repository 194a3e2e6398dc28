"""The sections on what changed, the judge and the worth: what they say, and what they leave unsaid."""

from __future__ import annotations

import json

import pytest
from report.report_sample import write_sample_run

from stillhouse.report import write_report
from stillhouse.workspace import write_json


@pytest.fixture
def page(tmp_path):
    """Writes the report of the sample run after a change to its evaluation."""
    run = write_sample_run(tmp_path)

    def make(change=None):
        evaluation = json.loads(run.evaluation.read_text())
        if change:
            change(evaluation)
        write_json(run.evaluation, evaluation)
        return write_report(run).read_text()

    return make


def section(text, name):
    return text.split(f'<section id="{name}"')[1].split("</section>")[0]


def test_a_usable_judge_is_shown_with_its_standing_first(page):
    shown = section(page(), "judge")
    assert shown.index("agreement with verified labels") < shown.index("student preferred")
    assert "Usable: " in shown
    assert "at equal length" in shown


def test_the_verdicts_of_a_judge_below_chance_are_not_shown_as_a_figure(page):
    def below(evaluation):
        why = "on answers whose scores are known the judge is no better than chance"
        evaluation["judge"] |= {"usable": False, "why": why}

    shown = section(page(below), "judge")
    assert "Not usable: " in shown
    assert "no better than chance" in shown
    assert "student preferred" not in shown
    assert "at equal length</dt>" not in shown


def test_other_students_are_shown_where_there_are_any(page):
    shown = section(page(), "further")
    for words in (
        "Scores by seed",
        "+4.7 points (+2.6 to +6.8)",
        "2,805",
        "standard deviation 0.86 points",
        "layers 0, 3",
    ):
        assert words in shown
    without = page(lambda evaluation: evaluation.update(further=None))
    assert 'id="further"' not in without
    assert "How far the scores would move with another was not measured" in without


def test_without_a_judge_there_is_no_section_and_no_link(page):
    shown = page(lambda evaluation: evaluation.update(judge=None))
    assert 'id="judge"' not in shown
    assert "#judge" not in shown


def test_unknown_prices_are_said_and_never_shown_as_nothing(page):
    shown = section(page(), "worth")
    assert "the price of an hour of this machine" in shown
    assert "teacher unknown; student unknown" in shown
    assert "US$" not in shown
    assert "holds" in shown, "the pair in FLOPs needs no price"


def test_prices_break_even_and_both_pairs_are_shown(page):
    def priced(evaluation):
        rows = evaluation["economics"]
        rows |= {"machine": 0.12, "teacher": 0.03, "student": 0.00003}
        rows["spent"] = {"teacher": 0.21, "training": 0.0044, "total": 0.2144}
        rows["break_even"] = {"answers": 7950.2, "why": ""}

    shown = section(page(priced), "worth")
    for words in ("7,950 answers", "teacher US$ 0.03; student under US$ 0.0001", "US dollars per answer"):
        assert words in shown


def test_a_run_of_before_these_figures_is_still_a_page(page):
    def older(evaluation):
        added = ("fidelity", "battery", "economics", "harness", "judge", "latency", "flops_share", "further")
        for key in added:
            evaluation.pop(key)

    shown = page(older)
    assert "Not measured." in section(shown, "changed")
    assert "Not reckoned." in section(shown, "worth")


@pytest.mark.parametrize("broken", [[], 7, "x", None, {"style": 3, "refusals": []}])
def test_damaged_figures_do_not_stop_the_page(page, broken):
    def damage(evaluation):
        for key in ("fidelity", "battery", "economics", "harness", "judge", "further"):
            evaluation[key] = broken

    assert "<section" in page(damage)


def test_names_from_files_are_escaped(page):
    def hostile(evaluation):
        evaluation["judge"]["model"] = "<script>alert(1)</script>"
        evaluation["worst_family"]["name"] = "<b onclick=x>"
        evaluation["harness"]["failed"] = {"student": "<img src=x>"}

    shown = page(hostile)
    for raw in ("<script", "<b onclick", "<img"):
        assert raw not in shown
    assert "&lt;img src=x&gt;" in shown


def test_a_change_that_is_not_known_is_not_shown_as_none(page):
    def change(value, low=None, high=None):
        def make(evaluation):
            style = evaluation["fidelity"]["style"]
            style["list"] = {
                "teacher": 0.5,
                "student": 0.5,
                "change": {"value": value, "low": low, "high": high},
            }

        shown = section(page(make), "changed")
        return shown.split("answers with a list")[1].split("</tr>")[0]

    assert "unknown" in change(None)
    assert "no change" not in change(None)
    assert "no change" in change(0.0)
    assert "-10.0 to +10.0 points" in change(0.0, -0.1, 0.1)


def test_the_difference_and_the_worst_family_stand_with_interval_and_number(page):
    def known(evaluation):
        evaluation["difference"] = {"value": -0.02, "low": -0.03, "high": -0.01, "p": 0.004, "n": 940}
        evaluation["worst_family"] = {"name": "x", "value": 0.9, "low": 0.8, "high": 0.97, "n": 51}

    shown = section(page(known), "quality")
    assert "less the teacher’s is -2.0 points (-3.0 to -1.0, n = 940; p\u00a0=\u00a00.004 by" in shown
    assert "it keeps 90.0% (80.0 to 97.0%, n = 51; could not be tested alone)" in shown
