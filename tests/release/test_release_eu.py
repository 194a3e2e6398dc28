"""The AI Act's template, form and scope, as far as facts were recorded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from releasing import DECISION, FACTS, TEACHER, nothing_recorded, taught_by

from stillhouse.release.documents import as_json
from stillhouse.release.eu import (
    markdown,
    model_documentation_form,
    scope,
    standing,
    training_content_summary,
)
from stillhouse.release.facts import compute, missing

ORDER = "0 1.1 1.2 1.3 2.1 2.2.1 2.2.2 2.3 2.4 2.5 2.6 3.1 3.2 3.3".split()


def value(document: dict, section: str, field: str):
    fields = {s["section"]: {f["field"]: f["value"] for f in s["fields"]} for s in document["sections"]}
    return fields[section][field]


@pytest.mark.parametrize("facts", [FACTS, nothing_recorded()], ids=["all", "nothing"])
def test_the_summary_has_the_templates_fields_in_its_order(facts):
    summary = training_content_summary(facts)
    assert [s["section"] for s in summary["sections"]] == ORDER
    shown = [line for line in markdown(summary).split("\n") if line.startswith("## ")]
    assert [line.split()[1] for line in shown[: len(ORDER)]] == ORDER
    assert json.loads(as_json(summary)) == summary


def test_synthetic_data_names_every_teacher_with_tokens_answers_and_days():
    other = replace(TEACHER, model="b", rows=0, exchanges=10, times=None)
    taught = value(
        training_content_summary(taught_by(TEACHER, other)), "2.5", "Models used, as far as recorded"
    )
    assert [(t["model"], t["answers"], t["tokens_written"]) for t in taught] == [
        (TEACHER.model, 100, 100_000_000),
        ("b", 10, 100_000_000),
    ]
    assert taught[0]["first_answer"] == "2026-11-20T08:00:00.000000Z"
    assert taught[1]["first_answer"] is None
    assert {t["modality"] for t in taught} == {"text"}
    assert [t["share_of_rows"] for t in taught] == [1.0, 0.0]


def test_what_was_not_recorded_has_no_value_and_is_listed():
    summary = training_content_summary(nothing_recorded())
    for section, field in (("1.1", "Provider's name"), ("2.3", "Crawled by the provider or on its behalf")):
        assert value(summary, section, field) is None
    assert "the provider's name" in summary["missing"]
    assert "- the provider's name" in markdown(summary)
    assert "| Provider's name | not recorded |" in markdown(summary)
    assert training_content_summary(FACTS)["missing"] == []


def test_the_form_counts_what_was_recorded():
    form = model_documentation_form(FACTS)
    assert value(form, "2", "Parameters") == "8000000000 (two figures: 8.0e+09)"
    assert value(form, "5", "Number of data points") == 90
    assert value(form, "6", "Compute, operations") == str(compute(FACTS).total)
    assert value(model_documentation_form(nothing_recorded()), "6", "Compute, operations").startswith(
        "at least"
    )


def test_operations_agree_with_the_worked_example_of_the_guidelines():
    """An 8B student on 200 M tokens, and a teacher of 22B that passes 400 M: 2.7e19 together."""
    counted = compute(FACTS)
    assert counted.training == 6 * 8_000_000_000 * 200_000_000 == 9_600_000_000_000_000_000
    assert counted.answers == 2 * 22_000_000_000 * 400_000_000 == 17_600_000_000_000_000_000
    assert counted.total == pytest.approx(2.7e19, rel=0.01)
    found = scope(FACTS)["thresholds"]
    assert {name: each["standing"] for name, each in found.items()} == dict.fromkeys(
        ("third_of_base", "third_of_general_purpose", "general_purpose"), "below"
    )
    assert found["third_of_general_purpose"]["operations"] == pytest.approx(3.3e22, rel=0.02)


def test_a_teacher_that_reads_the_rows_counts_in_training_too():
    def of(objective: str, targets: str) -> int:
        learnt = {"distil": {"targets": targets}}
        training = replace(FACTS.training, objective=objective, settings=learnt)
        return compute(replace(FACTS, training=training)).readings

    read = 2 * 22_000_000_000 * 200_000_000
    assert (of("sequence", "teacher"), of("distil", "answers"), of("distil", "teacher")) == (0, 0, read)


def test_a_teacher_of_unknown_size_leaves_the_standing_open_and_says_what_would_decide_it():
    unknown = replace(TEACHER, parameters=None)
    found = scope(taught_by(unknown))
    limit = found["thresholds"]["third_of_general_purpose"]
    assert found["operations"]["total_is_least"]
    assert found["operations"]["teachers_of_unknown_size"] == {TEACHER.model: 400_000_000}
    assert limit["standing"] == "not known"
    sized = replace(TEACHER, parameters=limit["teacher_parameters_to_reach"])
    total = compute(taught_by(sized)).total
    assert total * 1.3 == pytest.approx(limit["operations"], rel=1e-3)


@settings(deadline=None)
@given(st.floats(1, 1e27), st.floats(1, 1e27), st.booleans())
def test_a_count_is_below_or_above_only_beyond_the_margin(total: float, limit: float, least: bool):
    said = standing(total, limit, least)
    if said == "below":
        assert total * 1.3 < limit
        assert not least
    elif said == "above":
        assert total * 0.7 > limit
    else:
        assert said == ("not known" if least else "within the margin")


@pytest.mark.parametrize(
    ("licence", "obligations", "holds"),
    [
        ("Apache-2.0", (), "yes"),
        ("Apache-2.0", DECISION.obligations, "no"),
        ("LicenseRef-house", (), "unknown"),
        (None, (), "unknown"),
    ],
)
def test_the_relief_for_open_source_falls_with_a_teachers_limits(licence, obligations, holds):
    teacher = replace(TEACHER, decisions=(replace(DECISION, obligations=obligations),))
    relief = scope(taught_by(teacher, licence=licence))["relief_for_open_source"]
    assert relief["licence_free_of_limits_on_use_scale_and_payment"]["holds"] == holds
    assert relief["no_monetisation"]["holds"] == "unknown"
    assert {each["holds"] for each in relief.values()} <= {"yes", "no", "unknown"}


def test_what_is_missing_is_named_teacher_by_teacher():
    other = replace(TEACHER, model="b", lineage=None, uncounted=4)
    assert missing(taught_by(TEACHER, other)) == (
        "what b itself was taught by",
        "the tokens of 4 answers of b",
    )
