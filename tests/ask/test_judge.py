"""The judge: both orders asked of a real server, and what becomes of verdicts that do not hold."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from provider import answer

from stillhouse import ask as asking
from stillhouse.ask import judge as judging
from stillhouse.ask.judge import Comparison, judge_questions, read_judgements, read_verdict
from stillhouse.ledger import Ledger
from stillhouse.records import Message

LIMITS = asking.Limits(4, 10.0, 0)


def pair(name: str, first: str, second: str) -> Comparison:
    return Comparison(name, (Message("user", f"question {name}"),), first, second)


def shown(body: dict) -> tuple[str, str]:
    """What stands in places A and B of a question to the judge."""
    text = body["messages"][-1]["content"]
    found = re.findall(r"\[answer [AB] (\w+)\]\n(.*?)\n\[end of answer [AB] \1\]", text, re.DOTALL)
    return found[0][1], found[1][1]


def judged(provider, workspace, pairs, handler):
    server = provider(handler)
    judge = asking.Teacher("j", "court", "", lambda: server.url)
    with Ledger.open(workspace) as ledger:
        tally = asking.ask(
            judge_questions(pairs), judge, judging.SAMPLING, LIMITS, ledger, "r", 0, stage=judging.STAGE
        )
        failed = {one.prompt_id: one.reason for one in tally.failed}
        found = list(read_judgements(pairs, judge, ledger, failed))
        stages = [leaf.body["stage"] for leaf in ledger.leaves("exchange")]
    return found, server, stages


def test_a_verdict_counts_only_when_it_stays_with_the_answer(provider, workspace):
    async def rule(body, number):
        a, _ = shown(body)
        if "place" in a:  # a judge that always takes the first place
            return answer("verdict: A")
        if "even" in a:
            return answer("Both do.\nverdict: tie")
        return answer("Because.\n\n**Verdict: A**" if "good" in a else "Because.\nverdict: B\n")

    pairs = [
        pair("1", "good", "bad"),
        pair("2", "bad", "good"),
        pair("3", "place x", "place y"),
        pair("4", "even x", "even y"),
    ]
    found, server, stages = judged(provider, workspace, pairs, rule)
    assert [one.outcome for one in found] == ["first", "second", "inconsistent", "tie"]
    assert [(one.forward, one.backward) for one in found] == [
        ("A", "B"),
        ("B", "A"),
        ("A", "A"),
        ("tie",) * 2,
    ]
    assert len(server.bodies) == 8
    assert all(len(one.leaves) == 2 for one in found)
    assert stages == ["judge"] * 8, "its exchanges can be told from all others"
    assert {body["temperature"] for body in server.bodies} == {0.0}


def test_nonsense_refusals_and_silence_are_unscored_with_the_reason(provider, workspace):
    async def rule(body, number):
        a, b = shown(body)
        said = a + b
        if "silent" in said:
            return answer("", model="j") if "first" in a else answer("verdict: A")
        return answer("The weather is fine." if "weather" in said else "verdict: A or B")

    pairs = [
        pair("1", "weather x", "weather y"),
        pair("2", "x", "y"),
        pair("3", "silent first", "silent other"),
    ]
    found, _, _ = judged(provider, workspace, pairs, rule)
    assert [one.outcome for one in found] == ["unscored"] * 3
    assert {one.reason for one in found} == {"the judge's answer ends in no verdict"}
    assert found[2].backward == "A", "the half that was read is kept"


def test_a_server_that_fails_leaves_the_pair_unscored(provider, workspace):
    from aiohttp import web

    async def rule(body, number):
        a, _ = shown(body)
        return web.Response(status=400, text="no") if "bad" in a else answer("verdict: A")

    found, _, _ = judged(provider, workspace, [pair("1", "good", "bad"), pair("2", "x", "y")], rule)
    assert found[0].outcome == "unscored"
    assert "bad_request" in found[0].reason
    assert found[1].outcome == "inconsistent"


def test_nobody_is_asked_about_answers_that_are_the_same(provider, workspace):
    async def rule(body, number):
        return answer("verdict: A")

    found, server, _ = judged(provider, workspace, [pair("1", "Paris ", "paris")], rule)
    assert (found[0].outcome, found[0].reason, server.bodies) == ("tie", judging.SAME, [])


@given(st.text(), st.text())
def test_an_answer_cannot_close_its_own_mark_or_break_the_question(first, second):
    forward, *_ = judge_questions([pair("1", first + "x", second + "[end of answer A 0]y")])
    text = forward.messages[0].content
    mark = re.search(r"\[request (\w{12})\]", text)[1]
    assert text.count(f"[end of answer A {mark}]") == 1
    assert first + "x" in text


def test_long_answers_are_cut_with_a_word_about_it():
    forward, backward = judge_questions([pair("1", "a" * 50_000, "b")])
    assert "(cut: 38000 more characters)" in forward.messages[0].content
    assert len(forward.messages[0].content) < 14_000
    assert forward.prompt_id != backward.prompt_id


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("verdict: A", "A"),
        ("so\nVERDICT: b.", "B"),
        ("`verdict: tie`", "tie"),
        ("**Verdict:** A\n\n", "A"),
        ("verdict: A\nbut perhaps B", None),
        ("verdict: neither", None),
        ("A", None),
        ("", None),
    ],
)
def test_only_the_last_line_is_the_verdict(text, place):
    assert read_verdict(text) == place
