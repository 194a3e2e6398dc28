"""Questions of evaluation sets, in whatever file and prompt they stand."""

from __future__ import annotations

import json

import pytest
from curating import row, through

from stillhouse.errors import UsageError
from stillhouse.workspace import Workspace


def test_a_question_among_others_like_it_is_found_in_a_long_prompt(workspace: Workspace, tmp_path):
    first, second, third = (" ".join(f"{name}{i}" for i in range(20)) for name in "abc")
    texts = [
        *(f"{part} {part.upper()[::-1]}" for part in (first, second, third)),
        f"{first} {second} {third}",
    ]
    (tmp_path / "exam.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    around = " ".join(f"other{i}" for i in range(300))
    asked = row(0, "x", f"{around} {first} {second} {third} {around}")
    done, _, _ = through([asked], workspace, leak_sets=[{"file": str(tmp_path / "exam.jsonl")}])
    assert done.reasons == {"leak: exam.jsonl": 1}


def test_a_short_question_is_found_under_another_system_prompt(workspace: Workspace):
    asked = [
        {"role": "system", "content": "Be brief.", "extra": ""},
        *row(0, "", "Who wrote Emma?")["messages"],
    ]
    prompts = [{"id": "t", "messages": asked, "reference": None, "scorer": None, "split": "test"}]
    other = {"role": "system", "content": "You are a patient teacher.", "extra": ""}
    rows = [
        row(0, "Austen", "Who wrote Emma?"),
        row(1, "Jane Austen", "who wrote  Emma?"),
        row(2, "x", "Who?"),
    ]
    rows[1]["messages"].insert(0, other)
    done, kept, _ = through(rows, workspace, prompts)
    assert done.reasons == {"leak: test": 2}
    assert [r["completion"] for r in kept] == ["x"]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\u000c"])
def test_a_question_may_hold_any_separator(workspace: Workspace, tmp_path, separator: str):
    asked = f"Who wrote{separator}Emma?"
    (tmp_path / "exam.jsonl").write_text(
        "\ufeff"
        + "\r\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in (asked, None, " "))
    )
    sets = [{"file": str(tmp_path / "exam.jsonl")}]
    done, _, _ = through([row(0, "x", "Who wrote Emma?")], workspace, leak_sets=sets)
    assert done.reasons == {"leak: exam.jsonl": 1}
    assert done.leaks[0]["questions"] == 1


@pytest.mark.parametrize("value", ['[{"role": "user", "content": "x"}]', "5", "null", '""'])
def test_a_set_without_questions_is_told(workspace: Workspace, tmp_path, value: str):
    (tmp_path / "exam.jsonl").write_text(f'{{"prompt": {value}}}\n')
    with pytest.raises(UsageError, match="cannot read the evaluation set"):
        through([row(0, "x")], workspace, leak_sets=[{"file": str(tmp_path / "exam.jsonl")}])
