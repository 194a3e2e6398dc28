"""Several answers to each prompt, from a real server to the student that learned them all."""

import json

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from provider import answer
from tiny import TEMPLATE, tiny_model

from stillhouse import pipeline
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.models.local import load_model
from stillhouse.recipe import parse_recipe
from stillhouse.train.rows import read_rows, split_held_out
from stillhouse.workspace import read_marker

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWS, PROMPTS = 4, 12


async def varied(body: dict, number: int) -> web.Response:
    """No two answers to a prompt are the same, as from a teacher at a temperature above 0."""
    return answer(f"answer {number} to {body['messages'][-1]['content']}")


def make_recipe(tmp_path, url: str, **curating: object):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}", "id": f"p{n}"}) + "\n" for n in range(16)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    return parse_recipe(
        {
            "run": {"name": "t", "seed": 3},
            "teacher": {"model": "m", "endpoint": url, "provider": "somewhere", "terms": terms},
            "prompts": {"source": str(prompts)},
            "collect": {"samples": DRAWS, "temperature": 1.0},
            "curate": {"near_duplicates": 0.0, **curating},
            "student": {"init": str(tmp_path / "student")},
            "train": {"epochs": 1, "held_out": 0.2, "dtype": "float32"},
            "evaluate": {"held_out": 0.25},
        }
    )


def test_every_answer_is_trained_on_and_those_to_one_prompt_stay_together(provider, workspace, tmp_path):
    tiny_model(tmp_path / "student", template=TEMPLATE, max_position_embeddings=128)
    recipe = make_recipe(tmp_path, provider(varied).url)
    run = pipeline.run(recipe, workspace, stages=["collect", "curate", "train"]).run
    samples = pq.read_table(run.samples).to_pylist()
    asked = {sample["id"].split("#")[0] for sample in samples}
    assert len({(s["id"].split("#")[0], s["completion"]) for s in samples}) == DRAWS * len(asked)
    marker = read_marker(run, "train")
    assert marker is not None
    told = marker["result"]
    assert told["rows"] + told["rows_held_out"] == DRAWS * len(asked), "none is passed over"
    assert told["rows_held_out"] % DRAWS == 0
    assert told["rows_held_out"] > 0
    rows, left_out = read_rows(run.samples, load_model(str(tmp_path / "student"), "float32"), 1024)
    assert left_out == {}
    learnt, held_out = split_held_out(rows, recipe.train.held_out, recipe.run.seed)
    for one in (learnt, held_out):
        spelt = [bytes(row.ids[: row.start].tolist()) for row in one]
        assert {spelt.count(prompt) for prompt in spelt} == {DRAWS}, "a prompt is learned or held out"


def test_curate_may_choose_among_the_answers_that_are_trained_on(provider, workspace, tmp_path):
    tiny_model(tmp_path / "student", template=TEMPLATE, max_position_embeddings=128)
    recipe = make_recipe(tmp_path, provider(varied).url, draws="shortest", draws_kept=2)
    run = pipeline.run(recipe, workspace, stages=["collect", "curate", "train"]).run
    curated, trained = (read_marker(run, stage) for stage in ("curate", "train"))
    assert curated is not None
    assert trained is not None
    prompts = curated["result"]["draws"]["prompts"]
    assert curated["result"]["reasons"] == {"another draw": (DRAWS - 2) * prompts}
    assert trained["result"]["rows"] + trained["result"]["rows_held_out"] == 2 * prompts


async def guessed(body: dict, number: int) -> web.Response:
    """Right in some draws and wrong in others, as a teacher near the edge of what it can do."""
    asked = int(body["messages"][-1]["content"].removeprefix("say "))
    return answer(f"{'So: ' * (number % 5)}{asked + number % 2}")


def test_right_and_wrong_answers_become_pairs_for_a_real_student(provider, workspace, tmp_path):
    pytest.importorskip("trl")
    recipe = make_recipe(tmp_path, provider(guessed).url, verify="all", duplicates=False)
    tree = recipe.model_dump(mode="json")
    tree["prompts"]["scorer"] = "numeric"
    tree["student"]["init"] = "embedded:base"
    tree["train"]["preference"] = {"pairs": "answers", "epochs": 2, "learning_rate": 1e-4}
    rows = [{"prompt": f"say {n}", "id": f"p{n}", "reference": str(n)} for n in range(16)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stages = ["collect", "curate", "train"]
    run = pipeline.run(parse_recipe(tree), workspace, stages=stages).run
    dropped = pq.read_table(run.dropped).to_pylist()
    assert {row["reason"] for row in dropped} == {"wrong answer"}
    marker = read_marker(run, "train")
    assert marker is not None
    told = marker["result"]["preference"]
    right = marker["result"]["rows"] + marker["result"]["rows_held_out"]
    assert 8 < told["pairs"] + told["pairs_held_out"] <= min(right, len(dropped))
    assert told["loss"] < 0.693
    with Ledger.open(workspace) as ledger:
        (leaf,) = ledger.leaves("train_run")
        assert leaf.body["pairs"] == told["digest"], "what was rejected was trained on as well"
    assert pipeline.run(parse_recipe(tree), workspace, stages=stages).skipped == (
        "collect",
        "curate",
        "train",
    )


def test_pairs_that_could_never_be_made_stop_a_recipe(tmp_path):
    tree = make_recipe(tmp_path, "http://127.0.0.1:9/v1").model_dump(mode="json")
    tree["train"]["preference"] = {}
    with pytest.raises(UsageError, match="not usable") as caught:
        parse_recipe(tree)
    assert "curate.verify" in caught.value.why
    tree["curate"]["verify"], tree["collect"]["samples"] = "all", 1
    with pytest.raises(UsageError, match="not usable") as caught:
        parse_recipe(tree)
    assert "collect.samples" in caught.value.why
    tree["train"]["preference"] = {"pairs": "own"}
    assert parse_recipe(tree).train.preference is not None
