"""A student in parts over two processes: it learns what a whole one learns, in half of the memory."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TEMPLATE, tiny_model
from train.test_processes import launch, made
from train.tiny_student import BASE, losses, make_recipe, weights
from transformers import AutoModelForCausalLM

from stillhouse.errors import UsageError
from stillhouse.train import Source, train
from stillhouse.workspace import RunFolder

# Layers of 2,505 weights, which two processes cannot share evenly, and norms of 15
ODD = {"width": 15, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 6}
ODD |= {"intermediate_size": 31}
EXACT = {"dtype": "float32", "epochs": 2, "shard": True}
CASES = {
    "sequence": {**EXACT},
    "untied": {**EXACT},
    "uneven": {**EXACT, "epochs": 0.5, "batch_tokens": 30},  # two rows to a batch or one: none for a process
    "in parts": {**EXACT, "micro_tokens": 40, "gradient_checkpointing": True},
    "stored": {**EXACT, "objective": "distil"},
    "patient": {**EXACT, "epochs": 12, "patience": 1, "learning_rate": 0.01, "held_out": 0.3},
    "chunks": {**EXACT, "objective": "distil", "distil": {"unit": "chunk"}},
    "rounded": {**EXACT, "dtype": "bfloat16"},
}
APART = {"patient": 5e-5, "rounded": 0.01}


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> Path:
    """Folders `tied` and `untied` to begin with, and a `teacher`."""
    root = tmp_path_factory.mktemp("models")
    for name in ("tied", "untied"):
        shape = {**BASE, **ODD, "tie_word_embeddings": name == "tied"}
        tiny_model(root / name, template=TEMPLATE, **shape)
    tiny_model(
        root / "teacher", template=TEMPLATE, **{**BASE, "width": 48, "seed": 9, "initializer_range": 0.5}
    )
    return root


def case(root: Path, students: Path, name: str, settings: dict[str, object], **more: object) -> dict:
    start = students / ("untied" if name == "untied" else "tied")
    common = {"student": str(start), "teacher": str(students / "teacher")}
    return {**common, "run": str(root / name), "train": settings, **more}


def launched(plan: list[dict], root: Path) -> None:
    (process,) = launch(plan, root)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()


@pytest.fixture(scope="module")
def shared(tmp_path_factory, students) -> Path:
    """Every case by two processes of one launch, with what each of them held. Two more, of which the second
    process alone hears a Ctrl-C, are then gone on with: `resumed` by two processes again."""
    root = tmp_path_factory.mktemp("shared")
    plan = [case(root, students, name, of, held=True) for name, of in CASES.items()]
    strike = {"strike": (1, 7, signal.SIGINT)}
    plan += [case(root, students, name, CASES["patient"], **strike) for name in ("resumed", "by one")]
    for each in plan:
        made(root, Path(each["run"]).name)
    launched(plan, root)
    assert "stopped at step 7" in (root / "resumed" / "said-0").read_text()
    launched([case(root, students, "resumed", CASES["patient"])], root)
    return root


def alone(run: RunFolder, students: Path, name: str) -> RunFolder:
    of = case(run.root.parent, students, name, CASES[name])
    source = Source(run.root.parent / "targets", (), "teacher", "r1")
    train(run, make_recipe(of["student"], of["train"]), teacher_folder=of["teacher"], source=source)
    return run


def check_alike(parts: RunFolder, whole: RunFolder, apart: float) -> None:
    """`apart` is how far figures may be, as a share, and weights, which are of the size of 0.2."""
    ours, theirs = losses(parts), losses(whole)
    assert [(row["step"], row["tokens"]) for row in ours] == [(row["step"], row["tokens"]) for row in theirs]
    for key in ("loss", "grad_norm", "held_out"):
        wanted = [row[key] for row in theirs if key in row]
        assert [row[key] for row in ours if key in row] == pytest.approx(wanted, rel=apart), key
    mine, its = (load_file(run.student / "model.safetensors") for run in (parts, whole))
    assert mine.keys() == its.keys()
    for name, value in its.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=apart)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_a_part_each_learn_what_one_with_all_of_it_does(name, shared, students, tmp_path):
    """The same gradients are added up, and the norm by which they are clipped in another order: that leaves
    some 1e-7 of float32 in each step, which 49 steps enlarge. In bfloat16 the norms' weights are rounded too,
    to 3 digits."""
    torch.set_num_threads(1)
    parts = RunFolder(shared / name)
    assert (parts.root / "said-0").read_text() == (parts.root / "said-1").read_text() == "done"
    whole = alone(made(tmp_path, name), students, name)
    check_alike(parts, whole, APART.get(name, 1e-5))
    model = AutoModelForCausalLM.from_pretrained(parts.student)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.tie_word_embeddings is (name != "untied")


@pytest.mark.parametrize("name", ["sequence", "untied"])
def test_each_process_holds_half_of_the_weights_and_of_the_optimisers_state(name, shared, students):
    both = [json.loads((shared / name / f"held-{number}").read_text()) for number in (0, 1)]
    model = AutoModelForCausalLM.from_pretrained(students / ("untied" if name == "untied" else "tied"))
    weights = 4 * sum(value.numel() for value in model.parameters())
    assert sum(held for held, _ in both) == weights
    for held, state in both:
        assert 0.45 < held / weights < 0.55, "of 15 rows one process has 8"
        assert 0.45 < state / (2 * weights) < 0.55, "Adam has two moments"


def test_one_that_was_stopped_goes_on_to_the_very_weights(shared):
    """Those of its best step, which are not its last."""
    measured = [row["held_out"] for row in losses(RunFolder(shared / "patient")) if "held_out" in row]
    assert min(measured) < measured[-1]
    assert weights(RunFolder(shared / "resumed")) == weights(RunFolder(shared / "patient"))
    assert [row["loss"] for row in losses(RunFolder(shared / "resumed"))] == [
        row["loss"] for row in losses(RunFolder(shared / "patient"))
    ]


def test_what_two_processes_began_one_goes_on_with(shared, students):
    torch.set_num_threads(1)
    run = RunFolder(shared / "by one")
    assert "stopped at step 7" in (run.root / "said-0").read_text()
    check_alike(alone(run, students, "patient"), RunFolder(shared / "patient"), APART["patient"])


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other_with_a_word_and_both_go_on(students, shared, tmp_path):
    made(tmp_path, "killed")
    settings = {**CASES["sequence"], "checkpoint_seconds": 4}
    killed = case(tmp_path, students, "killed", settings, strike=(1, 6, signal.SIGKILL))
    first, second = launch([killed], tmp_path, launcher=False)
    assert second.wait(300) == -signal.SIGKILL
    assert first.wait(300) == 0
    said = (tmp_path / "killed" / "said-0").read_text()
    assert said.startswith("ModelError: another process of this training is gone")
    assert sorted(RunFolder(tmp_path / "killed").checkpoints.glob("*/step-*"))
    launched([case(tmp_path, students, "killed", settings)], tmp_path)
    assert weights(RunFolder(tmp_path / "killed")) == weights(RunFolder(shared / "sequence"))


@pytest.mark.parametrize(
    ("settings", "student", "words"),
    [
        ({"optimiser": "muon"}, {}, "whole matrices"),
        ({"objective": "on_policy", "distil": {"online": True}}, {}, "one token after another"),
        ({"preference": {}}, {}, "learned by one process"),
        ({}, {"lora": {"rank": 4}}, "student.lora"),
    ],
)
def test_what_cannot_be_in_parts_is_refused(settings, student, words):
    make_recipe("folder", settings, **student)
    with pytest.raises(UsageError) as caught:
        make_recipe("folder", {**settings, "shard": True}, **student)
    assert "shard` does not go with" in caught.value.why
    assert words in caught.value.why
