"""The report shows what a calibrated cascade scores, and nothing where there is none."""

import re
from html import unescape
from xml.dom.minidom import parseString

import pytest
from report.report_sample import write_sample_run

from stillhouse.report import write_report
from stillhouse.workspace import write_json


def figures(threshold=0.1, more=None):
    points = [
        {"deferred": n / 20, "score": 0.9 + 0.03 * n / 20, "low": 0.88, "high": 0.95} for n in range(21)
    ]
    return {
        "n": 667,
        "fitted": 333,
        "left_out": 0,
        "teacher": 0.93,
        "student": 0.9,
        "most": 0.01,
        "level": 0.05,
        "lost": "regressions",
        "promise": {
            "threshold": threshold,
            "deferred": 0.35 if threshold else 1.0,
            "loss": 0.003,
            "p": 0.02,
            "n": 667,
            "more": more,
        },
        "families": {},
        "score": {"area": 0.01, "points": points},
        "logprob": {"area": 0.008, "points": points},
    }


def page(run):
    return write_report(run).read_text()


def words(text):
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text)))


@pytest.fixture
def run(tmp_path):
    return write_sample_run(tmp_path / "run")


def test_the_curve_is_drawn_with_what_is_promised(run):
    assert "With the teacher behind it" not in page(run)
    write_json(run.cascade_curve, figures())
    text = page(run)
    said = words(text)
    assert "With 35.0% deferred, at most 1.0% is lost with 95% confidence" in said
    assert "promised at 35.0%" in said
    drawings = re.findall(r"<svg[^>]*cascade-\d+-title.*?</svg>", text, re.S)
    assert len(drawings) == 2
    for drawing in drawings:
        parseString(drawing)
    assert 'href="#cascade"' in text
    assert "cascade-curve.json" in said


def test_a_promise_that_is_not_attainable_is_said_to_be_none(run):
    write_json(run.cascade_curve, figures(threshold=None, more=404))
    assert "No promise is attainable with these 667 prompts, 404 more needed." in words(page(run))


@pytest.mark.parametrize(
    "told", [{}, {"score": 7}, {"score": {"points": [None, {}]}, "student": 1, "teacher": 1}]
)
def test_a_damaged_file_is_left_out(run, told):
    write_json(run.cascade_curve, told)
    assert "With the teacher behind it" not in page(run)
