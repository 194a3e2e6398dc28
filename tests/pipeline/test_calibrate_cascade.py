"""`stillhouse cascade calibrate`: a real student answers, and a file for the gateway is made."""

import json
import subprocess
import sys

import httpx2 as httpx
import numpy as np
import pytest
from pyarrow import parquet
from tiny import TEMPLATE, tiny_model

from stillhouse.cascade.calibration import read
from stillhouse.cascade.scores import TOP, signals_of, tokens_told
from stillhouse.collect.spool import write_prompts
from stillhouse.errors import UsageError
from stillhouse.evaluate.predictions import Prediction, write_predictions
from stillhouse.models import weights_digest
from stillhouse.models.serve import background
from stillhouse.pipeline.cascading import calibrate_run, told_answers
from stillhouse.recipe import Recipe
from stillhouse.records import Message, Prompt
from stillhouse.workspace import init_workspace, write_json

ROWS = 700
TOKENS = 4


def prompt(n, kind):
    words = f"{kind} {n}: a {'good' if n % 2 else 'bad'} day"
    return Prompt(f"{kind}-{n:04}", (Message("user", words),), "one" if n % 3 else "two", "", "x", "exact")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose teacher is right everywhere and whose student, by the references, on all but a few."""
    workspace = init_workspace(tmp_path_factory.mktemp("cascade"))
    recipe = Recipe.model_validate(
        {
            "run": {"name": "small"},
            "teacher": {"model": "embedded:desk"},
            "prompts": {"source": "embedded:desk"},
            "student": {"init": "embedded:base"},
            "collect": {"max_tokens": TOKENS},
        }
    )
    run = workspace.run("small", "0" * 64)
    run.root.mkdir(parents=True)
    write_json(run.recipe, recipe.model_dump(mode="json"))
    tiny_model(run.student, template=TEMPLATE, max_position_embeddings=128)
    tested = [prompt(n, "test") for n in range(ROWS)]
    said = told_answers(str(run.student), tested, TOKENS)
    asked, rows = [], []
    for n, (one, told) in enumerate(zip(tested, said, strict=True)):
        right = f"other {n}" if n % 100 == 7 else told.text
        asked.append(Prompt(one.id, one.messages, one.family, one.group, right, "exact"))
        rows.append(Prediction(one.id, one.family, "", "teacher", right, 1.0, "", 5, 3, "stop"))
    write_prompts(run.prompts, [prompt(n, "train") for n in range(50)], asked)
    write_predictions(run.predictions, rows)
    return workspace, run


def test_a_file_is_written_that_a_gateway_reads_and_the_curve_beside_it(made):
    _, run = made
    calibration, figures = calibrate_run(run, most=0.05)
    assert read(run.cascade.read_bytes(), "it") == calibration
    assert calibration.student == weights_digest(run.student)
    assert json.loads(run.cascade_curve.read_text()) == figures
    assert figures["n"] + figures["fitted"] == ROWS
    assert ROWS / 4 < figures["fitted"] < ROWS / 2
    assert figures["teacher"] == 1.0
    assert figures["student"] == pytest.approx(0.99, abs=0.005)
    assert figures["lost"] == "regressions"
    assert figures["promise"]["threshold"] is not None
    assert figures["promise"]["deferred"] < 0.2
    points = figures["score"]["points"]
    assert [point["deferred"] for point in points][:: len(points) - 1] == [0.0, 1.0]
    assert points[-1]["score"] == figures["teacher"]
    assert set(figures["families"]) == {"one", "two"}


def test_the_command_says_what_is_promised_and_what_is_not_attainable(made):
    workspace, run = made
    command = [sys.executable, "-m", "stillhouse.cli", "cascade", "calibrate", "small", "--most", "0.001"]
    done = subprocess.run(
        command, cwd=workspace.root.parent, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "not attainable with this calibration set" in done.stdout
    assert str(run.cascade) in done.stdout


def test_where_nothing_is_scored_an_answer_that_differs_is_lost(made, tmp_path):
    _, run = made
    table = parquet.read_table(run.prompts).to_pylist()
    other = init_workspace(tmp_path).run("other", "1" * 64)
    other.root.mkdir(parents=True)
    other.student.symlink_to(run.student)
    other.recipe.write_bytes(run.recipe.read_bytes())
    bare = [
        Prompt(row["id"], tuple(Message(**each) for each in row["messages"]), row["family"])
        for row in table
        if row["split"] == "test"
    ]
    write_prompts(other.prompts, [prompt(n, "train") for n in range(50)], bare)
    rows = [
        Prediction(row["id"], row["family"], "", "teacher", row["reference"], None, "", 5, 3, "stop")
        for row in table
        if row["split"] == "test"
    ]
    write_predictions(other.predictions, rows)
    _, figures = calibrate_run(other, most=0.05)
    assert figures["lost"] == "differences"
    assert figures["student"] == pytest.approx(0.99, abs=0.005)


def test_a_run_without_an_evaluation_is_refused(tmp_path):
    run = init_workspace(tmp_path).run("empty", "2" * 64)
    run.root.mkdir(parents=True)
    with pytest.raises(UsageError, match="not evaluated"):
        calibrate_run(run)


def test_a_served_student_tells_the_same_as_was_calibrated_on(made, tmp_path):
    """What the wire tells of an answer gives the signals that the calibration saw."""
    _, run = made
    one = prompt(3, "test")
    (told,) = told_answers(str(run.student), [one], TOKENS)
    body = {"model": "student", "messages": [{"role": "user", "content": one.messages[0].content}]}
    body |= {"max_tokens": TOKENS, "temperature": 0, "logprobs": True, "top_logprobs": TOP}
    with background(str(run.student), tmp_path / "log") as url:
        said = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()["choices"][0]
    assert said["message"]["content"] == told.text
    assert said["finish_reason"] == told.finish_reason
    heard = signals_of(tokens_told(said), told.text, said["finish_reason"], (0.0, 0.0))
    seen = signals_of(told.tokens, told.text, told.finish_reason, (0.0, 0.0))
    np.testing.assert_allclose(heard, seen, atol=1e-4)
