"""Erasing from a workspace in which a real run was made: nothing of it is left in any byte of any file."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from provider import answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.ledger import Ledger, erasure
from stillhouse.ledger.erasure import erase, finish
from stillhouse.ledger.subject import Subject
from stillhouse.recipe import parse_recipe
from stillhouse.report import write_report
from stillhouse.workspace import Workspace, init_workspace

PERSON = 'Ada "O\'Brien" Å\\Lund'  # as JSON, HTML and both at once write it in different ways
FILES = ("exchanges", "samples", "dropped", "prompts", "predictions", "judgements", "battery")
pytestmark = pytest.mark.usefixtures("one_thread")


async def desk(body, number):
    """Teacher and judge in one: the teacher says what was asked backwards, the judge prefers any."""
    text = body["messages"][-1]["content"]
    if body["model"] == "court":
        a = re.search(r"\[answer A (\w+)\]\n(.*?)\n\[end", text, re.DOTALL)[2]
        return answer("verdict: A" if a.startswith("said") else "verdict: B")
    return answer(f"said {text[4:]} by heart")


@pytest.fixture
def made(tmp_path, provider):
    """A workspace with a finished, judged, reported run; PERSON stands in a prompt of either split."""
    rows = [{"prompt": f"say {n} rhubarb", "id": f"p{n}", "group": f"g{n}"} for n in range(16)]
    rows += [
        {"prompt": f"say {n} {PERSON}", "id": f"of {PERSON} {n}", "group": f"h{n}"} for n in range(16, 24)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "terms.txt").write_text("you may use the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    terms["scope"] = ["train_target", "evaluation"]
    server = provider(desk)
    recipe = parse_recipe(
        {
            "run": {"name": "t"},
            "teacher": {"model": "m", "endpoint": server.url, "provider": "x", "terms": terms},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"concurrency": 4, "max_tokens": 8},
            "curate": {"near_duplicates": 0.0},
            "student": {"init": str(tiny_model(tmp_path / "tiny"))},
            "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {
                "held_out": 0.5,
                "resamples": 100,
                "judge": {"model": "court", "endpoint": server.url, "provider": "court", "terms": terms},
            },
        }
    )
    workspace = init_workspace(tmp_path / "here")
    run = pipeline.run(recipe, workspace).run
    write_report(run)
    (workspace.root / "error.txt").write_text(f"ValueError: {PERSON!r}")
    (run.root / f".samples.parquet.{'0' * 8}").write_bytes(PERSON.encode())
    return workspace, run, recipe


def texts(root):
    """All that the files below say, whether packed or not, as one string of JSON without escapes."""
    said = []
    for path in sorted(Path(root).rglob("*")):
        if path.is_file() and path.suffix not in (".safetensors", ".pt"):
            said.append(path.read_bytes())
            if path.suffix == ".parquet":
                said.append(repr(plain(pq.read_table(path).to_pylist())).encode())
    with closing(sqlite3.connect(Path(root) / "ledger.sqlite")) as db:
        for (body,) in db.execute("SELECT body FROM content WHERE body IS NOT NULL"):
            packed = zstandard.decompress(body)
            said.append(packed)
        said += [repr(row).encode() for row in db.execute("SELECT prompt_id, reason FROM attempt")]
    return b"\n".join(said)


def plain(value):
    if isinstance(value, dict):
        return [plain(each) for each in value.values()]
    return [plain(each) for each in value] if isinstance(value, list) else value


def forms(text):
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    twice = json.dumps(once, ensure_ascii=False)[1:-1]
    escaped = json.dumps(text)[1:-1]
    return [each.encode() for each in (text, once, twice, escaped, "O'Brien", "O&#x27;Brien")]


def salts(workspace, leaves=None):
    with closing(sqlite3.connect(workspace.ledger)) as db:
        rows = db.execute("SELECT leaf, salt FROM content WHERE salt IS NOT NULL").fetchall()
    return {salt for leaf, salt in rows if leaves is None or leaf in leaves}


def raw(root):
    return b"".join(path.read_bytes() for path in Path(root).rglob("*") if path.is_file())


def assert_gone(workspace, before, sought):
    said, there = texts(workspace.root), raw(workspace.root)
    for form in sought:
        assert form not in said, form
        assert form not in there, form
    gone = before - salts(workspace)
    assert gone
    assert not [salt for salt in gone if salt in there]
    assert not workspace.erasing.exists()
    with Ledger.open(workspace) as ledger:
        verification = ledger.verify()
        assert verification.ok, verification


def command(workspace, *words):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", "ledger", "erase", *words],
        cwd=workspace.root.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_text_is_gone_from_every_byte_and_the_rest_stays(made):
    workspace, run, recipe = made
    before = salts(workspace)
    assert all(form in texts(workspace.root) for form in forms(PERSON)[:2])

    shown = command(workspace, "--containing", PERSON, "--json")
    assert shown.returncode == 0, shown.stderr
    counted = json.loads(shown.stdout)
    assert counted["erased"] is False
    assert counted["asked"]["exchange"] >= 8
    assert len(counted["students"]) == len(counted["releases"]) == 1
    assert salts(workspace) == before, "it was only counted"

    assert command(workspace, "--containing", PERSON, "--yes").returncode == 2  # no reason
    done = command(workspace, "--containing", PERSON, "--yes", "--reason", "art. 17", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["wal_emptied"] is True
    assert said["left"] == []
    assert [one["run"] for one in said["students"]] == [run.root.name]
    assert_gone(workspace, before, forms(PERSON))
    assert not run.report.exists()
    assert not run.marker("evaluate").exists()
    for name in FILES:
        rows = pq.read_table(getattr(run, name)).num_rows
        assert rows or name in ("dropped", "judgements"), name
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts().total > 0
    again = command(workspace, "--containing", PERSON, "--yes", "--reason", "again")
    assert again.returncode == 1
    assert "nothing to erase" in again.stderr
    finished = pipeline.run(recipe, workspace, stages=["curate"])
    assert finished.run.samples.exists()


def test_a_test_answer_goes_from_predictions_and_from_what_the_judge_was_asked(made):
    workspace, run, _ = made
    judged = {row["prompt_id"] for row in pq.read_table(run.judgements).to_pylist() if row["leaves"]}
    row = next(
        row
        for row in pq.read_table(run.predictions).to_pylist()
        if row["system"] == "teacher" and row["prompt_id"] in judged
    )
    with Ledger.open(workspace) as ledger:
        (leaf,) = (
            leaf.index
            for leaf in ledger.leaves("exchange")
            if leaf.body["stage"] == "evaluate"
            and row["answer"].encode() in ledger.contents(leaf.index)["response"]
        )
        before = salts(workspace)
        erase(ledger, Subject(leaves=(leaf,)), "wrong")
    assert_gone(workspace, before, [json.dumps(row["answer"], ensure_ascii=False)[1:-1].encode()])
    left = pq.read_table(run.predictions).to_pylist()
    assert [one["system"] for one in left if one["prompt_id"] == row["prompt_id"]].count("teacher") == 0
    assert row["prompt_id"] not in pq.read_table(run.judgements)["prompt_id"].to_pylist()
    assert row["prompt_id"] in pq.read_table(run.prompts)["id"].to_pylist()


def test_all_answers_of_a_teacher_go(made):
    workspace, _, _ = made
    before = salts(workspace)
    done = command(workspace, "--teacher", "m", "--yes", "--reason", "the contract ended", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["tombstones"]) == 1
    assert_gone(workspace, before, [b" by heart"])
    with Ledger.open(workspace) as ledger:
        bodies = [ledger.contents(leaf.index) for leaf in ledger.leaves("exchange")]
        assert not [body for body in bodies if any(body.values())], "the judge was asked about these answers"


def test_a_sample_is_named_by_its_id(made):
    workspace, run, _ = made
    row = pq.read_table(run.samples).to_pylist()[0]
    done = command(workspace, row["id"], "--yes", "--reason", "wrong")
    assert done.returncode == 0, done.stderr
    assert row["id"] not in pq.read_table(run.samples)["id"].to_pylist()
    missing = command(workspace, "no such row", "--yes", "--reason", "wrong")
    assert (missing.returncode, "no row called" in missing.stderr) == (2, True)


def erase_until(workspace, steps):
    """In a forked process: erase, and die before the `steps`-th change of a file or of the ledger."""
    left = [steps]

    def dying(real):
        def call(*given, **named):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return real(*given, **named)

        return call

    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.replace = dying(os.replace)
        os.unlink = dying(os.unlink)
        Path.unlink = dying(Path.unlink)
        erasure.bury = dying(erasure.bury)
        Ledger.scrub = dying(Ledger.scrub)
        with Ledger.open(workspace) as ledger:
            erase(ledger, Subject(text=PERSON), "art. 17")
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_killed_at_any_step_the_same_call_finishes(made, tmp_path):
    workspace, _, _ = made
    before, steps, code = salts(workspace), 0, 9
    while code == 9:
        copy = Workspace(shutil.copytree(workspace.root, tmp_path / f"copy{steps}" / ".stillhouse"))
        code = erase_until(copy, steps)
        with Ledger.open(copy) as ledger:
            if copy.erasing.exists() and steps % 2:
                assert finish(ledger) is not None
            elif copy.erasing.exists() or salts(copy) == before:
                erase(ledger, Subject(text=PERSON), "art. 17")
        assert_gone(copy, before, forms(PERSON))
        shutil.rmtree(copy.root.parent)
        steps += 1
    assert code == 0
    assert steps > 12
