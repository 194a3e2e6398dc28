"""What only a ledger on a server has: its URL, schemas side by side, a server that goes and comes back."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import psycopg
import pyarrow.parquet as pq
import pytest
from provider import echo
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.errors import LedgerError, StorageError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger import postgres as postgres_module
from stillhouse.ledger.batches import NewLine, begin_batch, end_batch, lines_of, open_batches
from stillhouse.ledger.database import database_of
from stillhouse.ledger.erasure import erase
from stillhouse.ledger.postgres import checked_url, reachable, with_schema
from stillhouse.ledger.subject import Subject
from stillhouse.money import Price
from stillhouse.recipe import parse_recipe
from stillhouse.workspace import Workspace, init_workspace

KEYS = [f"{i:064x}" for i in range(100)]


@pytest.fixture
def workspace(tmp_path, postgres):
    return init_workspace(tmp_path, reachable(postgres.url))


def stillhouse(*words, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db",
        "postgres://me:hunter2@host",
        "postgresql://me:hunt/er2@host/db?password=hunter2",
        "postgresql://host/db?pass%77ord=hunter2",
        "postgresql://host/db?sslmode=require&sslpassword=hunter2",
        "postgresql://me:hunter2#1@host/db",
    ],
)
def test_a_password_is_never_kept_nor_shown(url, tmp_path):
    workspace = init_workspace(tmp_path)
    workspace.ledger_url.write_text(url)  # by hand
    for call in (lambda: reachable(url), lambda: Ledger.open(workspace)):
        with pytest.raises(UsageError) as caught:
            call()
        assert "hunter2" not in f"{caught.value.what} {caught.value.why} {caught.value.mend}"


@pytest.mark.parametrize("url", ["mysql://host/db", "host/db", "", "postgresql://host/d b"])
def test_what_is_no_url_of_postgresql_is_told(url):
    with pytest.raises(UsageError, match="no URL of a PostgreSQL"):
        checked_url(url)


def test_a_new_ledger_gets_a_schema_of_its_own_unless_the_url_names_one():
    first, second = (with_schema("postgresql://me@host:5433/db?sslmode=require") for _ in range(2))
    assert first != second
    assert unquote(first).startswith(
        "postgresql://me@host:5433/db?sslmode=require&options=-csearch_path=stillhouse_"
    )
    named = "postgresql://host/db?options=-csearch_path%3Dteam"
    assert with_schema(named) == named
    both = unquote(with_schema("postgresql://host/db?options=-cwork_mem%3D8MB"))
    assert "options=-cwork_mem=8MB -csearch_path=stillhouse_" in both


def test_the_command_line_makes_one_shows_it_and_keeps_to_it(tmp_path, postgres):
    secret = stillhouse("init", "--ledger", "postgresql://me:hunter2@host/db", cwd=tmp_path)
    assert secret.returncode == 2
    assert "PGPASSWORD" in secret.stderr
    assert "hunter2" not in secret.stdout + secret.stderr
    assert not (tmp_path / ".stillhouse").exists()
    made = stillhouse("init", "--ledger", postgres.url, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    workspace = Workspace(tmp_path / ".stillhouse")
    kept = workspace.ledger_url.read_text()
    assert stillhouse("init", cwd=tmp_path).returncode == 0
    again = stillhouse("init", "--ledger", postgres.url, cwd=tmp_path)
    assert again.returncode == 2
    assert "has a ledger already" in again.stderr
    assert workspace.ledger_url.read_text() == kept
    assert not workspace.ledger.exists()
    with Ledger.open(workspace) as ledger:
        ledger.append_many([("row", {"id": i}, {"text": b"t"}) for i in range(300)])
    assert json.loads(stillhouse("ledger", "show", "--json", cwd=tmp_path).stdout)["leaves"] == 300
    verified = stillhouse("ledger", "verify", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert "300 leaves, canonical, gapless" in verified.stdout
    assert stillhouse("ledger", "export", "out", cwd=tmp_path).returncode == 0
    assert len((tmp_path / "out" / "leaves.jsonl").read_bytes().splitlines()) == 300
    absent = stillhouse("init", "there", "--ledger", "postgresql:///x?host=/nowhere", cwd=tmp_path)
    assert absent.returncode == 1
    assert "see that it runs" in absent.stderr
    assert not (tmp_path / "there").exists()


def test_ledgers_in_one_database_are_apart_and_one_schema_is_shared(tmp_path, postgres):
    one, other = (init_workspace(tmp_path / name, reachable(postgres.url)) for name in ("one", "other"))
    with Ledger.open(one) as first, Ledger.open(other) as second:
        assert first.append("row", {"of": "one"}) == 0
        assert second.append("row", {"of": "other"}) == 0
        assert first.origin != second.origin
        with Ledger.open(Workspace(one.root)) as again:
            assert again.leaf(0).body == {"of": "one"}


def test_a_batch_and_single_questions_number_their_attempts_together(workspace):
    with Ledger.open(workspace) as ledger:
        decision = ledger.append("decision", {})
        alone = ledger.begin(KEYS[0], "run", "p", "m", 0).result()
        lines = [NewLine(key, "p", 0, 0.5) for key in KEYS[1:4]]
        batch = begin_batch(
            ledger,
            run="run",
            teacher=("e", "m", "r"),
            decision=decision,
            price=Price(1.0, 2.0),
            shard="ab" * 32,
            lines=lines,
        )
        assert (batch.shard, batch.price) == ("ab" * 32, Price(1.0, 2.0))
        assert open_batches(ledger, "run") == [batch]
        numbers = [line.attempt for line in lines_of(ledger, batch)]
        after = ledger.begin(KEYS[9], "run", "p", "m", 0).result()
        assert [alone, *numbers, after] == list(range(alone, alone + 5))
        assert ledger.in_batches(KEYS) == set(KEYS[1:4])
        assert end_batch(ledger, batch, "expired", "never worked on") == 3
        assert ledger.attempts().failed == 3


def test_a_name_with_a_nul_in_it_stands_in_nobodys_way(workspace):
    with Ledger.open(workspace) as ledger:
        attempt = ledger.begin(KEYS[0], "run", "p", "m", 0).result()
        body = {"answered_by": "a\x00b\\u0000", "stage": "collect", "prompt_tokens": 7}
        answer = ledger.answer(attempt, body, {"response": b"\x00"}, 0.5).result()
        (row,) = ledger.append_many([("row", {"id": "\x00", "exchanges": [answer]}, {"row": b"\x00"})])
        assert ledger.leaf(answer).body["answered_by"] == "a\x00b\\u0000"
        assert ledger.billed("run", "collect").prompt_tokens == 7
        assert ledger.leaf(ledger.erase(answer, "asked for")).body["leaves"] == sorted([answer, row])
        assert ledger.verify().ok


def test_when_erased_bytes_must_stay_for_now_it_is_told(workspace, monkeypatch):
    monkeypatch.setattr(postgres_module, "BUSY_SECONDS", 0.05)
    with Ledger.open(workspace) as ledger, contextlib.closing(database_of(workspace).connect()) as other:
        leaf = ledger.append("exchange", {"key": KEYS[0]}, {"response": b"a"})
        other.execute("BEGIN")
        other.execute("SELECT body FROM content").fetchall()
        with pytest.raises(StorageError, match="are erased, but their bytes") as caught:
            ledger.erase(leaf, "asked for")
        assert "VACUUM (FULL) content" in caught.value.mend
        other.execute("ROLLBACK")
        assert ledger.contents(leaf) == {"response": None}
        assert ledger.verify().ok


def test_while_the_server_is_down_each_call_says_so_and_afterwards_work_goes_on(workspace, postgres):
    with Ledger.open(workspace) as ledger:
        ledger.append("row", {"id": 0})
        attempt = ledger.begin(KEYS[0], "run", "p", "t", 0).result()
        postgres.stop()
        try:
            for call in (
                lambda: ledger.append("row", {"id": 1}),
                lambda: ledger.answer(attempt, {"key": KEYS[0]}, {"response": b"paid"}).result(),
                ledger.size,
                ledger.checkpoint,
            ):
                with pytest.raises(StorageError) as caught:
                    call()
                assert "could not" in caught.value.what
                assert caught.value.why
                assert "run the same command again" in caught.value.mend
            with pytest.raises(StorageError, match="could not open"):
                Ledger.open(workspace)
        finally:
            postgres.start()
        assert ledger.size() == 1
        ledger.answer(attempt, {}, {"response": b"paid"}).result()
        assert [one.response for one in ledger.exchanges(KEYS[:1])] == [b"paid"]
        assert ledger.verify().ok


def test_a_server_that_was_started_again_meanwhile_is_not_noticed(workspace, postgres):
    with Ledger.open(workspace) as ledger:
        ledger.append("row", {"id": 0})
        postgres.stop()
        postgres.start()
        assert ledger.append("row", {"id": 1}) == 1
        assert ledger.size() == 2
        assert ledger.verify().ok


def test_what_was_begun_when_the_connection_went_is_undone(workspace):
    """The connection is ended within the transaction, by another one."""
    with Ledger.open(workspace) as ledger:
        ledger.append("row", {"id": 0})

        def cut_off(db):
            db.execute("UPDATE leaf SET kind = 'import' WHERE idx = 0")
            (mine,) = db.execute("SELECT pg_backend_pid()").fetchone()
            ledger.read("SELECT pg_terminate_backend(CAST(? AS INTEGER))", (mine,))
            return db.execute("UPDATE leaf SET kind = 'release' WHERE idx = 0").rowcount

        with pytest.raises(StorageError, match="could not write"):
            ledger.write(cut_off).result()
        assert ledger.leaf(0).kind == "row"
        assert ledger.append("row", {"id": 1}) == 1
        assert ledger.verify().ok


@pytest.mark.parametrize("why", ["its time was up", "its connection was ended"])
def test_whoever_waited_for_the_lock_in_vain_can_begin_again(workspace, why):
    """A server that goes away just then must not be lost for as long as the process lives."""
    database = database_of(workspace)
    with (
        contextlib.closing(database.connect()) as holder,
        contextlib.closing(database.connect()) as waiter,
        contextlib.closing(database.connect()) as other,
        ThreadPoolExecutor(1) as threads,
    ):
        database.begin(holder)
        (pid,) = waiter.execute("SELECT pg_backend_pid()").fetchone()
        if why == "its time was up":
            waiter.execute("SET lock_timeout = '50ms'")
        waiting = threads.submit(database.begin, waiter)
        if why == "its connection was ended":
            waits = "SELECT 1 FROM pg_locks WHERE pid = ? AND NOT granted"
            while not other.execute(waits, (pid,)).fetchone():
                time.sleep(0.01)
            other.execute("SELECT pg_terminate_backend(CAST(? AS INTEGER))", (pid,))
        with pytest.raises(psycopg.OperationalError):
            waiting.result(30)
        database.roll_back(holder)
        database.begin(waiter)
        assert waiter.execute("SELECT 1").fetchone() == (1,)
        waiter.commit()


RECORD = """
import sys
from pathlib import Path
from stillhouse.errors import StillhouseError
from stillhouse.ledger import Ledger
from stillhouse.workspace import Workspace

with Ledger.open(Workspace(Path(sys.argv[1]))) as ledger:
    number = 0
    while True:
        try:
            attempts = [ledger.begin(f"{number + i:064x}", "run", "p", "t", 0) for i in range(20)]
            told = [ledger.answer(a.result(), {}, {"response": b"a"}) for a in attempts]
            for i, leaf in enumerate(told):
                print(number + i, leaf.result(), flush=True)
        except StillhouseError as error:
            print("failed", type(error).__name__, flush=True)
            sys.exit(0)
        number += 20
"""


def test_a_crash_of_the_server_loses_nothing_that_was_reported(workspace, postgres):
    command = [sys.executable, "-c", RECORD, str(workspace.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        seen = [process.stdout.readline() for _ in range(150)]
        postgres.stop(signal.SIGQUIT)
        try:
            seen += process.stdout.readlines()
            process.wait(60)
        finally:
            process.kill()
            postgres.start()
    assert seen.pop() == "failed StorageError\n"
    safe = dict(tuple(map(int, line.split())) for line in seen)
    assert len(safe) >= 150
    with Ledger.open(workspace) as ledger:
        found = {int(one.key, 16): one.leaf for one in ledger.exchanges(f"{n:064x}" for n in safe)}
        assert found == safe
        assert ledger.attempts("run").answered == ledger.size()
        assert ledger.verify().ok


def test_a_server_that_would_lose_what_it_reports_is_refused(workspace, postgres):
    with contextlib.closing(psycopg.connect(postgres.url, autocommit=True)) as db:

        def set_fsync(value):
            db.execute(f"ALTER SYSTEM SET fsync = {value}")
            db.execute("SELECT pg_reload_conf()")
            deadline = time.monotonic() + 30
            while db.execute("SHOW fsync").fetchone() != (value,):
                assert time.monotonic() < deadline

        set_fsync("off")
        try:
            with pytest.raises(LedgerError, match="does not keep") as caught:
                Ledger.open(workspace)
            assert "fsync = on" in caught.value.mend
        finally:
            set_fsync("on")
        db.execute("ALTER ROLE stillhouse SET synchronous_commit = off")
        try:
            with Ledger.open(workspace) as ledger:
                assert ledger.read("SHOW synchronous_commit") == [("on",)]
        finally:
            db.execute("ALTER ROLE stillhouse RESET synchronous_commit")


def test_without_the_driver_it_is_named(workspace):
    code = "import sys; sys.modules['psycopg'] = None; from stillhouse.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ledger", "show"],
        cwd=workspace.root.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'stillhouse[postgres]'" in done.stderr


def test_a_run_collects_curates_and_is_erased_from(workspace, provider, tmp_path):
    server = provider(echo)
    rows = [{"prompt": f"say {n} to the quick one", "id": f"p{n}"} for n in range(30)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    recipe = parse_recipe(
        {
            "run": {"name": "t"},
            "teacher": {"model": "m", "endpoint": server.url, "provider": "somewhere", "terms": terms},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"max_tokens": 8},
            "student": {"init": str(tiny_model(tmp_path / "student"))},
            "evaluate": {"held_out": 0.3},
        }
    )
    run = pipeline.run(recipe, workspace, stages=["collect", "curate"]).run
    asked = len(server.bodies)
    assert 20 < asked <= 30
    again = pipeline.run(recipe, workspace, stages=["collect", "curate"])
    assert (again.run, len(server.bodies)) == (run, asked)
    leaf = pq.read_table(run.samples)["leaves"].to_pylist()[0][0]
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts().answered == asked
        assert ledger.billed(run.root.name, "collect").answers == asked
        done = erase(ledger, Subject(leaves=(leaf,)), "request of the person")
        assert done.rows[run.samples] == 1
        (tombstone,) = done.tombstones
        gone = ledger.leaf(tombstone).body["leaves"]
        assert len(gone) == 2
        assert leaf in gone
        assert all(text is None for one in gone for text in ledger.contents(one).values())
        assert ledger.verify().ok
    assert not workspace.ledger.exists()
