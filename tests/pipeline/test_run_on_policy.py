"""A run whose student learns from its own text, from the prompts to what the run says of it."""

import json

import pytest
from tiny import TEMPLATE, tiny_model

from stillhouse import pipeline
from stillhouse.recipe import parse_recipe
from stillhouse.train import health
from stillhouse.workspace import read_marker

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_tells_how_its_own_text_was_and_does_not_train_twice(tmp_path, workspace):
    model = tiny_model(tmp_path / "model", template=TEMPLATE, max_position_embeddings=128)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}", "id": f"p{n}"}) + "\n" for n in range(20)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = parse_recipe(
        {
            "run": {"name": "t", "seed": 3},
            "teacher": {"model": str(model), "terms": terms},
            "prompts": {"source": str(prompts)},
            "collect": {"max_tokens": 60, "temperature": 1.0},
            "curate": {"truncated": False, "repetitive": False, "near_duplicates": 0.0},
            "student": {"init": "config", "config": {**small, "max_position_embeddings": 128}},
            "train": {
                "objective": "on_policy",
                "on_policy": {"after": 0.0, "max_tokens": 8},
                "epochs": 2,
                "dtype": "float32",
            },
            "evaluate": {"held_out": 0.2},
        }
    )
    stages = ["collect", "curate", "train"]
    done = pipeline.run(recipe, workspace, stages=stages)
    marker = read_marker(done.run, "train")
    assert marker is not None
    told = marker["result"]
    assert told["own"].keys() == {*health.OF_ROWS, *health.OF_TOKENS, "rows", "tokens"}
    assert told["own"]["truncated"] > health.OFTEN, "an untrained student does not end its answers"
    assert any("cut at the longest length" in notice for notice in done.notices)
    assert len(told["shards"]) == 1, "the rows that it does not write have stored targets"
    assert "train" in pipeline.run(recipe, workspace, stages=stages).skipped
