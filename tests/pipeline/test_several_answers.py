"""Several answers to each prompt, from a real server to the student that learned them all."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from aiohttp import web
from provider import answer
from tiny import TEMPLATE, tiny_model

from stillhouse import pipeline
from stillhouse.models.local import load_model
from stillhouse.recipe import parse_recipe
from stillhouse.train.rows import read_rows, split_held_out
from stillhouse.workspace import read_marker

DRAWS, PROMPTS = 4, 12


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
