"""Ends: nothing is lost between a failure and its record, Ctrl-C and dead servers end a run soon."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from aiohttp import web
from provider import Provider, answer, echo

from stillhouse.ask import Limits, Question, Sampling, Teacher, ask, worst_cost
from stillhouse.errors import BudgetReached, EndpointError, Interrupted, UsageError
from stillhouse.ledger import Ledger
from stillhouse.money import Price
from stillhouse.records import Message
from stillhouse.workspace import Workspace

GREEDY = Sampling(0.0, 1.0, 16)
LIMITS = Limits(concurrency=8, timeout=5.0, retries=2, max_failures=1.0)

Serve = Callable[..., Provider]


def questions(count: int) -> list[Question]:
    return [Question(f"p{i}", (Message("user", f"question {i}"),)) for i in range(count)]


def teacher(url: str, price: Price | None = None) -> Teacher:
    return Teacher("a", "somewhere", "r1", lambda: url, price=price)


class SlowDisk(Ledger):
    """Records each failure and answer 20 ms later than it would."""

    def fail(self, *args, **named):
        return later(super().fail(*args, **named))

    def answer(self, *args, **named):
        return later(super().answer(*args, **named))


def later(inner: Future) -> Future:
    outer: Future = Future()
    inner.add_done_callback(lambda f: threading.Timer(0.02, lambda: outer.set_result(f.result())).start())
    return outer


def test_a_failure_that_is_still_being_recorded_is_not_the_end(provider: Serve, workspace: Workspace):
    async def once(body: dict, number: int) -> web.Response:
        text = body["messages"][-1]["content"]
        if sum(b["messages"][-1]["content"] == text for b in server.bodies) == 1:
            return web.json_response({}, status=500)
        return answer("ok")

    server = provider(once)
    with SlowDisk.open(workspace) as ledger:
        for run in range(4):
            asked = [
                Question(f"{run}/{q.prompt_id}", (Message("user", f"{run} {q.prompt_id}"),))
                for q in questions(8)
            ]
            tally = ask(asked, teacher(server.url), GREEDY, LIMITS, ledger, f"run{run}", 0)
            assert (tally.answered, tally.failed) == (8, [])


def test_the_cap_waits_for_what_is_about_to_be_given_back(provider: Serve, workspace: Workspace):
    """Each answer costs a fifth of its reservation: 8 reservations fill the cap, and all 24 answers fit."""
    whom = teacher(provider(echo).url, Price(1000.0, 1000.0))
    limits = Limits(8, 5.0, 2, max_cost=8 * worst_cost(questions(1)[0], whom, GREEDY) + 0.001)
    with SlowDisk.open(workspace) as ledger:
        assert ask(questions(24), whom, GREEDY, limits, ledger, "run", 0).answered == 24


def test_ctrl_c_in_a_cooldown_is_heard_at_once(provider: Serve, workspace: Workspace):
    async def wait(body: dict, number: int) -> web.Response:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return web.json_response({}, status=429, headers={"retry-after": "60"})

    before = signal.getsignal(signal.SIGINT)
    started = time.monotonic()
    with Ledger.open(workspace) as ledger, pytest.raises(Interrupted):
        ask(questions(1), teacher(provider(wait).url), GREEDY, LIMITS, ledger, "run", 0)
    assert time.monotonic() - started < 20
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "86400"},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "24h0m0s"},
    ],
)
def test_a_server_that_asks_to_wait_a_day_is_not_waited_for(
    provider: Serve, workspace: Workspace, headers: dict[str, str]
):
    async def tomorrow(body: dict, number: int) -> web.Response:
        return web.json_response({}, status=429, headers=headers)

    with Ledger.open(workspace) as ledger, pytest.raises(EndpointError, match=r"asks to wait 86,\d00 s"):
        ask(questions(3), teacher(provider(tomorrow).url), GREEDY, LIMITS, ledger, "run", 0)


def test_a_503_that_asks_to_wait_holds_everything_back(provider: Serve, workspace: Workspace):
    moments: list[float] = []

    async def busy(body: dict, number: int) -> web.Response:
        moments.append(time.monotonic())
        if number == 1:
            return web.json_response({}, status=503, headers={"retry-after": "1"})
        return await echo(body, number)

    with Ledger.open(workspace) as ledger:
        limits = Limits(1, 5.0, 2)
        ask(questions(5), teacher(provider(busy).url), GREEDY, limits, ledger, "run", 0)
    assert moments[1] - moments[0] >= 0.99


@pytest.mark.parametrize("usage", [2**53 + 1, 10**30, -1])
def test_an_impossible_usage_is_no_usage_and_loses_no_answer(
    provider: Serve, workspace: Workspace, usage: int
):
    async def lies(body: dict, number: int) -> web.Response:
        return answer("x", prompt_tokens=usage, completion_tokens=1)

    whom = teacher(provider(lies).url, Price(1.0, 1.0))
    with Ledger.open(workspace) as ledger:
        assert ask(questions(1), whom, GREEDY, LIMITS, ledger, "run", 0).answered == 1
        assert ask(questions(1), whom, GREEDY, LIMITS, ledger, "run", 0).reused == 1
        assert ledger.spent("run").most == pytest.approx(worst_cost(questions(1)[0], whom, GREEDY))


def test_what_was_spent_before_a_price_was_known_counts_under_a_cap(provider: Serve, workspace: Workspace):
    """Answers of 15 tokens: 0.015 US$ each by the price that is given later."""
    server = provider(echo)
    with Ledger.open(workspace) as ledger:
        ask(questions(10), teacher(server.url), GREEDY, LIMITS, ledger, "run", 0)
        priced = teacher(server.url, Price(1000.0, 1000.0))
        with pytest.raises(BudgetReached, match="after 0 new"):
            ask(questions(20), priced, GREEDY, Limits(8, 5.0, 2, max_cost=0.16), ledger, "run", 0)
        ledger.fail(ledger.begin("ab" * 32, "run", "p", "a", 0).result(), "cut").result()
        with pytest.raises(UsageError, match="cannot be kept"):
            ask(questions(20), priced, GREEDY, Limits(8, 5.0, 2, max_cost=9.0), ledger, "run", 0)


def test_a_question_that_stands_twice_is_paid_and_counted_once(provider: Serve, workspace: Workspace):
    whom = teacher(provider(echo).url, Price(1000.0, 1000.0))
    twice = [*questions(1), Question("again", questions(1)[0].messages)]
    with Ledger.open(workspace) as ledger:
        first = ask(twice, whom, GREEDY, LIMITS, ledger, "run", 0)
        second = ask(twice, whom, GREEDY, LIMITS, ledger, "run", 0)
    assert (first.bought, first.billed) == (second.bought, second.billed) == (1, pytest.approx(0.015))
