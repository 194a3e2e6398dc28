"""Whatever rows and filters do, every row ends somewhere with a reason, and the counts say where."""

from __future__ import annotations

import pytest
from curating import balances, row, through
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.curate.funnel import Judged, Step, Tally, filtering, put_through
from stillhouse.records import Verdict
from stillhouse.workspace import Workspace, init_workspace

RULINGS = ("keep", "drop", "unscored", "raise", "nothing", "odd")


def scripted(column: str):
    """A filter that does with each row what the row says."""

    def judge(one):
        told = one[column]
        if told == "raise":
            raise ValueError("a part of the row: secret")
        if told in ("nothing", "odd"):
            return None if told == "nothing" else Verdict("perhaps", "x")  # type: ignore[arg-type]
        return Verdict(told, "" if told == "keep" else f"{column} {told}")

    return judge


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(*[st.sampled_from(RULINGS)] * 3, st.sampled_from("abc"), st.sampled_from(("t", "u"))),
        max_size=40,
    )
)
def test_rows_balance_whatever_filters_do(told):
    rows = [
        {"one": one, "two": two, "three": three, "family": family, "teacher": teacher}
        for one, two, three, family, teacher in told
    ]
    steps = [filtering(name, scripted(name)) for name in ("one", "two", "three")]
    judged = put_through(map(Judged, rows), steps)
    assert [one.row for one in judged] == rows
    tally = Tally()
    tally.add(judged)
    counted = [sum(tally.reasons(ruling).values()) for ruling in ("keep", "drop", "unscored")]
    assert sum(counted) == len(rows) == tally.rows
    assert counted[0] == sum(all(r[c] == "keep" for c in ("one", "two", "three")) for r in rows)
    came = len(rows)
    for step in tally.funnel(["one", "two", "three"]):
        assert step["in"] == came == step["dropped"] + step["unscored"] + step["out"]
        assert sum(step["families"].values()) == sum(step["teachers"].values()) == step["in"] - step["out"]
        came = step["out"]
    assert came == counted[0]
    assert "" not in tally.reasons("drop")
    assert "" not in tally.reasons("unscored")


def test_a_fault_of_a_filter_is_a_reason_and_tells_nothing_of_the_row():
    rows = [{"one": told, "family": "f", "teacher": "t"} for told in ("raise", "nothing", "odd")]
    judged = put_through(map(Judged, rows), [filtering("one", scripted("one"))])
    assert [one.verdict for one in judged] == [
        Verdict("unscored", "one raised ValueError"),
        Verdict("unscored", "one returned no verdict"),
        Verdict("unscored", "one returned no verdict"),
    ]


@pytest.mark.parametrize("answer", [lambda rows: [], lambda rows: 1 / 0, lambda rows: None])
def test_a_judge_of_batches_that_fails_leaves_its_rows_unscored(answer):
    rows = [{"family": "f", "teacher": "t"}] * 3
    judged = put_through(map(Judged, rows), [Step("all", answer)])
    assert {one.verdict.ruling for one in judged} == {"unscored"}


def test_an_edit_that_raises_leaves_its_row_unscored():
    judged = put_through([Judged({"family": "f"})], [Step("edit", edit=lambda row: row["absent"])])
    assert judged[0].verdict == Verdict("unscored", "edit raised KeyError")


TEXTS = st.text("ab .\n{}\u0301\U0001f600", max_size=60)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(TEXTS, TEXTS, st.sampled_from(("stop", "length", "content_filter")), st.sampled_from("fg")),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["off", "where_possible", "all"]),
    st.sampled_from(["all", "shortest", "agreed"]),
)
def test_the_whole_stage_balances_for_any_rows(tmp_path_factory, told, verify, draws):
    workspace = init_workspace(tmp_path_factory.mktemp("w"))
    rows = [
        row(
            i, answer, prompt, finish_reason=finish, family=family, prompt_id=f"p{i // 2}", sample_index=i % 2
        )
        for i, (prompt, answer, finish, family) in enumerate(told)
    ]
    prompts = [
        {"id": "p0", "messages": [], "reference": "a", "scorer": "exact", "split": "train"},
        {"id": "x", "messages": [{"role": "user", "content": told[0][0]}], "split": "test"},
    ]
    done, kept, dropped = through(
        rows, workspace, prompts, verify=verify, draws=draws, mix={"family_cap": 3}, personal="redact"
    )
    assert balances(done)
    assert done.rows == len(rows) == len(kept) + len(dropped)
    assert sorted(r["reason"] for r in dropped if r["ruling"] == "drop") == sorted(
        reason for reason, n in done.reasons.items() for _ in range(n)
    )
    assert sum(r["ruling"] == "unscored" for r in dropped) == sum(done.unscored.values())
    assert {r["id"] for r in kept} | {r["id"] for r in dropped} == {
        f"{r['prompt_id']}#{r['sample_index']}" for r in rows
    }


def test_a_family_of_one_row_and_a_run_of_none(workspace: Workspace):
    done, kept, _ = through([row(0, "fine", family="alone")], workspace, mix={"families": {"alone": 1}})
    assert balances(done)
    assert done.families == {"alone": 1}
    assert len(kept) == 1
    done, kept, dropped = through([], workspace)
    assert balances(done)
    assert (done.rows, kept, dropped) == (0, [], [])


def test_the_files_say_which_filter_took_a_row_and_why(workspace: Workspace):
    rows = [
        row(0, ""),
        row(1, "I cannot help with that."),
        row(2, "good"),
        row(3, "cut", finish_reason="length"),
    ]
    _, kept, dropped = through(rows, workspace)
    assert [r["id"] for r in kept] == ["p2#0"]
    assert [(r["id"], r["filter"], r["reason"], r["ruling"]) for r in dropped] == [
        ("p0#0", "empty", "empty", "drop"),
        ("p1#0", "refusals", "refusal", "drop"),
        ("p3#0", "truncated", "truncated", "drop"),
    ]
