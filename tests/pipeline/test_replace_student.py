"""Which student is at work: put there by a comparison, taken back by one command, each step in the ledger."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny import TEMPLATE, tiny_model

from stillhouse.cascade.calibration import read
from stillhouse.collect.spool import write_prompts
from stillhouse.errors import UsageError
from stillhouse.evaluate.predictions import Prediction, write_predictions
from stillhouse.ledger import Ledger
from stillhouse.models import weights_digest
from stillhouse.pipeline.cascading import told_answers
from stillhouse.pipeline.replacing import replace, roll_back, ruling_of
from stillhouse.recipe import Recipe
from stillhouse.records import Message, Prompt
from stillhouse.workspace import RunFolder, init_workspace, write_json

ROWS, TOKENS, LEARNED = 130, 3, 10
PROMISE = 0.2, 0.05, False
RECIPE = {
    "run": {"name": "small"},
    "teacher": {"model": "embedded:desk"},
    "prompts": {"source": "embedded:desk"},
    "student": {"init": "embedded:base"},
    "collect": {"max_tokens": TOKENS},
}


def prompt(kind, n):
    words = f"{kind} {n}: a {'good' if n % 2 else 'bad'} day"
    return Prompt(f"{kind}-{n:04}", (Message("user", words),), "one", "", None, None)


def made_run(workspace, name, student, right, learned="train"):
    """A run that was evaluated; by its teacher `right` is what there is to say."""
    run = workspace.run(name, name * 8)
    run.root.mkdir(parents=True)
    write_json(run.recipe, Recipe.model_validate(RECIPE).model_dump(mode="json"))
    shutil.copytree(student, run.student)
    asked = [prompt("test", n) for n in range(ROWS)]
    rows = [
        Prediction(one.id, one.family, "", "teacher", text, None, "", 5, 3, "stop")
        for one, text in zip(asked, right, strict=True)
    ]
    write_prompts(run.prompts, [prompt(learned, n) for n in range(LEARNED)], asked)
    write_predictions(run.predictions, rows)
    return run


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Three students that answer differently: where `b` is the teacher, the others are never right."""
    folder = tmp_path_factory.mktemp("students")
    found = {
        name: tiny_model(folder / name, seed=seed, template=TEMPLATE, max_position_embeddings=128)
        for seed, name in enumerate("abc")
    }
    asked = [prompt("test", n) for n in range(ROWS)]
    said = {
        name: [told.text for told in told_answers(str(path), asked, TOKENS)] for name, path in found.items()
    }
    assert all(a != b for a, b in zip(said["a"], said["b"], strict=True))
    return found, said


@pytest.fixture
def house(tmp_path, students):
    workspace = init_workspace(tmp_path)
    found, said = students
    runs = {name: made_run(workspace, name, found[name], said["b"]) for name in "abc"}
    with Ledger.open(workspace) as ledger:
        yield workspace, ledger, runs


def steps(ledger):
    return [(leaf.body["what"], leaf.body["run"][0]) for leaf in ledger.leaves("cascade")]


def test_a_better_student_is_put_to_work_with_its_own_calibration_and_taken_back(house):
    workspace, ledger, runs = house
    link = workspace.cascade("desk")
    first = replace(workspace, ledger, "desk", runs["a"], 0.01, PROMISE)
    assert (first.replaced, first.compared, first.before) == (True, None, None)
    assert read((link / "cascade.json").read_bytes(), "it").student == weights_digest(runs["a"].student)
    second = replace(workspace, ledger, "desk", runs["b"], 0.01, PROMISE)
    assert second.replaced
    assert (second.compared.new, second.compared.old, second.compared.n) == (1.0, 0.0, ROWS)
    assert second.compared.low > 0.9
    assert second.figures["promise"]["threshold"] is not None
    assert (link / "student").resolve() == runs["b"].student
    assert read((link / "cascade.json").read_bytes(), "it").student == weights_digest(runs["b"].student)
    back = roll_back(workspace, ledger, "desk", "it was slow")
    assert (back.at_work, back.before) == (runs["a"].root.name, runs["b"].root.name)
    assert (link / "student").resolve() == runs["a"].student
    assert steps(ledger) == [
        ("calibrated", "a"),
        ("put to work", "a"),
        ("compared", "b"),
        ("calibrated", "b"),
        ("put to work", "b"),
        ("rolled back", "a"),
    ]
    with pytest.raises(UsageError, match="nothing was at work in desk before"):
        roll_back(workspace, ledger, "desk", "")
    assert ledger.verify().ok


def test_a_student_that_is_worse_or_not_shown_to_be_no_worse_stays_out(house):
    workspace, ledger, runs = house
    replace(workspace, ledger, "desk", runs["b"], 0.01, PROMISE)
    worse = replace(workspace, ledger, "desk", runs["a"], 0.01, PROMISE)
    assert (worse.replaced, worse.compared.ruling, worse.why) == (False, "worse", "it is worse")
    again = replace(workspace, ledger, "desk", runs["a"], 0.02, PROMISE)
    assert again.compared.before == (0.01,)
    assert workspace.cascade("desk").resolve() == runs["b"].root
    assert not runs["a"].cascade.exists()
    with pytest.raises(UsageError, match="at work in desk already"):
        replace(workspace, ledger, "desk", runs["b"], 0.01, PROMISE)
    elsewhere = RunFolder(workspace.root / "b-bbbbbbbb")
    shutil.copytree(runs["b"].root, elsewhere.root)
    with pytest.raises(UsageError, match="no run of this workspace"):
        replace(workspace, ledger, "desk", elsewhere, 0.01, PROMISE)


def test_a_student_no_worse_whose_calibration_keeps_nothing_stays_out(house):
    workspace, ledger, runs = house
    replace(workspace, ledger, "desk", runs["a"], 0.01, PROMISE)
    strict = 0.03, 0.05, False  # for which there are too few rows
    done = replace(workspace, ledger, "desk", runs["c"], 0.05, strict)
    assert done.compared.ruling == "not worse"  # both are always wrong
    assert (done.replaced, done.at_work) == (False, runs["a"].root.name)
    assert "promise nothing" in done.why
    assert steps(ledger)[-1] == ("calibrated", "c")


def test_what_either_student_learned_from_is_not_what_they_are_compared_by(house, students):
    workspace, ledger, _ = house
    found, said = students
    old = made_run(workspace, "d", found["a"], said["b"], learned="test")
    replace(workspace, ledger, "desk", old, 0.01, PROMISE)
    done = replace(workspace, ledger, "desk", made_run(workspace, "e", found["b"], said["b"]), 0.01, PROMISE)
    assert (done.compared.n, done.compared.left_out) == (ROWS - LEARNED, LEARNED)


def test_a_link_that_a_kill_left_behind_is_moved_to_what_the_ledger_says(house):
    workspace, ledger, runs = house
    replace(workspace, ledger, "desk", runs["a"], 0.01, PROMISE)
    replace(workspace, ledger, "desk", runs["b"], 0.01, PROMISE)
    link = workspace.cascade("desk")
    link.unlink()
    link.symlink_to(os.path.relpath(runs["a"].root, link.parent))
    with pytest.raises(UsageError, match="already"):
        replace(workspace, ledger, "desk", runs["b"], 0.01, PROMISE)
    assert link.resolve() == runs["b"].root


def test_what_was_changed_since_is_not_taken_back(house):
    workspace, ledger, runs = house
    replace(workspace, ledger, "desk", runs["a"], 0.01, PROMISE)
    replace(workspace, ledger, "desk", runs["b"], 0.01, PROMISE)
    runs["a"].cascade.write_text("{}")
    with pytest.raises(UsageError, match="is not what was at work"):
        roll_back(workspace, ledger, "desk", "")
    assert workspace.cascade("desk").resolve() == runs["b"].root
    with pytest.raises(UsageError, match="names no cascade"):
        roll_back(workspace, ledger, "../desk", "")
    with pytest.raises(UsageError, match="there is no cascade other"):
        roll_back(workspace, ledger, "other", "")


@pytest.mark.parametrize(
    ("low", "high", "ruling"),
    [
        (-0.01, 0.5, "not worse"),
        (-0.011, 0.5, "not decided"),
        (-0.5, -0.011, "worse"),
        (None, None, "not decided"),
    ],
)
def test_the_ruling_is_by_the_ends_of_the_interval(low, high, ruling):
    assert ruling_of(low, high, 0.01) == ruling


@pytest.mark.slow
def test_the_commands_say_what_was_compared_and_what_to_do_next(house):
    workspace, ledger, runs = house

    def stillhouse(*words):
        command = [sys.executable, "-m", "stillhouse.cli", "cascade", *words]
        return subprocess.run(
            command, cwd=workspace.root.parent, capture_output=True, text=True, check=False, timeout=300
        )

    replace(workspace, ledger, "desk", runs["b"], 0.01, PROMISE)
    refused = stillhouse("replace", "desk", "a", "--most", "0.2")
    assert refused.returncode == 1
    assert "margin 1: worse" in refused.stdout
    assert "stays      b-" in refused.stdout
    told = stillhouse("rollback", "desk", "--json")
    assert told.returncode == 2
    assert "nothing was at work in desk before" in json.loads(told.stdout)["error"]["what"]
