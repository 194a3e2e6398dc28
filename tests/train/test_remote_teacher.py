"""One lesson, whoever tells it: a teacher that is here, its words in shards, and a server over HTTP."""

import json

import numpy as np
import orjson
import pytest
import torch
from tiny import TEMPLATE, tiny_model
from train.tiny_student import BASE, losses, make_recipe, sums, weights, write_samples

from stillhouse.ask import Limits, Teacher
from stillhouse.ask.scores import Readings
from stillhouse.ledger import Ledger
from stillhouse.models.serve import background
from stillhouse.recipe import parse_recipe
from stillhouse.train import Source, loop, train
from stillhouse.workspace import RunFolder, init_workspace

TEACHER = {**BASE, "width": 48, "seed": 9, "initializer_range": 0.5}
LIMITS = Limits(concurrency=8, timeout=60.0, retries=1)
EXACT = {"dtype": "float32", "epochs": 3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("teachers") / "teacher", template=TEMPLATE, **TEACHER)


@pytest.fixture(scope="module")
def url(teacher, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    with background(str(teacher), log, "--max-logprobs", "-1") as found:
        yield found


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path)) as found:
        yield found


def new_run(tmp_path, name):
    run = RunFolder(tmp_path / name)
    write_samples(run.samples, sums())
    return run


def readings(ledger, url, limits=LIMITS, **teacher):
    asked = Teacher("teacher", "here", "r1", lambda: url, **teacher)
    return Readings(asked, 0, limits, ledger, "t")


def learn(run, student, teacher=None, remote=None, own=None, **settings):
    """`teacher` is a folder that is read here; `remote` is asked."""
    of_train = {key: settings.pop(key) for key in ("epochs", "dtype") if key in settings}
    tree = {"objective": "on_policy" if own else "distil", "distil": settings, **EXACT, **of_train}
    tree |= {"on_policy": own} if own else {}
    recipe = make_recipe(str(student), tree).model_dump(mode="json")
    recipe["teacher"]["endpoint"] = "http://127.0.0.1:9/v1" if remote else None
    source = Source(run.root.parent / "targets", (), "teacher", "r1", remote)
    return train(run, parse_recipe(recipe), teacher_folder=teacher and str(teacher), source=source)


def curve(run):
    return np.array([row["loss"] for row in losses(run)])


def held(run):
    return np.array([row["held_out"] for row in losses(run) if "held_out" in row])


def test_a_teacher_here_one_in_shards_and_one_at_a_server_give_one_curve(
    folder, teacher, url, ledger, tmp_path
):
    along, kept, asked = (new_run(tmp_path, name) for name in ("along", "kept", "asked"))
    learn(along, folder, teacher, online=True)
    learn(kept, folder, teacher, keep="all")
    result = learn(asked, folder, remote=readings(ledger, url), keep="all", tokenizer=str(teacher))
    assert len(curve(along)) > 20
    assert curve(along).max() > 0.5
    print(np.abs(curve(kept) - curve(along)).max(), np.abs(curve(asked) - curve(along)).max())
    for run in (kept, asked):
        assert np.abs(curve(run) - curve(along)).max() <= 1e-5
        assert np.abs(held(run) - held(along)).max() <= 1e-5
    assert result.rows + result.rows_held_out == 48
    assert not result.notices
