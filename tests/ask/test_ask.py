import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web
from killed import ask_until_killed
from provider import Provider, answer, echo

from stillhouse.ask import Limits, Question, Sampling, Tally, Teacher, answers, ask, worst_cost
from stillhouse.errors import BudgetReached, EndpointError, Interrupted, UsageError
from stillhouse.ledger import Ledger
from stillhouse.money import Price
from stillhouse.records import Message
from stillhouse.workspace import Workspace

GREEDY = Sampling(0.0, 1.0, 16)
LIMITS = Limits(concurrency=8, timeout=5.0, retries=2, max_failures=0.5)

Serve = Callable[..., Provider]


def questions(count: int) -> list[Question]:
    return [Question(f"p{i}", (Message("user", f"question {i}"),)) for i in range(count)]


def teacher(url: str, price: Price | None = None, revision: str = "r1") -> Teacher:
    return Teacher("m", "somewhere", revision, lambda: url, price=price)


def put(workspace: Workspace, asked: list[Question], whom: Teacher, limits: Limits = LIMITS) -> Tally:
    with Ledger.open(workspace) as ledger:
        return ask(asked, whom, GREEDY, limits, ledger, "run", decision=0)


def stored(workspace: Workspace, asked: list[Question], whom: Teacher) -> list[str | None]:
    with Ledger.open(workspace) as ledger:
        found = answers(asked, whom, GREEDY, ledger)
        return [None if e is None else e.completion.text for _, e in found]


def test_every_question_is_asked_once_and_never_again(provider: Serve, workspace: Workspace):
    server = provider(echo)
    asked = questions(40)
    first = put(workspace, asked, teacher(server.url))
    assert (first.sent, first.answered, first.reused) == (40, 40, 0)
    second = put(workspace, asked, teacher(server.url))
    assert (second.sent, second.answered, second.reused) == (0, 0, 40)
    assert len(server.bodies) == 40
    assert server.most_in_flight <= LIMITS.concurrency
    assert stored(workspace, asked, teacher(server.url)) == [f"answer to question {i}" for i in range(40)]


def test_the_key_survives_a_moved_server_but_not_a_changed_question(provider: Serve, workspace: Workspace):
    asked = questions(3)
    put(workspace, asked, teacher(provider(echo).url))
    moved = provider(echo)
    assert put(workspace, asked, teacher(moved.url)).sent == 0
    assert put(workspace, asked, teacher(moved.url, revision="r2")).sent == 3
    other = Teacher("m", "somewhere", "r1", lambda: moved.url, system="be brief")
    assert put(workspace, asked, other).sent == 3
    assert moved.bodies[-1]["messages"][0] == {"role": "system", "content": "be brief"}
    with Ledger.open(workspace) as ledger:
        warmer = Sampling(0.5, 1.0, 16)
        assert ask(asked, other, warmer, LIMITS, ledger, "run", 0).sent == 3
    assert {body["seed"] for body in moved.bodies[-3:]} == {0}


def test_failures_that_pass_are_retried_and_counted(provider: Serve, workspace: Workspace):
    async def flaky(body: dict, number: int) -> web.Response:
        if number % 3 == 1:
            return web.json_response({"error": {"message": "busy"}}, status=503)
        return await echo(body, number)

    server = provider(flaky)
    tally = put(workspace, questions(12), teacher(server.url))
    assert tally.answered == 12
    assert tally.failures == {"server": len(server.bodies) - 12}
    assert tally.sent == len(server.bodies)
    with Ledger.open(workspace) as ledger:
        counts = ledger.attempts("run")
        assert (counts.answered, counts.failed, counts.open) == (12, tally.failures["server"], 0)


def test_a_prompt_that_keeps_failing_is_data(provider: Serve, workspace: Workspace):
    async def one_bad(body: dict, number: int) -> web.Response:
        if body["messages"][-1]["content"] == "question 3":
            return web.json_response({"error": {"message": "no"}}, status=400)
        return await echo(body, number)

    tally = put(workspace, questions(6), teacher(provider(one_bad).url))
    assert tally.failed == [("p3", 0, "m", "bad_request", "HTTP 400: no")]
    assert tally.answered == 5
    assert tally.sent == 6  # a refused request would be refused again


def test_malformed_bodies_are_failures_not_answers(provider: Serve, workspace: Workspace):
    async def nonsense(body: dict, number: int) -> web.Response:
        return web.Response(body=b'{"choices": [', content_type="application/json")

    limits = Limits(4, 5.0, retries=1, max_failures=1.0)
    tally = put(workspace, questions(3), teacher(provider(nonsense).url), limits)
    assert {question.reason for question in tally.failed} == {"malformed"}
    assert tally.failures == {"malformed": 6}  # billed each time perhaps, so tried once more and no further


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"error": {"message": "bad key"}}, "auth"),
        (404, {"error": {"message": "no such model", "code": "model_not_found"}}, "not_found"),
        (429, {"error": {"message": "quota", "code": "insufficient_quota"}}, "quota"),
    ],
)
def test_what_cannot_pass_stops_at_once(
    provider: Serve, workspace: Workspace, status: int, body: dict, kind: str
):
    async def refuse(_: dict, number: int) -> web.Response:
        return web.json_response(body, status=status)

    server = provider(refuse)
    with pytest.raises(EndpointError, match=kind) as caught:
        put(workspace, questions(100), teacher(server.url))
    assert len(server.bodies) <= LIMITS.concurrency
    assert caught.value.mend


def test_nobody_there_is_said_soon(workspace: Workspace):
    started = time.monotonic()
    with pytest.raises(EndpointError, match="unreachable") as caught:
        put(workspace, questions(50), teacher("http://127.0.0.1:9/v1"))
    assert time.monotonic() - started < 10
    assert "http://127.0.0.1:9/v1" in caught.value.mend


def test_too_many_failures_stop_the_run_and_keep_the_answers(provider: Serve, workspace: Workspace):
    async def half(body: dict, number: int) -> web.Response:
        index = int(body["messages"][-1]["content"].split()[-1])
        if index >= 10:
            return web.json_response({"error": {"message": "no"}}, status=400)
        return await echo(body, number)

    server = provider(half)
    with pytest.raises(EndpointError, match="prompts failed") as caught:
        put(workspace, questions(1000), teacher(server.url))
    assert "bad_request" in caught.value.why
    assert len(server.bodies) < 100
    assert stored(workspace, questions(10), teacher(server.url)) == [
        f"answer to question {i}" for i in range(10)
    ]


def test_the_cap_is_kept_by_requests_in_flight_too(provider: Serve, workspace: Workspace):
    price = Price(input=10.0, output=100.0)
    asked = questions(200)
    server = provider(echo)
    whom = teacher(server.url, price)
    cap = 20 * worst_cost(asked[0], whom, GREEDY)
    limits = Limits(8, 5.0, 0, max_cost=cap)
    with pytest.raises(BudgetReached) as caught:
        put(workspace, asked, whom, limits)
    billed = len(server.bodies) * price.of(10, 5)
    assert billed <= cap
    assert len(server.bodies) > 20  # settled requests give back what they reserved and did not use
    assert caught.value.exit_code == 4


def test_the_cap_holds_over_reruns(provider: Serve, workspace: Workspace):
    price = Price(input=10.0, output=100.0)
    asked = questions(200)
    server = provider(echo)
    whom = teacher(server.url, price)
    cap = 10 * worst_cost(asked[0], whom, GREEDY)
    for _ in range(4):
        with pytest.raises(BudgetReached):
            put(workspace, asked, whom, Limits(8, 5.0, 0, max_cost=cap))
    assert len(server.bodies) * price.of(10, 5) <= cap


def test_the_same_question_is_bought_once(provider: Serve, workspace: Workspace):
    server = provider(echo)
    asked = [Question(f"p{i}", (Message("user", "one question"),)) for i in range(8)]
    tally = put(workspace, asked, teacher(server.url))
    assert len(server.bodies) == 1
    assert (tally.answered, tally.reused, tally.failed) == (1, 7, [])
    assert stored(workspace, asked, teacher(server.url)) == ["answer to one question"] * 8


def test_retry_after_holds_back_everybody(provider: Serve, workspace: Workspace):
    seen: list[float] = []

    async def limited(body: dict, number: int) -> web.Response:
        seen.append(time.monotonic())
        if number == 5:
            return web.json_response(
                {"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "1"}
            )
        await asyncio.sleep(0.02)
        return await echo(body, number)

    tally = put(workspace, questions(30), teacher(provider(limited).url), Limits(4, 5.0, 2))
    assert tally.answered == 30
    gaps = [later - earlier for earlier, later in pairwise(seen)]
    assert max(gaps) > 0.9
    assert sum(gap > 0.5 for gap in gaps) == 1


def test_refusals_cost_no_retry_and_the_pace_follows_the_server(provider: Serve, workspace: Workspace):
    """A server that bears three requests at once, and a client that may not retry anything else."""
    busy = 0

    async def narrow(body: dict, number: int) -> web.Response:
        nonlocal busy
        if busy >= 3:
            return web.json_response(
                {"error": {"message": "too many"}}, status=429, headers={"Retry-After": "0.05"}
            )
        busy += 1
        await asyncio.sleep(0.01)
        busy -= 1
        return await echo(body, number)

    tally = put(workspace, questions(150), teacher(provider(narrow).url), Limits(64, 5.0, retries=0))
    assert tally.answered == 150
    assert tally.failures["rate_limited"] < 60


def test_a_rate_in_the_headers_is_obeyed(provider: Serve, workspace: Workspace):
    seen: list[float] = []

    async def metered(body: dict, number: int) -> web.Response:
        seen.append(time.monotonic())
        response = await echo(body, number)
        response.headers["x-ratelimit-limit-requests"] = "1200"
        response.headers["x-ratelimit-remaining-requests"] = "1000"
        return response

    put(workspace, questions(80), teacher(provider(metered).url))
    after = [moment - seen[0] for moment in seen]
    assert after[-1] > (80 - 20 - 20) / 20  # 20 a second once it is known: a burst of as many, then evenly


def test_a_wait_of_a_day_stops_the_run(provider: Serve, workspace: Workspace):
    async def tomorrow(body: dict, number: int) -> web.Response:
        return web.json_response(
            {"error": {"message": "later"}}, status=429, headers={"Retry-After": "86400"}
        )

    with pytest.raises(EndpointError, match="wait 86,400 s"):
        put(workspace, questions(5), teacher(provider(tomorrow).url))


def test_an_erased_answer_is_not_bought_back(provider: Serve, workspace: Workspace):
    server = provider(echo)
    asked = questions(3)
    put(workspace, asked, teacher(server.url))
    with Ledger.open(workspace) as ledger:
        leaf = next(ledger.leaves("exchange")).index
        ledger.erase(leaf, "asked for by its subject")
    tally = put(workspace, asked, teacher(server.url))
    assert [question.reason for question in tally.failed] == ["erased"]
    assert len(server.bodies) == 3


def test_a_cap_without_a_price_is_refused_before_anything_is_sent(provider: Serve, workspace: Workspace):
    server = provider(echo)
    with pytest.raises(UsageError, match="price"):
        put(workspace, questions(2), teacher(server.url), Limits(2, 5.0, 0, max_cost=1.0))
    assert not server.bodies


def test_usage_above_what_a_request_can_cost_is_disputed(provider: Serve, workspace: Workspace):
    async def greedy(body: dict, number: int) -> web.Response:
        return answer("x", prompt_tokens=10, completion_tokens=10_000)

    with pytest.raises(EndpointError, match="claims usage"):
        put(workspace, questions(40), teacher(provider(greedy).url, Price(1.0, 1.0)))
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts("run").answered >= 1  # paid for, so kept


def test_interrupt_finishes_what_is_in_flight(provider: Serve, workspace: Workspace):
    async def slow(body: dict, number: int) -> web.Response:
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)
        return await echo(body, number)

    assert threading.current_thread() is threading.main_thread()
    server = provider(slow)
    with pytest.raises(Interrupted) as caught:
        put(workspace, questions(500), teacher(server.url))
    assert caught.value.exit_code == 130
    with Ledger.open(workspace) as ledger:
        counts = ledger.attempts("run")
    assert counts.open == counts.unknown == 0
    assert counts.answered == len(server.bodies) < 100


COLLECTOR = 'ask(asked(400), teacher(), Sampling(0.0, 1.0, 16), Limits(8, 5.0, 2), ledger, "run", 0)'


@pytest.mark.parametrize("after", [1, 30, 150, 390])
def test_killed_while_collecting_loses_and_repeats_nothing(
    provider: Serve, workspace: Workspace, tmp_path: Path, after: int
):
    """SIGKILL once the server has seen `after` requests: no committed answer is lost or asked again, and what
    is sent again was open at the kill and is shown as sent, unknown."""
    server = ask_until_killed(provider, workspace, tmp_path, COLLECTOR, after)
    with sqlite3.connect(workspace.ledger) as db:
        committed = {row[0] for row in db.execute("SELECT prompt_id FROM attempt WHERE state = 'answered'")}
        left_open = {row[0] for row in db.execute("SELECT prompt_id FROM attempt WHERE state = 'open'")}
    before = len(server.bodies)
    tally = put(workspace, questions(400), teacher(server.url))
    again = {f"p{text.split()[-1]}" for text in server.asked[before:]}
    assert not again & committed
    assert tally.reused == len(committed)
    assert tally.unknown == len(left_open) <= 8
    assert len(server.asked) - len(set(server.asked)) <= len(left_open)
    assert None not in stored(workspace, questions(400), teacher(server.url))
    with Ledger.open(workspace) as ledger:
        counts = ledger.attempts("run")
        assert counts.answered == 400
        assert counts.total == counts.answered + counts.failed + counts.unknown
        assert ledger.verify().ok
