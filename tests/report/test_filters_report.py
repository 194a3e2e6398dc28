"""The funnel of curation on the page: what each filter took, the balances, the leaks and the draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report.report_sample import write_sample_run

from stillhouse.report import write_report
from stillhouse.workspace import RunFolder, write_json

FUNNEL = [
    {
        "filter": "refusals",
        "in": 2998,
        "dropped": 150,
        "unscored": 3,
        "marks": {},
        "out": 2845,
        "families": {"policy": 120, "reply": 33},
        "teachers": {"m": 153},
    },
    {
        "filter": "personal data",
        "in": 2845,
        "dropped": 0,
        "unscored": 0,
        "marks": {"email": 17},
        "out": 2845,
        "families": {},
        "teachers": {},
    },
]
LEAKS = [
    {
        "set": "<b>exam</b>",
        "questions": 1319,
        "threshold": 0.5,
        "rows": {"same": 1, "leaks": 4, "any": 80},
        "questions_held": 2,
        "test_words": 1000,
        "test_words_held": 25,
    }
]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_sample_run(tmp_path)


def test_the_page_shows_what_each_filter_took(run: RunFolder):
    marker = json.loads(run.marker("curate").read_text())
    group = {"rows": 2998, "kept": 2845, "dropped": 150, "unscored": 3}
    marker["result"] |= {
        "kept": 2845,
        "reasons": {"refusal": 150},
        "unscored": {"refusals raised KeyError": 3},
        "funnel": FUNNEL,
        "balance": {"families": {"policy": group}, "teachers": {"m": group}},
        "leaks": LEAKS,
        "draws": {"prompts": 700, "answers": 2845},
    }
    write_json(run.marker("curate"), marker)
    page = write_report(run).read_text()
    assert "2,998 in; 2,845 kept + 150 dropped + 3 unscored." in page
    assert "personal data: email in 17" in page
    assert "policy 120, reply 33" in page
    assert "<summary>Rows by family</summary>" in page
    assert "<summary>Rows by teacher</summary>" in page
    assert "refusals raised KeyError" in page
    assert "&lt;b&gt;exam&lt;/b&gt;" in page
    assert "2.5%" in page
    assert "Chosen from 2,845 answers that passed, of 2,998, to 700 prompts." in page


@pytest.mark.parametrize(
    "broken", [None, 7, [], [None], {"filter": 1}, [{"filter": [], "in": "x", "marks": 3}]]
)
def test_a_damaged_funnel_is_no_crash(run: RunFolder, broken: object):
    marker = json.loads(run.marker("curate").read_text())
    marker["result"] |= {
        "funnel": broken,
        "balance": broken,
        "leaks": broken,
        "draws": broken,
        "unscored": broken,
    }
    write_json(run.marker("curate"), marker)
    assert "Where the rows went" in write_report(run).read_text()


def test_a_run_from_before_there_was_a_funnel_has_none(run: RunFolder):
    assert "What each filter took out" not in write_report(run).read_text()
