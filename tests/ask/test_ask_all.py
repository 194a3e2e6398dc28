"""Several teachers under one cap, what a dead process may have spent, and messages that go along whole."""

import asyncio
import re
import sqlite3
from collections.abc import Callable

import orjson
import pytest
from aiohttp import web
from killed import ask_until_killed
from provider import Provider, answer, echo

from stillhouse.ask import Limits, Part, Question, Sampling, Teacher, answers, ask, ask_all, worst_cost
from stillhouse.errors import BudgetReached
from stillhouse.ledger import Ledger
from stillhouse.money import Price
from stillhouse.records import Message
from stillhouse.workspace import Workspace

GREEDY = Sampling(0.0, 1.0, 16)
LIMITS = Limits(concurrency=4, timeout=5.0, retries=2, max_failures=1.0)

Serve = Callable[..., Provider]


def questions(count: int, first: int = 0) -> list[Question]:
    return [Question(f"p{i}", (Message("user", f"question {i}"),)) for i in range(first, first + count)]


def teacher(name: str, url: str, price: Price | None = None) -> Teacher:
    return Teacher(name, "somewhere", "r1", lambda: url, price=price)


def test_two_teachers_are_asked_at_once_and_each_keeps_its_own_answers(provider: Serve, workspace: Workspace):
    both = provider(echo)

    async def slow(body: dict, number: int) -> web.Response:
        while len(both.bodies) < 30:  # noqa: ASYNC110 - the other server has a loop of its own
            await asyncio.sleep(0.01)  # this ends only if the other one is asked meanwhile
        return answer("slow " + body["messages"][-1]["content"])

    parts = [
        Part(teacher("a", both.url), 1, questions(30)),
        Part(teacher("b", provider(slow).url), 2, questions(5)),
    ]
    with Ledger.open(workspace) as ledger:
        tally = ask_all(parts, GREEDY, LIMITS, ledger, "run")
        assert (tally.questions, tally.answered, tally.failed) == (35, 35, [])
        found = [e for _, e in answers(questions(5), parts[1].teacher, GREEDY, ledger)]
        assert [e.completion.text for e in found if e] == [f"slow question {i}" for i in range(5)]
        assert {e.decision for e in found if e} == {2}
        assert ask_all(parts, GREEDY, LIMITS, ledger, "run").sent == 0


def test_one_cap_holds_over_all_teachers_and_all_calls(provider: Serve, workspace: Workspace):
    server, price = provider(echo), Price(1000.0, 1000.0)
    parts = [Part(teacher(name, server.url, price), 0, questions(40)) for name in "ab"]
    worst = worst_cost(questions(1)[0], parts[0].teacher, GREEDY)
    limits = Limits(4, 5.0, 2, max_cost=worst * 8)
    with Ledger.open(workspace) as ledger:
        for _ in range(3):
            with pytest.raises(BudgetReached, match="budget reached") as caught:
                ask_all(parts, GREEDY, limits, ledger, "run")
            assert ledger.spent("run").known == pytest.approx(len(server.bodies) * 0.015)
            assert ledger.spent("run").most <= worst * 8
        assert 7 * worst < ledger.spent("run").most
        assert re.search(r"\d+ questions are left, about [\d.]+ US\$ at the mean", caught.value.why)
        assert ask(questions(1), parts[0].teacher, GREEDY, limits, ledger, "other", 0).reused == 1


DIES = (
    'ask(asked(8), teacher("a", Price(1000.0, 1000.0)), Sampling(0.0, 1.0, 16), Limits(4, 5.0, 2), '
    'ledger, "run", 0)'
)


@pytest.mark.parametrize("unknown", ["ask", "leave"])
def test_what_a_dead_process_left_open_counts_as_spent_and_is_asked_again_by_policy(
    provider: Serve, workspace: Workspace, tmp_path, unknown
):
    server = ask_until_killed(provider, workspace, tmp_path, DIES, 4)
    who = teacher("a", server.url, Price(1000.0, 1000.0))
    limits = Limits(4, 5.0, 2, max_failures=1.0, unknown=unknown)
    with Ledger.open(workspace) as ledger:
        tally = ask(questions(8), who, GREEDY, limits, ledger, "run", 0)
        assert tally.unknown >= 1
        left = [q for q in tally.failed if q.reason == "sent, unknown"]
        assert len(left) == (tally.unknown if unknown == "leave" else 0)
        assert tally.reused + tally.answered + len(left) == 8
        spent, worst = ledger.spent("run"), worst_cost(questions(1)[0], who, GREEDY)
        assert spent.most == pytest.approx(spent.known + tally.unknown * worst)
        assert tally.budget.spent == pytest.approx(spent.most)


def test_a_ledger_from_before_money_was_recorded_is_brought_up(workspace: Workspace):
    Ledger.open(workspace).close()
    with sqlite3.connect(workspace.ledger) as db:
        db.execute("DROP INDEX attempt_unknown")
        db.execute("ALTER TABLE attempt DROP COLUMN reserved")
        db.execute("ALTER TABLE attempt DROP COLUMN cost")
        db.execute("DELETE FROM migration WHERE name = 'm0002_money'")
    with Ledger.open(workspace) as ledger:
        attempt = ledger.begin("ab" * 32, "run", "p", "m", 0, reserved=0.25).result()
        assert ledger.spent("run") == (0.0, 0.25)
        ledger.fail(attempt, "server", billed=False).result()
        assert ledger.spent("run") == (0.0, 0.0)


def test_tools_tool_calls_and_their_ids_reach_the_teacher_and_come_back(
    provider: Serve, workspace: Workspace
):
    call = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "lamp"}'}}
    tool = {"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}

    async def calls(body: dict, number: int) -> web.Response:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return web.json_response({"object": "chat.completion", "model": "m-1", "choices": [choice]})

    server = provider(calls)
    turns = (
        Message("user", "Is the lamp there?"),
        Message("assistant", "", orjson.dumps({"tool_calls": [call]}).decode()),
        Message("tool", "3", '{"tool_call_id":"c1"}'),
    )
    asked = [Question("p0", turns, 0, orjson.dumps([tool]).decode())]
    with Ledger.open(workspace) as ledger:
        ask(asked, teacher("a", server.url), GREEDY, LIMITS, ledger, "run", 0)
        ((_, exchange),) = answers(asked, teacher("a", server.url), GREEDY, ledger)
    assert server.bodies[0]["tools"] == [tool]
    assert server.bodies[0]["messages"] == [
        {"role": "user", "content": "Is the lamp there?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    assert exchange is not None
    assert exchange.completion.tool_calls is not None
    assert orjson.loads(exchange.completion.tool_calls) == [call]
    assert (exchange.completion.text, exchange.completion.finish_reason) == ("", "tool_calls")
