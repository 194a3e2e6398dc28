"""Asking in batches, against the mock provider of the benchmarks: a server of its own that bills, keeps files
and batches on disk, and outlives a kill."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import batch_collector
import pytest
from batch_collector import HABITS, HALF, LIMITS, MOMENTS, SAMPLING, put, questions, teacher
from mock_provider import Entry, Served, Settings, entries, read_journal, serving
from provider import Provider, echo

from stillhouse.ask import Question, Tally, Teacher, answers, ask, cancel_batches, worst_cost
from stillhouse.ask.questions import Part
from stillhouse.errors import BudgetReached, UsageError
from stillhouse.ledger import Ledger
from stillhouse.workspace import Workspace, init_workspace

QUICK = Settings(latency=0.001, answer_bytes=200, batch_seconds=0.1)


def stored(workspace: Workspace, asked: list[Question], whom: Teacher) -> list[str | None]:
    with Ledger.open(workspace) as ledger:
        found = answers(asked, whom, SAMPLING, ledger)
        return [None if e is None else e.completion.text for _, e in found]


def online(workspace: Workspace, asked: list[Question], whom: Teacher) -> Tally:
    with Ledger.open(workspace) as ledger:
        return ask(asked, whom, SAMPLING, LIMITS, ledger, "run", 0)


def attempts(workspace: Workspace) -> dict[str, int]:
    with sqlite3.connect(workspace.ledger) as db:
        return dict(db.execute("SELECT state, count(*) FROM attempt GROUP BY state").fetchall())


def seen(provider: Served) -> list[Entry]:
    return entries(read_journal(provider.journal)[0])


def made(provider: Served) -> list[dict]:
    """The batches that the provider has on its disk."""
    folder = provider.journal.parent / "batches"
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


def left_over(workspace: Workspace) -> list[Path]:
    return list((workspace.runs / "run" / "batches").glob("*"))


@contextmanager
def collector(workspace: Workspace, url: str, count: int, *end: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, batch_collector.__file__, str(workspace.root), url, str(count), *end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_each_question_is_answered_as_it_would_be_online(tmp_path: Path, workspace: Workspace):
    """Three batches, their results in an order of the provider's own."""
    asked = questions(40)
    with serving(tmp_path / "provider", QUICK) as provider:
        whom = teacher(provider.url)
        tally = put(workspace, asked, whom)
        other = init_workspace(tmp_path / "other")
        online(other, asked, whom)
    assert (tally.sent, tally.answered, tally.reused, tally.failed) == (40, 40, 0, [])
    assert stored(workspace, asked, whom) == stored(other, asked, whom)
    assert None not in stored(workspace, asked, whom)
    assert [batch["request_counts"]["total"] for batch in made(provider)] == [15, 15, 10]
    assert tally.billed == pytest.approx(sum(e.dollars for e in seen(provider) if e.does == "batch"))
    assert tally.budget.spent == pytest.approx(tally.billed, abs=1e-6)
    assert tally.budget.reserved == pytest.approx(0)
    assert left_over(workspace) == []


def test_the_answer_is_kept_as_its_bytes_came_and_names_its_batch(tmp_path: Path, workspace: Workspace):
    with serving(tmp_path / "provider", QUICK) as provider:
        put(workspace, questions(3), teacher(provider.url))
        (batch,) = made(provider)
        results = (provider.journal.parent / "files" / f"{batch['output_file_id']}.jsonl").read_bytes()
    with Ledger.open(workspace) as ledger:
        for leaf in ledger.leaves("exchange"):
            contents = ledger.contents(leaf.index)
            assert contents["response"] is not None
            assert contents["response"] in results
            assert json.loads(contents["request"] or b"")["messages"][0]["role"] == "user"
            assert leaf.body["batch"] == batch["id"]
        assert ledger.verify().ok


def test_what_was_bought_in_one_way_is_not_bought_in_the_other(tmp_path: Path, workspace: Workspace):
    asked = questions(30)
    with serving(tmp_path / "provider", QUICK) as provider:
        whom = teacher(provider.url)
        assert online(workspace, asked[:10], whom).sent == 10
        first = put(workspace, asked[:20], whom)
        assert (first.sent, first.answered, first.reused) == (10, 10, 10)
        assert online(workspace, asked, whom).sent == 10
        again = put(workspace, asked, whom)
        assert (again.sent, again.answered, again.reused) == (0, 0, 30)
        bought = Counter(entry.prompt for entry in seen(provider))
        assert len(made(provider)) == 1
    assert set(bought.values()) == {1}
    assert len(bought) == 30


def test_the_same_question_is_one_line(tmp_path: Path, workspace: Workspace):
    asked = [replace(questions(1)[0], prompt_id=f"p{i}") for i in range(40)] + questions(40)[1:]
    with serving(tmp_path / "provider", QUICK) as provider:
        tally = put(workspace, asked, teacher(provider.url), habits=replace(HABITS, lines=2))
    assert (tally.sent, tally.answered, tally.reused, tally.failed) == (40, 40, 39, [])


def test_lines_that_fail_go_into_another_round_and_are_counted(tmp_path: Path, workspace: Workspace):
    """The mock's failures are lasting, so the last two rounds ask exactly the same: the third batch is made
    although one of the very same shard is there."""
    asked = questions(40)
    limits = replace(LIMITS, retries=2)
    with serving(tmp_path / "provider", replace(QUICK, batch_errors=0.2)) as provider:
        tally = put(workspace, asked, teacher(provider.url), limits, replace(HABITS, lines=100))
    bad = len(tally.failed)
    assert 2 <= bad <= 20
    assert tally.failures == {"server": 3 * bad}
    assert {failed.reason for failed in tally.failed} == {"server"}
    assert (tally.answered, tally.sent) == (40 - bad, 40 + 2 * bad)
    shards = [batch["metadata"]["stillhouse_shard"] for batch in made(provider)]
    assert len(shards) == 3
    assert shards[1] == shards[2]
    assert attempts(workspace) == {"answered": 40 - bad, "failed": 3 * bad}


def test_an_expired_batch_gives_what_was_done_and_the_rest_costs_nothing(
    tmp_path: Path, workspace: Workspace
):
    short = replace(QUICK, batch_seconds=4.0, batch_window=1.2)
    with serving(tmp_path / "provider", short) as provider:
        tally = put(workspace, questions(40), teacher(provider.url), replace(LIMITS, retries=0))
        assert [batch["status"] for batch in made(provider)] == ["expired"] * 3
    assert tally.answered == sum(entry.dollars > 0 for entry in seen(provider)) > 0
    assert {failed.reason for failed in tally.failed} == {"expired"}
    assert tally.answered + len(tally.failed) == 40
    with Ledger.open(workspace) as ledger:
        assert ledger.spent("run").most == pytest.approx(tally.billed, abs=1e-6)


def test_the_cap_holds_before_anything_is_created(tmp_path: Path, workspace: Workspace):
    asked = questions(40)
    with serving(tmp_path / "provider", QUICK) as provider:
        whom = teacher(provider.url)
        worst = worst_cost(asked[0], replace(whom, price=HALF), SAMPLING)
        cap = 12.5 * worst
        with pytest.raises(BudgetReached) as caught:
            put(workspace, asked, whom, replace(LIMITS, max_cost=cap))
        bill = sum(entry.dollars for entry in seen(provider))
        assert bill <= cap
        assert made(provider)[0]["request_counts"]["total"] == 12
        assert len(seen(provider)) > 12  # what a batch did not use up goes to the next one
        assert "40 questions" not in caught.value.why
        tally = put(workspace, asked, whom, replace(LIMITS, max_cost=100 * worst))
    assert (tally.answered + tally.reused, tally.failed) == (40, [])
    assert Counter(Counter(entry.prompt for entry in seen(provider)).values()) == {1: 40}


def test_without_a_price_for_batches_the_ordinary_one_is_the_bound(tmp_path: Path, workspace: Workspace):
    with serving(tmp_path / "provider", QUICK) as provider:
        whom = replace(teacher(provider.url), batch_price=None)
        tally = put(workspace, questions(5), whom, replace(LIMITS, max_cost=1.0))
        assert tally.billed == pytest.approx(2 * sum(entry.dollars for entry in seen(provider)))
        with pytest.raises(UsageError, match="price"):
            put(workspace, questions(6), teacher(provider.url, priced=False), replace(LIMITS, max_cost=1.0))


def test_a_lost_reply_makes_no_second_batch(tmp_path: Path, workspace: Workspace):
    deaf = replace(QUICK, lost_replies=0.5, seed=3)
    with serving(tmp_path / "provider", deaf) as provider:
        tally = put(workspace, questions(40), teacher(provider.url), habits=replace(HABITS, lines=8))
        shards = Counter(batch["metadata"]["stillhouse_shard"] for batch in made(provider))
        files = len(list((provider.journal.parent / "files").glob("file-????????.json")))
    assert tally.answered == 40
    assert set(shards.values()) == {1}
    assert files > len(shards) == 5  # a file whose name was lost was sent again


def test_a_server_without_batches_is_refused_before_anything_is_written(
    provider: Callable[..., Provider], workspace: Workspace
):
    server = provider(echo)
    with pytest.raises(UsageError, match="has no batches") as caught:
        put(workspace, questions(3), teacher(server.url))
    assert "online" in caught.value.mend
    assert attempts(workspace) == {}
    assert online(workspace, questions(3), teacher(server.url)).answered == 3


def test_interrupted_the_batch_goes_on_and_online_does_not_ask_again(tmp_path: Path, workspace: Workspace):
    slow = replace(QUICK, batch_seconds=1.5)
    asked = questions(40)
    with serving(tmp_path / "provider", slow) as provider:
        whom = teacher(provider.url)
        with collector(workspace, provider.url, 40) as process:
            until(lambda: len(seen(provider)) > 3)
            process.send_signal(signal.SIGINT)
            said = json.loads(process.communicate(timeout=20)[0])
        assert process.returncode == 130
        assert said["error"] == "stopped"
        assert "3 batches go on" in said["why"]
        assert "same command" in said["mend"]
        assert attempts(workspace) == {"open": 40}
        with pytest.raises(UsageError, match="3 batches"):
            online(workspace, asked, whom)
        with Ledger.open(workspace) as ledger:  # another run does not buy them either
            tally = ask(asked, whom, SAMPLING, LIMITS, ledger, "other", 0)
            assert {failed.reason for failed in tally.failed} == {"in a batch"}
        tally = put(workspace, asked, whom)
    assert (tally.sent, tally.answered) == (0, 40)
    assert Counter(Counter(entry.prompt for entry in seen(provider)).values()) == {1: 40}


def test_cancelled_batches_keep_what_was_ready(tmp_path: Path, workspace: Workspace):
    slow = replace(QUICK, batch_seconds=6.0)
    asked = questions(40)
    with serving(tmp_path / "provider", slow) as provider:
        whom = teacher(provider.url)
        with collector(workspace, provider.url, 40) as process:
            until(lambda: len(seen(provider)) > 8)
            process.kill()
        with Ledger.open(workspace) as ledger:
            part = Part(whom, 0, ())
            tally = cancel_batches([part], LIMITS, ledger, "run", habits=HABITS)
        assert {batch["status"] for batch in made(provider)} == {"cancelled"}
        billed = sum(entry.dollars > 0 for entry in seen(provider))
        assert tally.answered == billed > 0
        assert tally.failures == {"cancelled": 40 - billed}
        rest = online(workspace, asked, whom)
    assert (rest.sent, rest.reused) == (40 - billed, billed)
    assert left_over(workspace) == []


def test_the_provider_may_die_and_come_back(tmp_path: Path, workspace: Workspace):
    slow = replace(QUICK, batch_seconds=0.8)
    with (
        serving(tmp_path / "provider", slow) as provider,
        collector(workspace, provider.url, 40) as process,
    ):
        until(lambda: len(seen(provider)) > 3)
        provider.process.kill()
        provider.process.wait()
        with serving(tmp_path / "provider", replace(slow, port=provider.port)) as again:
            said = json.loads(process.communicate(timeout=30)[0])
            assert len(made(again)) == 3
    assert said["answered"] == 40
    assert Counter(Counter(entry.prompt for entry in seen(provider)).values()) == {1: 40}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often a collection that nobody kills comes to each moment at which it might be."""
    folder = tmp_path_factory.mktemp("moments")
    with (
        serving(folder / "provider", QUICK) as provider,
        collector(init_workspace(folder), provider.url, 40) as process,
    ):
        return dict(json.loads(process.communicate(timeout=30)[0])["seen"])


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_adopts_its_batches_and_buys_nothing_twice(
    tmp_path: Path, moments: dict[str, int], moment: str
):
    most = 1 + moments[moment] // 2  # how often it looks and how it commits in groups differs a little
    assert kill_and_go_on(tmp_path, moment, random.Random(moment).randint(1, most))


@pytest.mark.slow
def test_killed_at_every_moment(tmp_path: Path, moments: dict[str, int]):
    assert set(moments) == set(MOMENTS)
    killed = [
        kill_and_go_on(tmp_path / f"{moment} {number}".replace("/", "-"), moment, number)
        for moment, times in moments.items()
        for number in range(1, times + 1)
    ]
    assert sum(killed) > 0.8 * len(killed)


def kill_and_go_on(folder: Path, moment: str, number: int) -> bool:
    """Whether it was killed; if so, the next process goes on from there."""
    asked, folder = questions(40), folder / "work"
    folder.mkdir(parents=True)
    workspace = init_workspace(folder)
    with serving(folder / "provider", QUICK) as provider:
        with collector(workspace, provider.url, 40, moment, str(number)) as process:
            process.communicate(timeout=30)
        assert process.returncode in (-signal.SIGKILL, 0)
        died_with = attempts(workspace) if workspace.ledger.exists() else {}
        assert set(died_with) <= {"open", "answered"}
        tally = put(workspace, asked, teacher(provider.url), replace(LIMITS, max_cost=1.0))
        shards = Counter(batch["metadata"]["stillhouse_shard"] for batch in made(provider))
    assert len(shards) == 3
    assert set(shards.values()) == {1}, "a batch was created twice"
    assert set(Counter(entry.prompt for entry in seen(provider)).values()) == {1}, "a line was bought twice"
    assert None not in stored(workspace, asked, teacher(provider.url))
    assert attempts(workspace) == {"answered": 40}
    assert tally.answered + tally.reused == 40
    assert tally.budget.spent == pytest.approx(sum(e.dollars for e in seen(provider)), abs=1e-6)
    assert left_over(workspace) == []
    return bool(process.returncode)
