"""Erasing reaches every file of the workspace, and what stays is as it was."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.collect import EXCHANGES
from stillhouse.collect.grow import GROWN
from stillhouse.collect.spool import PROMPTS
from stillhouse.curate import DROPPED, SAMPLES
from stillhouse.errors import LedgerError, StorageError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.batches import NewLine, begin_batch
from stillhouse.ledger.erasure import erase
from stillhouse.ledger.subject import Subject
from stillhouse.ledger.targets import (
    SUFFIX,
    Binding,
    ShardWriter,
    Targets,
    open_shard,
    sweep,
    unsealed,
    verify_shard,
    without,
)
from stillhouse.workspace import locked, write_json

BINDING = Binding("teacher", "r", "t" * 64, "", 1000, 2)
SECRET = "the quick brown secret of leaf"


def targets(n):
    """Two positions, the second without a target."""
    return Targets(
        np.array([0, 2, 2]), np.array([n, n + 1], np.int32), np.log([0.5, 0.25], dtype=np.float32),
        np.log([0.25, 1.0], dtype=np.float32),
    )  # fmt: skip


def write(folder, leaves, binding=BINDING):
    with ShardWriter(folder, binding) as writer:
        for leaf in leaves:
            writer.add(str(leaf), np.array([1, leaf, 900], np.int32), targets(leaf))
        return writer.seal()


def fill(schema, **values):
    """A row of a file, null where nothing is said."""
    return {name: values.get(name) for name in schema.names}


@pytest.fixture
def workspace(either_workspace):
    return either_workspace


@pytest.fixture
def ledger(workspace):
    with Ledger.open(workspace) as opened:
        yield opened


@pytest.fixture
def run(workspace, ledger):
    """A run with four answers, one of which (the second) invented the prompt of the last."""
    run = workspace.run("t", "0" * 64)
    run.root.mkdir(parents=True)
    leaves = [
        ledger.append("exchange", {"key": f"{n:064x}"}, {"response": f"{SECRET} {n}".encode()})
        for n in range(4)
    ]
    names = ["p0", "p1", "p2", "grown-3"]
    exchanges = [
        fill(EXCHANGES, leaf=leaf, prompt_id=name, answer=f"{SECRET} {leaf}")
        for leaf, name in zip(leaves, names, strict=True)
    ]
    samples = [
        fill(SAMPLES, id=f"{name}#0", completion=f"{SECRET} {leaf}", leaves=[leaf])
        for leaf, name in zip(leaves, names, strict=True)
    ]
    grown = [
        fill(GROWN, id="grown-3", text=f"{SECRET} invented", reason="", leaf=leaves[1]),
        fill(GROWN, text=f"{SECRET} refused", reason="too short", leaf=leaves[1]),
        fill(GROWN, text="of another reply", reason="too short", leaf=leaves[2]),
    ]
    prompts = [fill(PROMPTS, id=name, split="train") for name in names]
    for path, schema, rows in (
        (run.exchanges, EXCHANGES, exchanges),
        (run.samples, SAMPLES, samples[:3]),
        (run.dropped, DROPPED, [{**samples[3], "reason": "empty"}]),
        (run.grown, GROWN, grown),
        (run.prompts, PROMPTS, prompts),
    ):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    write_json(run.marker("curate"), {"inputs": "x"})
    run.report.write_text(SECRET)
    return run, leaves


def column(path, name):
    return pq.read_table(path)[name].to_pylist()


def everything(folder):
    return b"".join(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())


def test_an_answer_goes_from_every_file_and_the_rest_stays(run, ledger, workspace):
    run, leaves = run
    first = write(workspace.targets, leaves)
    alone = write(workspace.targets, leaves[1:2])
    other = write(workspace.targets, leaves[2:3])
    kept = other.read_bytes()
    before = {leaf: open_shard(first).block(n).tobytes() for n, leaf in enumerate(leaves)}
    run.unmixed.write_bytes(b"what a killed curate left")

    done = erase(ledger, Subject(leaves=(leaves[1],)), "request of the person")

    elsewhere = [what for what in done.out_of_reach if "other machines" in what]
    assert len(elsewhere) == workspace.ledger_url.exists(), "only a server's ledger is shared by machines"
    assert not run.unmixed.exists()

    assert done.shards[alone.stem] is None
    assert done.shards.keys() == {first.stem, alone.stem}
    assert not first.exists()
    assert not alone.exists()
    assert other.read_bytes() == kept
    fresh = workspace.targets / (done.shards[first.stem] + SUFFIX)
    verify_shard(fresh)
    shard = open_shard(fresh)
    others = [leaves[0], leaves[2]]  # the last answered a prompt that the erased one invented
    assert shard.sample_ids == tuple(map(str, others))
    assert [shard.block(n).tobytes() for n in range(2)] == [before[leaf] for leaf in others]
    assert (shard.known, shard.binding) == (2, BINDING)
    assert fresh.read_bytes() == write(workspace.targets, others).read_bytes()

    assert column(run.exchanges, "leaf") == others
    assert column(run.samples, "leaves") == [[leaves[0]], [leaves[2]]]
    assert column(run.dropped, "leaves") == []
    assert column(run.grown, "text") == ["of another reply"]
    assert column(run.prompts, "id") == ["p0", "p1", "p2"]
    assert pq.read_schema(run.exchanges).equals(EXCHANGES)
    assert done.rows == {run.samples: 1, run.dropped: 1, run.exchanges: 2, run.prompts: 1, run.grown: 2}
    assert done.leaves == [leaves[1], leaves[3]]
    assert not run.report.exists()
    assert not run.marker("curate").exists()
    assert ledger.contents(leaves[1]) == {"response": None}
    assert ledger.leaf(done.tombstones[0]).body["leaves"] == [leaves[1], leaves[3]]
    assert ledger.verify().ok
    assert f"{SECRET} invented".encode() not in everything(workspace.root)
    assert f"{SECRET} {leaves[1]}".encode() not in everything(workspace.root)
    with pytest.raises(LedgerError, match="nothing to erase"):
        erase(ledger, Subject(leaves=(leaves[1],)), "again")


def test_what_the_ledger_lost_before_is_still_erased_from_the_files(run, ledger, workspace):
    run, leaves = run
    shard = write(workspace.targets, leaves)
    ledger.erase(leaves[0], "by hand, in the ledger alone")
    done = erase(ledger, Subject(leaves=(leaves[0],)), "now everywhere")
    assert done.tombstones == []
    assert not shard.exists()
    assert column(run.exchanges, "leaf") == leaves[1:]


def test_the_samples_that_a_killed_further_training_left_go_too(run, ledger, workspace):
    run, leaves = run
    copied = run.further("seed-18").samples
    copied.parent.mkdir(parents=True)
    copied.write_bytes(run.samples.read_bytes())
    erase(ledger, Subject(leaves=(leaves[1],)), "request of the person")
    assert not copied.exists()


def test_nothing_is_erased_while_a_run_is_at_work(run, ledger, workspace):
    run, leaves = run
    path = write(workspace.targets, leaves)
    with locked(run), pytest.raises(StorageError, match="in use"):
        erase(ledger, Subject(leaves=(leaves[0],)), "now")
    assert path.exists()
    assert ledger.contents(leaves[0])["response"] is not None


def test_what_is_under_way_would_bring_it_back(run, ledger):
    run, leaves = run
    decision = ledger.append("decision", {"verdict": "allow"})
    line = NewLine("a" * 64, "grown-3", 0, None)
    batch = begin_batch(
        ledger,
        run=run.root.name,
        teacher=("e", "m", "r"),
        decision=decision,
        price=None,
        shard="b" * 64,
        lines=[line],
    )
    run.batches.mkdir()
    asked, old = run.batches / f"{batch.shard}.jsonl", run.batches / f"{'c' * 64}.jsonl"
    asked.write_text('{"body": "of somebody"}')
    old.write_text(SECRET)
    for subject in (
        Subject(leaves=(leaves[1],)),
        Subject(text="somebody"),
    ):  # the one that invented its prompt
        with pytest.raises(UsageError, match="under way"):
            erase(ledger, subject, "now")
    assert old.exists()
    assert ledger.contents(leaves[1])["response"] is not None
    done = erase(ledger, Subject(leaves=(leaves[0],)), "now")
    assert (asked.exists(), old.exists(), done.files) == (True, False, [old])
    run.shards.mkdir()
    (run.shards / "x-1.shard").write_bytes(b"")
    with pytest.raises(UsageError, match="not yet in the ledger"):
        erase(ledger, Subject(leaves=(leaves[2],)), "now")


def test_what_cannot_be_made_anew_is_named_as_left(run, ledger, workspace):
    run, leaves = run
    write_json(run.recipe, {"prompts": {"grow": SECRET}})
    bare = ledger.append("correction", {"what": SECRET})
    done = erase(ledger, Subject(text=SECRET), "now")
    assert set(done.left) == {str(run.recipe), f"leaf {bare}, in its own bytes"}
    assert done.leaves == leaves
    run.recipe.unlink()
    assert SECRET.encode() not in everything(run.root)


def test_a_reading_of_what_a_student_wrote_to_the_prompt_goes_too(run, ledger):
    run, leaves = run
    attempt = ledger.begin("d" * 64, run.root.name, str(leaves[0]), "m", 0).result()
    reading = ledger.answer(attempt, {"stage": "read"}, {"request": b"[17, 4]"}).result()
    done = erase(ledger, Subject(leaves=(leaves[0],)), "now")
    assert done.leaves == [leaves[0], reading]
    assert ledger.contents(reading) == {"request": None}


def test_a_damaged_shard_is_named_and_not_sealed_anew(run, ledger, workspace):
    _, leaves = run
    path = write(workspace.targets, leaves)
    data = bytearray(path.read_bytes())
    data[open_shard(path).borders[2]] ^= 1  # in a row that would stay
    path.write_bytes(data)
    with pytest.raises(LedgerError, match="not a usable shard") as caught:
        erase(ledger, Subject(leaves=(leaves[0],)), "now")
    assert path.name in caught.value.what
    assert path.exists()
    assert ledger.contents(leaves[0])["response"] is not None


def test_killed_between_the_new_shard_and_the_old_it_is_finished_later(tmp_path):
    path = write(tmp_path, [1, 2, 3])
    fresh = write(tmp_path, [1, 3])  # as far as a killed call came
    assert without(path, {"2"}) == fresh
    assert [each.name for each in tmp_path.iterdir()] == [fresh.name]
    assert without(fresh, {"2"}) == fresh


@pytest.mark.parametrize(
    ("head", "draws", "weights", "tail"),
    [(2, 0, [0.5, 0.25], 0.25), (0, 4, [0.75, 0.25], 0.0), (1, 2, [0.5] * 2, 0.0)],
)
def test_rows_of_every_estimator_are_copied_as_they_stand(tmp_path, head, draws, weights, tail):
    bound = Binding("teacher", "r", "t" * 64, "", 1000, head, draws)

    def sealed(names):
        with ShardWriter(tmp_path, bound) as writer, np.errstate(divide="ignore"):
            for n in names:
                tails = np.log([tail, 1.0]).astype(np.float32)
                ids, logprobs = np.array([n, 999 - n], np.int32), np.log(weights).astype(np.float32)
                writer.add(
                    str(n), np.array([n, 7], np.int32), Targets(np.array([0, 2, 2]), ids, logprobs, tails)
                )
            return writer.seal()

    path = sealed(range(40))
    gone = {"0", "17", "18", "39"}
    fresh = without(path, gone)
    assert not path.exists()
    assert open_shard(fresh).known == 36
    assert sealed([n for n in range(40) if str(n) not in gone]) == fresh


HALF = """
import sys, time
import numpy as np
from pathlib import Path
from stillhouse.ledger.targets import Binding, ShardWriter, Targets
writer = ShardWriter(Path(sys.argv[1]), Binding("teacher", "r", "t" * 64, "", 1000, 2))
one = np.array([0, 1]), np.array([5], np.int32), np.zeros(1, np.float32), np.full(1, -np.inf, np.float32)
for n in range(2000):
    writer.add(str(n), np.array([1, n], np.int32), Targets(*one))
print("half", flush=True)
time.sleep(600)
"""


def test_a_killed_writer_leaves_nothing_that_is_taken_for_a_shard(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HALF, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        assert child.stdout.readline() == b"half\n"
        (half,) = tmp_path.iterdir()
        assert half.stat().st_size > 4096
        assert sweep(tmp_path) == []  # its writer lives
        assert unsealed(tmp_path) == [half]
    finally:
        child.kill()
        child.wait()
    with pytest.raises(LedgerError) as caught:
        open_shard(half)
    assert "never sealed" in caught.value.why
    assert sweep(tmp_path) == [half]
    assert list(tmp_path.iterdir()) == []
