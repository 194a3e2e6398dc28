"""The ledger on a real file and a real server: what is committed stays, through kills, full disks and other
processes."""

import asyncio
import contextlib
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stillhouse.errors import LedgerError, StorageError
from stillhouse.ledger import AttemptCounts, Ledger
from stillhouse.ledger import database as database_module
from stillhouse.ledger import postgres as postgres_module
from stillhouse.ledger.database import database_of
from stillhouse.workspace import Workspace, init_workspace

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
KEYS = [f"{i:064x}" for i in range(1000)]


@pytest.fixture
def workspace(either_workspace):
    return either_workspace


@pytest.fixture
def ledger(workspace):
    with Ledger.open(workspace, clock=lambda: NOW) as ledger:
        yield ledger


def ask(ledger, number, run="run", **more):
    attempt = ledger.begin(KEYS[number], run, f"p{number}", "t", 0).result()
    texts = {"request": b"q%d" % number, "response": b"a%d" % number}
    return ledger.answer(attempt, {"number": number, **more}, texts).result()


def in_process(code, *arguments, **more):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, **more
    )


def test_leaves_are_numbered_from_zero_and_read_back(ledger):
    assert ledger.size() == 0
    assert ledger.append("transform", {"what": "dedup"}) == 0
    assert ledger.append_many([("row", {"id": i}, {}) for i in range(3000)]) == list(range(1, 3001))
    assert ledger.size() == 3001
    first = ledger.leaf(0)
    assert (first.kind, first.time, first.body) == (
        "transform",
        "2026-11-21T09:30:00.000000Z",
        {"what": "dedup"},
    )
    assert [leaf.body["id"] for leaf in ledger.leaves("row", start=2999)] == [2998, 2999]
    assert sum(1 for _ in ledger.leaves()) == 3001
    with pytest.raises(LedgerError, match="no leaf 3001"):
        ledger.leaf(3001)


def test_append_many_is_all_or_none(ledger):
    with pytest.raises(LedgerError):
        ledger.append_many([("row", {"id": 1}, {}), ("row", {"id": float("nan")}, {})])
    assert ledger.size() == 0


def test_an_answer_is_found_by_its_key_and_the_newest_wins(ledger):
    ask(ledger, 1)
    ask(ledger, 2)
    newest = ask(ledger, 1, again=True)
    found = list(ledger.exchanges([KEYS[2], KEYS[9], KEYS[1]]))
    assert [one.key for one in found] == [KEYS[2], KEYS[1]]
    assert found[1].leaf == newest
    assert found[1].body == {
        "number": 1,
        "again": True,
        "key": KEYS[1],
        "began": "2026-11-21T09:30:00.000000Z",
    }
    assert found[1].response == b"a1"


def test_lookups_stream_over_more_keys_than_a_statement_takes(ledger):
    rows = [("import", {"key": key}, {"response": key.encode()}) for key in KEYS]
    ledger.append_many(rows)
    assert [one.response.decode() for one in ledger.exchanges(iter(KEYS))] == KEYS


def test_attempts_balance_and_each_is_settled_once(ledger):
    ask(ledger, 1)
    failed, answered, left = (ledger.begin(KEYS[i], "run", "p", "t", 0).result() for i in (2, 3, 4))
    ledger.fail(failed, "timeout").result()
    ledger.answer(answered, {}, {}).result()
    ledger.begin(KEYS[5], "other", "p", "t", 0).result()
    assert ledger.attempts() == AttemptCounts(open=2, answered=2, failed=1, unknown=0)
    assert ledger.sweep("run") == 1
    assert ledger.attempts("run") == AttemptCounts(answered=2, failed=1, unknown=1)
    assert ledger.attempts("other") == AttemptCounts(open=1)
    assert ledger.attempts().total == 5
    for again in (ledger.answer(answered, {}, {}), ledger.fail(failed, "x"), ledger.answer(failed, {}, {})):
        with pytest.raises(LedgerError, match="cannot be settled"):
            again.result()
    with pytest.raises(LedgerError, match="cannot be settled"):
        ledger.answer(999, {}, {})
    # An answer that was paid for is taken even after the sweep.
    ledger.answer(left, {}, {}).result()
    assert ledger.attempts("run") == AttemptCounts(answered=3, failed=1)
    assert ledger.verify().ok


def test_one_refused_operation_does_not_take_its_neighbours_along(ledger):
    settled = ledger.begin(KEYS[0], "run", "p", "t", 0).result()
    ledger.answer(settled, {}, {}).result()
    begun = [ledger.begin(KEYS[i], "run", "p", "t", 0).result() for i in range(1, 60)]
    futures = [ledger.answer(a, {"i": a}, {"request": b"x"}) for a in [*begun[:30], settled, *begun[30:]]]
    outcomes = [future.exception() for future in futures]
    assert [type(one) for one in outcomes if one] == [LedgerError]
    assert isinstance(outcomes[30], LedgerError)
    assert ledger.size() == 60
    bad = [("\ud800", "t"), ("p", None)]
    futures = [
        ledger.begin(KEYS[99], "run", name, who, 0) for name, who in [("p", "t"), *bad, ("p", "t")] * 9
    ]
    assert [type(future.exception()) for future in futures] == [
        type(None),
        LedgerError,
        LedgerError,
        type(None),
    ] * 9
    assert ledger.attempts().open == 18
    assert ledger.verify().ok


def test_asyncio_and_threads_append_at_once(ledger):
    async def one(number):
        attempt = await asyncio.wrap_future(ledger.begin(KEYS[number], "run", "p", "t", 0))
        return await asyncio.wrap_future(ledger.answer(attempt, {}, {"response": b"a"}))

    async def many():
        return await asyncio.gather(*(one(number) for number in range(200)))

    with ThreadPoolExecutor(4) as pool:
        rows = [pool.submit(ledger.append, "row", {"i": i}) for i in range(200)]
        answers = asyncio.run(many())
        indices = answers + [row.result() for row in rows]
    assert sorted(indices) == list(range(400))
    assert ledger.verify().ok


def test_a_cancelled_task_still_records_its_answer(ledger):
    attempt = ledger.begin(KEYS[1], "run", "p", "t", 0).result()

    async def cancelled():
        waiting = asyncio.wrap_future(ledger.answer(attempt, {}, {"response": b"paid"}))
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    asyncio.run(cancelled())
    ledger.append("row", {})
    assert [one.response for one in ledger.exchanges([KEYS[1]])] == [b"paid"]


def test_closing_commits_what_is_queued_and_refuses_more(workspace):
    ledger = Ledger.open(workspace)
    futures = [ledger.begin(key, "run", "p", "t", 0) for key in KEYS]
    ledger.close()
    assert all(future.done() for future in futures)
    with pytest.raises(LedgerError, match="closed"):
        ledger.append("row", {})
    with Ledger.open(workspace) as again:
        assert again.attempts().open == len(KEYS)


COLLECT = """
import asyncio, sys
from pathlib import Path
from stillhouse.ledger import Ledger
from stillhouse.workspace import Workspace

async def work(ledger, number):
    while True:
        key = f"{number:064x}"
        attempt = await asyncio.wrap_future(ledger.begin(key, "run", f"p{number}", "t", 0))
        sys.stdout.write(f"sent {number}\\n")
        leaf = await asyncio.wrap_future(ledger.answer(attempt, {"n": number}, {"response": key.encode()}))
        sys.stdout.write(f"safe {number} {leaf}\\n")
        sys.stdout.flush()
        number += 32

async def main(ledger):
    await asyncio.gather(*(work(ledger, i) for i in range(32)))

with Ledger.open(Workspace(Path(sys.argv[1]))) as ledger:
    asyncio.run(main(ledger))
"""


@pytest.mark.parametrize("lines", [1, 37, 500])
def test_a_kill_loses_no_committed_answer_and_the_rest_is_known(workspace, lines):
    process = in_process(COLLECT, workspace.root)
    seen = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.readlines()
    process.wait()
    safe = {
        int(n): int(leaf) for word, n, *leaf_ in map(str.split, seen) if word == "safe" for leaf in leaf_[:1]
    }
    with Ledger.open(workspace) as ledger:
        before = ledger.attempts("run")
        assert before.open <= 32
        assert ledger.sweep("run") == before.open
        after = ledger.attempts("run")
        assert (after.open, after.unknown) == (0, before.open)
        assert after.total == before.total
        assert after.answered == ledger.size()
        found = {one.key: one for one in ledger.exchanges(f"{number:064x}" for number in safe)}
        assert {int(key, 16): one.leaf for key, one in found.items()} == safe
        assert all(one.response == key.encode() for key, one in found.items())
        verification = ledger.verify()
        assert verification.ok, verification


APPEND = """
import sys
from pathlib import Path
from stillhouse.ledger import Ledger
from stillhouse.workspace import Workspace

with Ledger.open(Workspace(Path(sys.argv[1]))) as ledger:
    for i in range(60):
        print(ledger.append("row", {"by": sys.argv[2], "i": i}))
        print(*ledger.append_many([("row", {"by": sys.argv[2], "many": j}, {}) for j in range(5)]), sep="\\n")
"""


def test_two_processes_append_at_once_without_gaps(workspace):
    """Neither has seen the file before, so they also race to make the schema."""
    processes = [in_process(APPEND, workspace.root, name) for name in ("a", "b")]
    indices = [int(line) for process in processes for line in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(indices) == list(range(720))
    with Ledger.open(workspace) as ledger:
        verification = ledger.verify()
        assert verification.ok, verification
        assert verification.size == 720


def test_a_killed_process_does_not_hold_up_another(workspace):
    """Killed wherever it is: what it reported is there, and the other's indices go on without a gap."""
    killed, other = (in_process(APPEND, workspace.root, name) for name in ("killed", "other"))
    told = [int(n) for _ in range(40) for n in killed.stdout.readline().split()]
    killed.kill()
    told += [int(n) for line in killed.stdout.readlines() if line.endswith("\n") for n in line.split()]
    killed.wait()
    indices = [int(n) for n in other.communicate()[0].split()]
    assert other.returncode == 0
    assert len(indices) == 360
    assert not set(told) & set(indices)
    with Ledger.open(workspace) as ledger:
        assert all(ledger.leaf(n).body["by"] == "killed" for n in told)
        assert all(ledger.leaf(n).body["by"] == "other" for n in indices)
        verification = ledger.verify()
        assert verification.ok, verification
        assert ledger.append("row", {}) == verification.size


def test_a_full_disk_fails_what_waits_and_loses_nothing(file_workspace):
    with Ledger.open(file_workspace) as ledger:
        first = ask(ledger, 1)
        pages = ledger._writing.execute("PRAGMA page_count").fetchone()[0]
        ledger._writing.execute(f"PRAGMA max_page_count = {pages + 8}")
        attempts = [ledger.begin(key, "run", "p", "t", 0).result() for key in KEYS[2:22]]
        futures = [ledger.answer(a, {}, {"response": os.urandom(5000)}) for a in attempts]
        errors = [future.exception() for future in futures]
        full = [error for error in errors if error]
        assert full
        assert all(isinstance(error, StorageError) and "space" in error.mend for error in full)
        done = [future.result() for future, error in zip(futures, errors, strict=True) if not error]
        assert ledger.size() == 1 + len(done)
        assert ledger.attempts("run").open == len(full)
        assert ledger.verify().ok
        ledger._writing.execute("PRAGMA max_page_count = 1000000")
        ledger.answer(attempts[errors.index(full[0])], {}, {"response": b"later"}).result()
        assert ledger.leaf(first).body["number"] == 1
        assert ledger.verify().ok


def test_a_real_limit_on_file_size_fails_what_waits_and_loses_nothing(file_workspace):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger.open(file_workspace) as ledger:
        ask(ledger, 1)
        attempt = ledger.begin(KEYS[2], "run", "p", "t", 0).result()
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_workspace.ledger.stat().st_size + 60_000, hard))
        try:
            error = ledger.answer(attempt, {}, {"response": os.urandom(3_000_000)}).exception()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(error, StorageError)
        assert ledger.attempts("run") == AttemptCounts(open=1, answered=1)
        ledger.answer(attempt, {}, {"response": b"now"}).result()
        assert ledger.verify().ok


READ_ONLY = """
import os, sys
from pathlib import Path
from stillhouse.errors import StorageError
from stillhouse.ledger import Ledger
from stillhouse.workspace import Workspace

if os.geteuid() == 0:
    os.seteuid(65534)
try:
    Ledger.open(Workspace(Path(sys.argv[1])))
except StorageError as error:
    print(error.what, error.why, error.mend, sep="|")
"""


@pytest.mark.parametrize("existing", [False, True])
def test_a_read_only_folder_is_told(existing):
    """The child gives up root, so that permissions bind it."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        workspace = init_workspace(folder)
        if existing:
            Ledger.open(workspace).close()
            workspace.ledger.chmod(0o444)
        workspace.root.chmod(0o555)
        out, _ = in_process(READ_ONLY, workspace.root).communicate()
        assert str(workspace.ledger) in out
        assert "writ" in out.split("|")[2]
    finally:
        workspace.root.chmod(0o755)
        shutil.rmtree(folder)


def test_a_workspace_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not open"):
        Ledger.open(Workspace(tmp_path / "file"))


def test_a_newer_schema_is_left_alone(workspace):
    Ledger.open(workspace).close()
    with contextlib.closing(database_of(workspace).connect()) as db:
        db.execute("INSERT INTO migration VALUES ('m9999_future', '2030-01-01')")
        db.commit()
    before = workspace.ledger.read_bytes() if workspace.ledger.exists() else b""
    with pytest.raises(LedgerError, match="newer than this stillhouse") as caught:
        Ledger.open(workspace)
    assert "m9999_future" in caught.value.why
    assert "upgrade" in caught.value.mend
    assert before == (workspace.ledger.read_bytes() if workspace.ledger.exists() else b"")


def test_a_file_that_is_no_database_is_told(file_workspace):
    file_workspace.ledger.write_bytes(b"this is not a database at all" * 200)
    with pytest.raises(LedgerError, match="could not open") as caught:
        Ledger.open(file_workspace)
    assert "backup" in caught.value.mend


def test_a_damaged_page_is_told(file_workspace):
    with Ledger.open(file_workspace) as ledger:
        ledger.append_many([("row", {"id": i}, {}) for i in range(2000)])
    data = bytearray(file_workspace.ledger.read_bytes())
    data[8192:-4096] = os.urandom(len(data) - 12288)
    file_workspace.ledger.write_bytes(data)
    with pytest.raises(LedgerError, match=r"damaged|could not"), Ledger.open(file_workspace) as ledger:
        list(ledger.leaves())


def test_a_ledger_that_another_process_holds_is_told(workspace, monkeypatch):
    for module in (database_module, postgres_module):
        monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    database = database_of(workspace)
    with Ledger.open(workspace) as ledger, contextlib.closing(database.connect()) as other:
        database.begin(other)
        with pytest.raises(LedgerError) as caught:
            ledger.append("row", {})
        assert "another process" in caught.value.why
        assert ledger.size() == 0
        with Ledger.open(workspace) as looking:
            assert looking.size() == 0
        database.roll_back(other)
        assert ledger.append("row", {}) == 0


def test_the_file_is_durable_and_the_owners_alone(file_workspace):
    with Ledger.open(file_workspace) as ledger:
        settings = {
            name: ledger._writing.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete", "busy_timeout")
        }
    assert file_workspace.ledger.stat().st_mode & 0o077 == 0
    assert settings == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "busy_timeout": 30000}


def test_erased_content_is_gone_from_the_files_and_the_log_still_verifies(ledger, workspace):
    secret = os.urandom(40_000)  # incompressible, over several overflow pages
    kept = os.urandom(3000)
    leaf = ledger.append("exchange", {"key": KEYS[1]}, {"request": secret, "response": b"short answer"})
    other = ledger.append("row", {}, {"text": kept})
    (salt,) = ledger.read("SELECT salt FROM content WHERE leaf = ? AND name = 'request'", (leaf,))[0]
    assert secret[100:120] in everything(workspace)
    assert salt in everything(workspace)
    root = ledger.root(2)
    tombstone = ledger.erase(leaf, "request of the person")
    files = everything(workspace)
    assert not any(secret[at : at + 16] in files for at in range(0, len(secret), 500))
    assert b"short answer" not in files
    assert salt not in files
    assert kept[100:120] in files
    assert ledger.leaf(tombstone).body["leaves"] == [leaf]
    assert ledger.contents(leaf) == {"request": None, "response": None}
    (found,) = ledger.exchanges([KEYS[1]])
    assert (found.response, found.erased) == (None, True)
    assert ledger.root(2) == root
    verification = ledger.verify()
    assert verification.ok, verification
    assert ledger.contents(other) == {"text": kept}
    with pytest.raises(LedgerError, match="nothing to erase"):
        ledger.erase(leaf, "again")


def test_erasing_an_answer_erases_the_rows_made_from_it(ledger, workspace):
    secret, other_secret = os.urandom(9000), os.urandom(9000)
    answer, other = ask(ledger, 1), ask(ledger, 2)
    rows = ledger.append_many(
        [
            ("row", {"run": "a", "exchanges": [answer]}, {"row": secret}),
            ("row", {"run": "a", "exchanges": [other]}, {"row": other_secret}),
            ("row", {"run": "b", "exchanges": [other, answer]}, {"row": secret + b"again"}),
            ("row", {"run": "b", "exchanges": []}, {"row": b"of nothing"}),
        ]
    )
    salts = [row[0] for row in ledger.read("SELECT salt FROM content WHERE leaf IN (?, ?)", rows[::2])]
    assert secret[5000:5016] in everything(workspace)
    root = ledger.root()
    tombstone = ledger.erase(answer, "request of the person")
    files = everything(workspace)
    assert not any(secret[at : at + 16] in files for at in range(0, len(secret), 100))
    assert not any(salt in files for salt in salts)
    assert other_secret[5000:5016] in files
    assert ledger.size() == tombstone + 1
    assert ledger.root(tombstone) == root
    body = ledger.leaf(tombstone).body
    assert body["leaves"] == [answer, rows[0], rows[2]]
    assert body["contents"] == ["request", "response", "row"]
    for row, text in zip(rows, (None, other_secret, None, b"of nothing"), strict=True):
        assert ledger.contents(row) == {"row": text}
    verification = ledger.verify()
    assert verification.ok, verification
    # Another answer is its own leaf; what it shares with the first is gone already.
    assert ledger.leaf(ledger.erase(other, "the same person")).body["leaves"] == [other, rows[1]]
    assert ledger.verify().ok


def test_an_answer_without_recorded_text_is_not_an_erased_one(ledger):
    ledger.append("exchange", {"key": KEYS[5]}, {})
    ask(ledger, 6)
    found = {stored.key: stored.erased for stored in ledger.exchanges(KEYS[5:7])}
    assert found == {KEYS[5]: False, KEYS[6]: False}


def everything(workspace):
    """The bytes of the database's files: SQLite's with its WAL, of PostgreSQL the tables."""
    with contextlib.closing(database_of(workspace).connect()) as db:
        if workspace.ledger.exists():
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            files = workspace.root.glob("ledger.sqlite*")
        else:
            db.execute("CHECKPOINT")
            (folder,) = db.execute("SELECT current_setting('data_directory')").fetchone()
            files = Path(folder, "base").rglob("*")
        return b"".join(file.read_bytes() for file in files if file.is_file())


def test_a_full_queue_makes_callers_wait_and_loses_nothing(workspace, monkeypatch):
    monkeypatch.setattr("stillhouse.ledger.writer.WAITING", 8)
    with Ledger.open(workspace) as ledger:
        gate = threading.Event()
        held = ledger._writer.submit(lambda db: gate.wait(10))
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(lambda: [ledger.begin(key, "run", "p", "t", 0) for key in KEYS[:50]])
            assert not sending.done()
            gate.set()
            assert held.result()
            assert len({future.result() for future in sending.result()}) == 50


def test_the_commands_of_the_docs_run(workspace, ledger):
    """The Python and the commands in docs/ledger.md and docs/keys.md, in their order, in a workspace with
    1,271 leaves; commands with a word in capitals are forms to fill in."""
    ledger.append_many([("row", {"id": i}, {"text": b"t"}) for i in range(1271)])
    ran = 0
    for page in ("ledger.md", "keys.md"):
        text = (Path(__file__).parents[2] / "docs" / page).read_text()
        for example in text.split("```python\n")[1:]:
            code = "from pathlib import Path\nfrom stillhouse.ledger import Ledger\n"
            code += "from stillhouse.workspace import open_workspace\n" + example.split("```")[0]
            done = in_process(code, cwd=workspace.root.parent)
            done.communicate()
            assert done.returncode == 0, code
        for line in re.findall(r"^    stillhouse (.*?)(?:  +#.*)?$", text, re.MULTILINE):
            if re.search(r"\b[A-Z]{3,}\b", line) or "example.org" in line:
                continue
            if line.startswith("ledger backup") and workspace.ledger_url.exists():  # a server has its own
                continue
            code = f"import sys\nsys.argv = ['stillhouse', *{shlex.split(line)}]\n"
            done = in_process(f"{code}from stillhouse.cli import main\nmain()", cwd=workspace.root.parent)
            done.communicate()
            assert done.returncode == 0, line
            ran += 1
    assert ran >= 9
    assert [leaf.body["leaves"] for leaf in ledger.leaves("tombstone")] == [[1270]]
    assert len(list(ledger.leaves("correction"))) == 1
    assert ledger.verify().ok


def test_of_many_written_at_once_each_keeps_what_is_its_own(ledger):
    """200 attempts and answers through one queue: rows are written by the dozen."""
    keys = [f"{n:064x}" for n in range(200)]
    begun = [ledger.begin(key, "run", f"p{n}", "m", n, n / 1e9) for n, key in enumerate(keys)]
    attempts = [future.result() for future in begun]
    assert len(set(attempts)) == 200
    told = [
        ledger.answer(attempt, {"decision": 0, "n": n}, {"response": b"answer %d" % n}, n / 1e9)
        for n, attempt in enumerate(attempts)
    ]
    again = ledger.answer(attempts[7], {"decision": 0}, {})
    leaves = [future.result() for future in told]
    with pytest.raises(Exception, match="settled"):
        again.result()
    for n, (key, leaf) in enumerate(zip(keys, leaves, strict=True)):
        body = ledger.leaf(leaf).body
        assert (body["n"], body["key"], ledger.contents(leaf)) == (n, key, {"response": b"answer %d" % n})
    assert ledger.attempts("run").answered == 200
    assert ledger.spent("run").known == pytest.approx(sum(range(200)) / 1e9)
    assert [found.leaf for found in ledger.exchanges(keys)] == leaves
    assert ledger.verify().ok
