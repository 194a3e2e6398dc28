"""Figures from hand-made prediction rows: worked by hand, and unknown where nothing can be known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse import stats
from stillhouse.evaluate.figures import summarise
from stillhouse.evaluate.predictions import (
    SYSTEMS,
    Given,
    Prediction,
    TeacherAnswers,
    given_by_teacher,
    judged,
    read_predictions,
    write_predictions,
)
from stillhouse.records import Message, Prompt
from stillhouse.scoring import BUILTIN


def row(prompt_id, system, score, answer="a", family="f", group="", reason="", finish="stop"):
    return Prediction(prompt_id, family, group, system, answer, score, reason, 10, 5, finish)


def sheet(**scores):
    """Rows from one score string for each system: 1 right, 0 wrong, u unscored, x no answer."""
    rows = []
    for system, marks in scores.items():
        for i, mark in enumerate(marks):
            if mark == "x":
                rows.append(row(f"p{i}", system, None, None, reason="timed out"))
            elif mark == "u":
                rows.append(row(f"p{i}", system, None, reason="no reference"))
            else:
                answer = "right" if mark == "1" else f"wrong of {system}"
                rows.append(row(f"p{i}", system, float(mark), answer))
    return rows


def test_scores_retention_and_gap_worked_by_hand():
    found = summarise(
        sheet(teacher="1111111100", student_before="1000000000", student="1111110010", baseline="1100000000")
    )
    assert [found[system]["score"] for system in SYSTEMS] == pytest.approx([0.8, 0.1, 0.7, 0.2])
    assert found["retention"]["value"] == pytest.approx(7 / 8)
    assert found["retention"]["low"] < 7 / 8 < found["retention"]["high"]
    assert found["gap_closed"]["value"] == pytest.approx(6 / 7)
    assert found["mcnemar"] == {"p": 1.0, "teacher_only": 2, "student_only": 1, "n": 10}
    assert found["prompts"] == {"n": 10, "groups": 10, "families": 1}
    wilson = stats.wilson(8, 10)
    assert found["teacher"]["low"] == pytest.approx(wilson.low)
    assert found["families"]["f"]["teacher"] == {
        "score": 0.8,
        "low": pytest.approx(wilson.low),
        "high": pytest.approx(wilson.high),
        "n": 10,
        "unscored": 0,
        "failed": 0,
    }
    assert found["notes"] == []


def test_what_the_teacher_did_not_answer_is_counted_and_left_out_of_the_comparison():
    found = summarise(sheet(teacher="11x0u", student="10110", student_before="00000"))
    assert (found["teacher"]["n"], found["teacher"]["failed"], found["teacher"]["unscored"]) == (3, 1, 1)
    assert found["teacher"]["score"] == pytest.approx(2 / 3)
    assert found["student"]["score"] == pytest.approx(3 / 5), "the student's own score keeps every prompt"
    assert found["retention"]["value"] == pytest.approx(2 / 2), "three prompts: 1,0,1 against 1,1,0"
    assert found["retention"]["n"] == 3
    notes = "\n".join(found["notes"])
    assert "teacher: no answer to 1 of 5 prompts (1 x timed out)" in notes
    assert "teacher: 1 of 5 answers not scored (1 x no reference)" in notes
    assert "compared on the 3 of 5 prompts" in notes
    assert found["baseline"] == {"score": None, "low": None, "high": None, "n": 0, "unscored": 0, "failed": 0}


def test_nothing_to_score_is_unknown_and_not_zero():
    found = summarise(sheet(teacher="uuu", student="uuu", student_before="uuu"))
    for system in ("teacher", "student", "student_before", "baseline"):
        assert found[system]["score"] is None
    assert found["retention"] == {"value": None, "low": None, "high": None, "n": 0, "groups": 0}
    assert found["gap_closed"]["value"] is None
    assert found["mcnemar"]["p"] is None
    assert found["agreement"]["value"] == 1.0, "agreement needs no scores"
    assert found["agreement"]["teacher_right"]["value"] is None
    assert any("no answer could be scored" in note for note in found["notes"])


def test_no_prompts_at_all():
    found = summarise([])
    assert found["student"]["score"] is None
    assert found["families"] == {}
    assert found["notes"] == ["there were no test prompts, so nothing was measured"]


def test_agreement_is_split_by_whether_the_teacher_was_right():
    rows = [
        *(row(f"p{i}", "teacher", s, a) for i, (s, a) in enumerate([(1.0, "A"), (1.0, "B"), (0.0, "C")])),
        *(row(f"p{i}", "student", s, a) for i, (s, a) in enumerate([(1.0, " a "), (0.0, "X"), (0.0, "c")])),
    ]
    found = summarise(rows)["agreement"]
    assert found["value"] == pytest.approx(2 / 3)
    assert (found["teacher_right"]["value"], found["teacher_right"]["n"]) == (0.5, 2)
    assert (found["teacher_wrong"]["value"], found["teacher_wrong"]["n"]) == (1.0, 1)


def test_intervals_are_clustered_by_group_and_one_group_gives_none():
    def grouped(groups):
        return [
            row(f"p{i}", system, float(i % groups != 0), group=f"g{i % groups}")
            for i in range(120)
            for system in ("teacher", "student")
        ]

    wide = summarise(grouped(12))["student"]
    narrow = summarise([row(f"p{i}", "student", float(i % 12 != 0)) for i in range(120)])["student"]
    assert wide["score"] == narrow["score"]
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
    one = summarise(grouped(1))
    assert (one["student"]["low"], one["retention"]["low"]) == (None, None)
    assert any("one group" in note for note in one["notes"])
    three = summarise(grouped(3))
    assert any("only 3 groups" in note for note in three["notes"])
    assert any("McNemar's p takes prompts as independent" in note for note in three["notes"])
    assert three["retention"]["groups"] == 3


def test_intervals_of_a_family_are_clustered_and_of_one_group_noted():
    """Prompts of a template stand and fall together: 20 of each of 8 templates are not 160 prompts."""
    rows = [row(f"p{i}", "student", float(i % 8 != 0), family="f", group=f"g{i % 8}") for i in range(160)]
    rows += [row(f"q{i}", "student", float(i != 0), family="one", group="h") for i in range(20)]
    found = summarise(rows)
    family, plain = found["families"]["f"]["student"], stats.wilson(140, 160)
    assert family["high"] - family["low"] > 3 * (plain.high - plain.low)
    one, plain = found["families"]["one"]["student"], stats.wilson(19, 20)
    assert (one["low"], one["high"]) == (plain.low, plain.high)
    assert any("all of one group (one)" in note for note in found["notes"])
    assert not any("McNemar" in note for note in found["notes"]), "nothing was compared"


def test_family_intervals_cover_the_truth_where_templates_differ():
    """As reviewed: 12 templates of 10 prompts each, chances drawn by template around 0.8."""
    rng = np.random.default_rng(5)
    hits = naive = 0
    for _ in range(150):
        chances = rng.beta(1.6, 0.4, 12)
        marks = rng.random((12, 10)) < chances[:, None]
        rows = [row(f"{g} {i}", "student", float(marks[g, i]), group=f"g{g}") for g, i in np.ndindex(12, 10)]
        span, plain = summarise(rows)["families"]["f"]["student"], stats.wilson(marks.sum(), 120)
        hits += span["low"] <= 0.8 <= span["high"]
        naive += plain.low <= 0.8 <= plain.high
    assert hits / 150 > 0.88
    assert naive / 150 < 0.8


def test_a_family_of_one_prompt_stands_beside_the_others():
    rows = [*sheet(teacher="1110", student="1100"), row("q", "teacher", 1.0, family="g")]
    rows.append(row("q", "student", 0.0, family="g"))
    found = summarise(rows)["families"]
    assert list(found) == ["f", "g"]
    assert (found["g"]["n"], found["g"]["groups"], found["g"]["retention"]["value"]) == (1, 1, 0.0)
    assert found["g"]["retention"]["low"] is None
    assert found["g"]["student"]["high"] == pytest.approx(stats.wilson(0, 1).high)
    assert found["f"]["retention"]["value"] == pytest.approx(2 / 3)


def test_the_gap_is_undefined_when_the_teacher_is_not_ahead_and_the_note_says_so():
    found = summarise(sheet(teacher="1100", student="1110", student_before="1110"))
    assert found["gap_closed"] == {"value": None, "low": None, "high": None, "n": 4}
    assert any("no better than the untrained student" in note for note in found["notes"])


def test_a_teacher_that_scores_nothing_leaves_the_share_kept_undefined():
    found = summarise(sheet(teacher="000", student="100", student_before="000"))
    assert (found["teacher"]["score"], found["retention"]["value"]) == (0.0, None)
    assert any("teacher scored nothing" in note for note in found["notes"])


def test_agreement_throughout_is_not_sold_as_certainty():
    found = summarise(sheet(teacher="1111", student="1111"))
    assert found["retention"]["low"] < 0.6, "four prompts on which they agree prove little"
    assert found["retention"]["high"] > 1.6
    assert found["student"]["low"] == pytest.approx(stats.wilson(4, 4).low)


def test_fractions_and_cut_off_answers_are_noted():
    rows = [
        row("p", "teacher", 0.9),
        row("p", "student", 0.3, finish="length"),
        row("q", "teacher", 1.0),
        row("q", "student", 1.0),
    ]
    found = summarise(rows)
    assert found["retention"]["value"] == pytest.approx(1.3 / 1.9)
    assert found["mcnemar"]["teacher_only"] == 1
    assert any("fractions" in note for note in found["notes"])
    assert any("student: 1 of 2 answers were cut off" in note for note in found["notes"])


def test_a_difference_is_tested_over_groups_and_adjusted_over_families():
    """In `lost` the student fails 12 groups; the other families hold nothing, so Holm multiplies by four."""
    rows = []
    for family, fails in (("lost", 12), ("even", 0), ("small", 0), ("tiny", 0)):
        for i in range(48 if family != "tiny" else 1):
            name, group = f"{family}{i}", f"{family}{i // 4}" if family != "small" else "one"
            rows.append(row(name, "teacher", 1.0, family=family, group=group))
            rows.append(row(name, "student", float(i // 4 >= fails), family=family, group=group))
    found = summarise(rows)
    lost, even = (found["families"][name]["difference"] for name in ("lost", "even"))
    assert lost["p"] == pytest.approx(2 / 2**12), "twelve groups, not 48 prompts"
    assert lost["p_adjusted"] == pytest.approx(2 * 2 / 2**12), "of two families that could be tested"
    assert (lost["value"], even["p"], even["p_adjusted"]) == (-1.0, 1.0, 1.0)
    for alone in ("small", "tiny"):
        untested = found["families"][alone]["difference"]
        assert (untested["p"], untested["p_adjusted"], untested["low"]) == (None, None, None)
    assert found["worst_family"]["name"] == "lost"
    assert found["worst_family"]["p_adjusted"] == lost["p_adjusted"]
    assert any("families of one prompt (tiny) were not tested" in note for note in found["notes"])
    assert found["difference"]["p"] == pytest.approx(2 / 2**12)


def test_without_any_share_there_is_no_worst_family():
    found = summarise(sheet(teacher="0u0", student="1u0"))
    assert found["worst_family"] is None
    assert found["difference"]["value"] == 0.5
    nothing = summarise(sheet(teacher="uu", student="uu"))
    assert nothing["difference"] == {"value": None, "low": None, "high": None, "p": None, "n": 0}


marks = st.lists(st.sampled_from("01ux"), min_size=4, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.lists(marks, max_size=12), st.lists(st.sampled_from(["", "g", "h"]), min_size=12, max_size=12))
def test_any_mixture_of_failures_gives_plain_values_that_balance(columns, groups):
    rows = []
    for i, column in enumerate(columns):
        for system, mark in zip(SYSTEMS, column, strict=True):
            answer = None if mark == "x" else mark
            score = float(mark) if mark in "01" else None
            rows.append(row(f"p{i}", system, score, answer, family=f"f{i % 2}", group=groups[i]))
    found = summarise(rows)
    json.dumps(found, allow_nan=False)
    for system in SYSTEMS:
        block = found[system]
        assert block["n"] + block["unscored"] + block["failed"] == len(columns)
        assert (block["score"] is None) == (block["n"] == 0)
        assert block["low"] is None or 0 <= block["low"] <= block["score"] <= block["high"] <= 1


def prompt(name, scorer="exact", reference="yes"):
    return Prompt(name, (Message("user", "?"),), "f", "g", reference, scorer)


def test_teacher_rows_are_scored_failed_or_unscored_each_with_its_reason():
    prompts = [prompt("a"), prompt("b"), prompt("c"), prompt("d", scorer=None)]
    teacher = TeacherAnswers(
        texts={"a": "Yes", "d": "yes"}, tokens={"a": (7, None)}, failed={"b": "HTTP 500"}, folder=None
    )
    rows = judged("teacher", prompts, given_by_teacher(prompts, teacher), BUILTIN)
    assert [(r.answer, r.score, r.reason) for r in rows] == [
        ("Yes", 1.0, ""),
        (None, None, "HTTP 500"),
        (None, None, "no answer was recorded"),
        ("yes", None, "no scorer"),
    ]
    assert (rows[0].prompt_tokens, rows[0].completion_tokens) == (7, None)


def test_what_a_student_could_not_read_counts_as_wrong_and_what_the_teacher_failed_does_not():
    prompts = [prompt("a"), prompt("b"), prompt("c", scorer=None), prompt("d", scorer="json", reference="?")]
    long = Given(None, "the prompt has 900 tokens and the model's context is 64")
    rows = judged(
        "teacher", prompts, [Given("yes"), Given(None, "HTTP 500"), Given("x"), Given("x")], BUILTIN
    )
    for system in ("student_before", "student"):
        rows += judged(system, prompts, [long] * 4, BUILTIN)
    assert [r.score for r in rows[4:8]] == [0.0, 0.0, None, None], "only where an answer could be scored"
    assert {(r.answer, r.reason) for r in rows[4:]} == {(None, long.reason)}
    found = summarise(rows)
    assert (found["student"]["score"], found["student"]["n"], found["student"]["failed"]) == (0.0, 2, 4)
    assert found["student"]["unscored"] == 0
    assert (found["teacher"]["score"], found["teacher"]["n"]) == (1.0, 1)
    assert (found["retention"]["value"], found["retention"]["n"]) == (0.0, 1)
    assert any(
        "student: no answer to 4 of 4" in n and "2 of them count as wrong" in n for n in found["notes"]
    )


def test_how_the_teachers_answers_ended_reaches_the_rows_and_the_notes():
    prompts = [prompt("a"), prompt("b")]
    teacher = TeacherAnswers({"a": "yes", "b": "ye"}, {}, {}, None, {"b": "length"})
    rows = judged("teacher", prompts, given_by_teacher(prompts, teacher), BUILTIN)
    assert [r.finish_reason for r in rows] == ["unknown", "length"]
    assert any("teacher: 1 of 2 answers were cut off" in note for note in summarise(rows)["notes"])


def test_predictions_come_back_as_they_were_written(tmp_path):
    rows = [row("p", "teacher", None, None, reason="why"), row("p", "student", 0.5, "é\n\0 <b>")]
    write_predictions(tmp_path / "p.parquet", rows)
    assert read_predictions(tmp_path / "p.parquet") == rows
    write_predictions(tmp_path / "p.parquet", [])
    assert read_predictions(tmp_path / "p.parquet") == []
