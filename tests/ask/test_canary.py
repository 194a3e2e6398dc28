"""A teacher that is asked the same now and then, and may change meanwhile."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from provider import Provider, answer, echo

from stillhouse.ask import (
    Canary,
    Limits,
    Part,
    Question,
    Sampling,
    Tally,
    Teacher,
    Watched,
    answers,
    ask_all,
    conclude,
    to_ask,
)
from stillhouse.errors import BudgetReached, EndpointError
from stillhouse.ledger import Ledger
from stillhouse.money import Price
from stillhouse.records import Message
from stillhouse.workspace import Workspace

Serve = Callable[..., Provider]
GREEDY = Sampling(0.0, 1.0, 16)
LIMITS = Limits(concurrency=8, timeout=5.0, retries=1)
MAIN = [Question(f"p{i}", (Message("user", f"question {i}"),)) for i in range(100)]
CANARY = Canary(tuple(MAIN[:8]), every=30, stop=False, alpha=0.01)


def part(url: str, canary: Canary = CANARY, asked: list[Question] = MAIN, price: Price | None = None) -> Part:
    return Part(Teacher("m", "somewhere", "r1", lambda: url, price=price), 0, asked, canary)


def put(
    workspace: Workspace, what: Part, limits: Limits = LIMITS, run: str = "run"
) -> tuple[Tally, Watched | None]:
    with Ledger.open(workspace) as ledger:
        tally = ask_all([what], GREEDY, limits, ledger, run)
        return tally, conclude(what, GREEDY, ledger, tally)


def changes(workspace: Workspace) -> list[dict]:
    with Ledger.open(workspace) as ledger:
        assert ledger.verify().ok
        return [leaf.body for leaf in ledger.leaves("correction")]


def changing(at: int, **other: str) -> Callable:
    """From request number `at` on another model, or the same one with another name."""

    async def handler(body: dict, number: int) -> web.Response:
        question = body["messages"][-1]["content"]
        if number < at:
            return answer(f"answer to {question}")
        return answer(f"answer to {question}" if other else f"I say {number} to {question}", **other)

    return handler


def test_rounds_are_asked_at_the_start_in_between_and_at_the_end(provider: Serve, workspace: Workspace):
    server = provider(echo)
    with Ledger.open(workspace) as ledger:
        assert to_ask(part(server.url), len(MAIN), GREEDY, ledger) == 6 * 8
    tally, watched = put(workspace, part(server.url))
    assert watched is not None
    assert (watched.rounds, watched.questions, watched.change) == (6, 8, None)  # 2, at 30, 60, 90, 1
    assert tally.questions == tally.answered == tally.sent == len(server.bodies) == 100 + 6 * 8
    first, last = server.asked[:16], server.asked[-8:]
    assert sorted(first) == sorted(2 * [q.messages[0].content for q in CANARY.questions])
    assert set(last) & set(first)
    assert changes(workspace) == []


def test_rounds_are_exchanges_of_their_own_and_never_the_answer_to_a_question(
    provider: Serve, workspace: Workspace
):
    server = provider(lambda body, number: asyncio.sleep(0, answer(f"reply {number}")))
    put(workspace, part(server.url))
    with Ledger.open(workspace) as ledger:
        leaves = [leaf.body for leaf in ledger.leaves("exchange")]
        assert len({body["key"] for body in leaves}) == len(leaves) == 148
        rounds = [body["epoch"] for body in leaves if "epoch" in body]
        assert len(rounds) == 48
        assert len(set(rounds)) == 6
        kept = {exchange.leaf for _, exchange in answers(MAIN, part("").teacher, GREEDY, ledger) if exchange}
        assert len(kept) == 100
        assert not any("epoch" in ledger.leaf(leaf).body for leaf in kept)
        assert {body["decision"] for body in leaves} == {0}
    with sqlite3.connect(workspace.ledger) as db:
        names = [name for (name,) in db.execute("SELECT prompt_id FROM attempt")]
    assert sum("(canary " in name for name in names) == 48


def test_nothing_is_asked_when_nothing_else_is_nor_beside_a_handful(provider: Serve, workspace: Workspace):
    server = provider(echo)
    put(workspace, part(server.url))
    again, watched = put(workspace, part(server.url))
    assert (again.sent, again.reused, again.questions) == (0, 100, 100)
    assert watched is not None
    assert watched.rounds == 6
    few = [
        replace(q, prompt_id=f"new {q.prompt_id}", messages=(Message("user", f"new {q.prompt_id}"),))
        for q in MAIN[:7]
    ]
    more = part(server.url, asked=MAIN + few)
    with Ledger.open(workspace) as ledger:
        assert to_ask(more, 7, GREEDY, ledger) == 0
    assert put(workspace, more)[0].sent == 7


def test_another_run_uses_what_was_found_out_and_begins_with_a_round(provider: Serve, workspace: Workspace):
    server = provider(echo)
    put(workspace, part(server.url, asked=MAIN[:50]))
    before = len(server.bodies)
    with Ledger.open(workspace) as ledger:
        planned = to_ask(part(server.url), 50, GREEDY, ledger)
    tally, watched = put(workspace, part(server.url), run="other")
    assert planned == tally.sent - 50 == 3 * 8  # before the first, after 30, after the last
    assert set(server.asked[before : before + 8]) == {q.messages[0].content for q in CANARY.questions}
    assert watched is not None
    assert watched.rounds == 4 + 3


@pytest.mark.parametrize(
    ("other", "sign"),
    [({}, "answers"), ({"model": "m-2"}, "model id"), ({"fingerprint": "fp_2"}, "fingerprint")],
)
def test_a_teacher_that_changes_is_told_and_recorded_once(
    provider: Serve, workspace: Workspace, other: dict, sign: str
):
    if sign == "fingerprint":

        async def handler(body: dict, number: int) -> web.Response:
            return answer("the same", fingerprint="fp_1" if number < 80 else "fp_2")
    else:
        handler = changing(80, **other)
    server = provider(handler)
    tally, watched = put(workspace, part(server.url))
    assert watched is not None
    assert watched.change is not None
    assert watched.change.sign == sign
    assert tally.answered == 148  # warned, not stopped
    (notice,) = tally.notices
    assert notice == f"the teacher m changed: {watched.change.words}"
    (body,) = changes(workspace)
    assert (body["what"], body["sign"], body["teacher"]["model"]) == ("teacher changed", sign, "m")
    assert body["same_until"] == watched.same_until
    with Ledger.open(workspace) as ledger:
        models = [leaf.body["answered_by"] for leaf in ledger.leaves("exchange", watched.same_until + 1)]
        assert len(models) > 60 - 30  # the change lies within a slice of where it is said to be
    put(workspace, part(server.url))
    put(workspace, part(server.url), run="other")
    assert changes(workspace) == [body]


def test_a_change_can_stop_the_run_and_the_answers_so_far_are_kept(provider: Serve, workspace: Workspace):
    server = provider(changing(30))
    stopping = part(server.url, replace(CANARY, stop=True))
    with pytest.raises(EndpointError, match="changed while it was asked") as caught:
        put(workspace, stopping)
    assert "teacher.revision" in caught.value.mend
    sent = len(server.bodies)
    assert sent < 100
    with Ledger.open(workspace) as ledger:
        counts = ledger.attempts("run")
        assert (counts.answered, counts.open) == (sent, 0)
    with pytest.raises(EndpointError, match="changed while it was asked"):
        put(workspace, stopping)  # it is known: nothing more is bought
    assert len(server.bodies) == sent
    assert len(changes(workspace)) == 1
    tally, watched = put(workspace, part(server.url))
    assert watched is not None
    assert watched.change is not None
    assert tally.reused + tally.answered == tally.questions
    declared = replace(stopping, teacher=replace(stopping.teacher, revision="r2"))
    assert put(workspace, declared)[0].reused == 0


def test_a_change_seen_by_the_last_round_stops_too(provider: Serve, workspace: Workspace):
    server = provider(changing(100 + 5 * 8 + 1))
    with pytest.raises(EndpointError, match="changed while it was asked"):
        put(workspace, part(server.url, replace(CANARY, stop=True)))
    assert len(server.bodies) == 148


def test_canaries_keep_the_cap_and_a_rerun_knows_what_they_cost(provider: Serve, workspace: Workspace):
    server = provider(echo)  # 10 tokens in, 5 out
    price = Price(1.0, 2.0)
    capped = replace(LIMITS, max_cost=0.002)
    with pytest.raises(BudgetReached):
        put(workspace, part(server.url, price=price), capped)
    assert len(server.bodies) * 20e-6 <= 0.002
    enough = replace(LIMITS, max_cost=1.0)
    tally, _ = put(workspace, part(server.url, price=price), enough)
    assert tally.billed == pytest.approx(len(server.bodies) * 20e-6)
    again, _ = put(workspace, part(server.url, price=price), enough)
    assert again.billed == pytest.approx(tally.billed)
    assert again.bought == len(server.bodies)


def test_a_canary_that_fails_for_good_is_counted_and_does_not_hide_a_change(
    provider: Serve, workspace: Workspace
):
    usual = changing(80)

    async def picky(body: dict, number: int) -> web.Response:
        if body["messages"][-1]["content"] == "question 3":
            return web.json_response({"error": {"message": "no"}}, status=400)
        return await usual(body, number)

    tally, watched = put(workspace, part(provider(picky).url))
    assert tally.questions == tally.answered + len(tally.failed) == 148
    assert len(tally.failed) == 1 + 6
    assert watched is not None
    assert watched.change is not None


def test_rounds_that_never_end_hold_nothing_up(provider: Serve, workspace: Workspace):
    """A canary that hangs is not judged before it is over, and the others go on meanwhile."""
    seen: dict[str, int] = {}

    async def slow(body: dict, number: int) -> web.Response:
        text = body["messages"][-1]["content"]
        seen[text] = seen.get(text, 0) + 1
        if text == "question 0" and seen[text] == 1:
            await asyncio.sleep(1.0)
        return await echo(body, number)

    server = provider(slow)
    tally, watched = put(workspace, part(server.url))
    assert tally.answered == tally.questions
    assert watched is not None
    assert watched.change is None


COLLECTOR = """
    import sys
    from pathlib import Path
    from stillhouse.ask import *
    from stillhouse.ledger import Ledger
    from stillhouse.records import Message
    from stillhouse.workspace import Workspace
    asked = [Question(f"p{i}", (Message("user", f"question {i}"),)) for i in range(100)]
    canary = Canary(tuple(asked[:8]), 30, False, 0.01)
    part = Part(Teacher("m", "somewhere", "r1", lambda: sys.argv[2]), 0, asked, canary)
    with Ledger.open(Workspace(Path(sys.argv[1]))) as ledger:
        ask_all([part], Sampling(0.0, 1.0, 16), Limits(8, 5.0, 2), ledger, "run")
"""


@pytest.mark.parametrize("after", [3, 20, 51])
def test_killed_among_canaries_nothing_is_asked_twice_but_what_was_open(
    provider: Serve, workspace: Workspace, tmp_path: Path, after: int
):
    child: list[subprocess.Popen[bytes]] = []

    async def deadly(body: dict, number: int) -> web.Response:
        if number == after:
            child[0].kill()
        return await echo(body, number)

    server = provider(deadly)
    script = tmp_path / "collector.py"
    script.write_text(textwrap.dedent(COLLECTOR))
    child.append(subprocess.Popen([sys.executable, str(script), str(workspace.root), server.url]))
    child[0].wait(60)
    assert child[0].returncode == -signal.SIGKILL
    tally, watched = put(workspace, part(server.url))
    assert watched is not None
    assert watched.change is None
    with sqlite3.connect(workspace.ledger) as db:
        answered = db.execute(
            "SELECT count(*), count(DISTINCT key) FROM attempt WHERE state = 'answered'"
        ).fetchone()
        again = db.execute(
            "SELECT count(*) FROM attempt a JOIN attempt b ON a.key = b.key AND a.id < b.id"
        ).fetchone()[0]
        states = dict(db.execute("SELECT state, count(*) FROM attempt GROUP BY state"))
    assert answered[0] == answered[1]
    assert again <= states["unknown"] == tally.unknown <= 8
    assert states.keys() == {"answered", "unknown"}


@pytest.mark.parametrize(("fresh", "every"), [(7, 30), (8, 30), (30, 30), (38, 30), (39, 2), (100, 7)])
def test_a_plan_knows_how_many_canaries_will_be_asked(
    provider: Serve, workspace: Workspace, fresh: int, every: int
):
    server = provider(echo)
    watched = part(server.url, replace(CANARY, every=every), MAIN[:fresh])
    with Ledger.open(workspace) as ledger:
        planned = to_ask(watched, fresh, GREEDY, ledger)
    put(workspace, watched, replace(LIMITS, concurrency=1))
    assert len(server.bodies) == fresh + planned
