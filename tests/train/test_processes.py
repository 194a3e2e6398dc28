"""Several processes train one student: what they end with is what one process ends with."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TEMPLATE, tiny_model
from train.tiny_student import BASE, losses, make_recipe, sums, weights, write_samples

from stillhouse.errors import UsageError
from stillhouse.recipe import parse_recipe
from stillhouse.train import Source, processes, train
from stillhouse.train.processes import Processes
from stillhouse.workspace import RunFolder

SCRIPT = Path(__file__).with_name("several.py")
EXACT = {"dtype": "float32", "epochs": 2}
CASES = {
    "sequence": {**EXACT},
    "uneven": {**EXACT, "epochs": 0.5, "batch_tokens": 30},  # two rows to a batch or one: none for a process
    "in parts": {**EXACT, "micro_tokens": 40},
    "stored": {**EXACT, "objective": "distil"},
    "on_policy": {
        **EXACT,
        "objective": "on_policy",
        "on_policy": {"after": 0.0, "max_tokens": 8, "share": 0.4},
        "distil": {"online": True},
    },
}


def made(root: Path, name: str) -> RunFolder:
    run = RunFolder(root / name)
    write_samples(run.samples, sums(45))
    return run


def launch(plan: list[dict], folder: Path, launcher: bool = True) -> list[subprocess.Popen[bytes]]:
    """By torchrun, or as two processes that nobody watches over."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    command = [str(SCRIPT), str(path)]
    if launcher:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return [subprocess.Popen([sys.executable, *torchrun, *command], stderr=subprocess.PIPE)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen([sys.executable, *command], env={**common, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    shape = {**BASE, "width": 48, "seed": 9, "initializer_range": 0.5}
    return tiny_model(tmp_path_factory.mktemp("teachers") / "teacher", template=TEMPLATE, **shape)


@pytest.fixture(scope="module")
def together(tmp_path_factory, folder, teacher) -> Path:
    """Every case by two processes of one launch; and one that is stopped by a Ctrl-C which the second process
    alone hears, and then goes on."""
    root = tmp_path_factory.mktemp("together")
    common = {"student": str(folder), "teacher": str(teacher)}
    plan = [{**common, "run": str(made(root, name).root), "train": of} for name, of in CASES.items()]
    resumed = {**common, "run": str(made(root, "resumed").root), "train": CASES["stored"]}
    plan += [{**resumed, "strike": (1, 3, signal.SIGINT)}]
    (process,) = launch(plan, root)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    assert [(root / "resumed" / f"said-{n}").read_text()[:11] for n in (0, 1)] == ["Interrupted"] * 2
    assert "stopped at step 3" in (root / "resumed" / "said-0").read_text()
    (process,) = launch([resumed], root)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    return root


def alone(root: Path, name: str, student: Path, teacher: Path) -> RunFolder:
    run = made(root, name)
    source = Source(root / "targets", (), "teacher", "r1")
    train(run, make_recipe(str(student), CASES[name]), teacher_folder=str(teacher), source=source)
    return run


@pytest.mark.parametrize("name", ["sequence", "uneven", "in parts", "stored"])
def test_two_processes_end_with_the_very_weights_of_one_that_works_in_two_halves(
    name, together, folder, teacher, tmp_path
):
    """The two halves of a batch are the same rows, and a + b = b + a; each loss is a sum of two."""
    torch.set_num_threads(2)
    whole, shared = alone(tmp_path, name, folder, teacher), RunFolder(together / name)
    assert (shared.root / "said-0").read_text() == (shared.root / "said-1").read_text() == "done"
    ours, theirs = losses(shared), losses(whole)
    assert [(row["step"], row["tokens"]) for row in ours] == [(row["step"], row["tokens"]) for row in theirs]
    for key in ("loss", "grad_norm", "held_out"):
        wanted = [row[key] for row in theirs if key in row]
        assert [row[key] for row in ours if key in row] == pytest.approx(wanted, rel=1e-6)
    if name != "in parts":  # cut in other places
        assert weights(shared) == weights(whole)


def test_two_processes_that_write_their_own_text_learn_as_one_does(together, folder, teacher, tmp_path):
    """Each row's text is drawn from a seed of its own, so both write the same; sums are in another order."""
    whole, shared = alone(tmp_path, "on_policy", folder, teacher), RunFolder(together / "on_policy")
    for key in ("loss", "grad_norm", "tokens"):
        wanted = [row[key] for row in losses(whole)]
        assert [row[key] for row in losses(shared)] == pytest.approx(wanted, rel=1e-4)
    assert all("own" in row for row in losses(shared))
    for ours, theirs in zip(losses(shared), losses(whole), strict=True):
        for figure in ("rows", "tokens", "length", "truncated", "loss"):
            assert ours["own"][figure] == pytest.approx(theirs["own"][figure], rel=1e-4), figure
    mine, its = (load_file(run.student / "model.safetensors") for run in (shared, whole))
    for name, value in mine.items():
        torch.testing.assert_close(value, its[name], rtol=1e-3, atol=1e-4)


def test_a_training_that_was_stopped_in_both_goes_on_to_the_same_weights(together):
    assert weights(RunFolder(together / "resumed")) == weights(RunFolder(together / "stored"))
    assert (
        losses(RunFolder(together / "resumed"))[-1]["step"]
        == losses(RunFolder(together / "stored"))[-1]["step"]
    )


def test_a_process_that_is_killed_ends_the_other_with_a_word_and_the_checkpoint_stays_whole(folder, tmp_path):
    run = made(tmp_path, "killed")
    settings = {**EXACT, "checkpoint_seconds": 4}
    case = {"run": str(run.root), "student": str(folder), "teacher": None, "train": settings}
    first, second = launch([{**case, "strike": (1, 6, signal.SIGKILL)}], tmp_path, launcher=False)
    assert second.wait(300) == -signal.SIGKILL
    assert first.wait(300) == 0
    said = (run.root / "said-0").read_text()
    assert said.startswith("ModelError: another process of this training is gone")
    assert "checkpoint is intact" in said
    kept = sorted(run.checkpoints.glob("*/step-*"))
    assert kept
    train(run, make_recipe(str(folder), settings))
    seen = losses(run)
    assert [row["step"] for row in seen] == list(range(1, len(seen) + 1))


def test_a_process_alone_sums_nothing_and_shares_are_even():
    assert processes.join() == Processes()
    assert Processes().total(1.5, 2) == [1.5, 2]
    rows = list(range(7))
    shares = [Processes(number, 3).share(rows) for number in range(3)]
    assert sorted(row for share in shares for row in share) == rows
    assert [len(share) for share in shares] == [3, 2, 2]


def test_only_training_is_shared_out(monkeypatch, tmp_path, folder):
    from stillhouse import pipeline
    from stillhouse.workspace import init_workspace

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="only training is shared out") as caught:
        pipeline.run(make_recipe(str(folder)), init_workspace(tmp_path))
    assert "launcher" in caught.value.mend


def test_what_processes_cannot_share_is_refused_before_anybody_is_asked(monkeypatch, tmp_path, folder):
    from stillhouse import pipeline
    from stillhouse.ledger import Ledger
    from stillhouse.workspace import init_workspace

    workspace, prompts = init_workspace(tmp_path), tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{n}?", "id": f"p{n}"}) + "\n" for n in range(8)))
    tree = make_recipe(str(folder)).model_dump(mode="json")
    tree["prompts"]["source"] = str(prompts)
    read = {"objective": "distil", "distil": {"tokenizer": "t", "head": 8, "draws": 0}}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for of_train, words in (({"preference": {}}, "learned by one process"), (read, "asked by one process")):
        recipe = parse_recipe(tree | {"train": tree["train"] | of_train})
        with pytest.raises(UsageError, match=words):
            pipeline.run(recipe, workspace, stages=["train"])
        with Ledger.open(workspace) as ledger, pytest.raises(UsageError, match=words):
            pipeline.plan(recipe, workspace, ledger, pilot=2)
    assert not list(workspace.runs.glob("*"))
