"""Rejection sampling from a real server to the report: several draws, verified, the best kept."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from provider import answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.report import write_report
from stillhouse.workspace import Workspace, read_marker


async def sums(body: dict, number: int) -> web.Response:
    """Right in two draws of three, at two lengths; no draws of one prompt are the same."""
    left, right = map(int, body["messages"][-1]["content"].removeprefix("What is ").rstrip("?").split(" + "))
    wrong = number % 3 == 0
    words = "Let me see. " * (number % 4)
    return answer(f"{words}Answer: {left + right + wrong}")


@pytest.fixture
def settings(tmp_path: Path):
    rows = [
        {"id": f"p{i}", "prompt": f"What is {i} + {i * 3}?", "reference": str(i * 4), "scorer": "numeric"}
        for i in range(40)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    student = tiny_model(tmp_path / "student")

    def make(url: str, **curating: object) -> Recipe:
        terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
        return parse_recipe(
            {
                "run": {"name": "t", "seed": 3},
                "teacher": {"model": "m", "endpoint": url, "provider": "somewhere", "terms": terms},
                "prompts": {"source": str(tmp_path / "prompts.jsonl")},
                "collect": {"samples": 3, "temperature": 1.0, "max_tokens": 64},
                "curate": curating,
                "student": {"init": str(student)},
                "evaluate": {"held_out": 0.2},
            }
        )

    return make


def test_the_shortest_right_draw_is_kept_and_the_yield_reported(provider, workspace: Workspace, settings):
    server = provider(sums)
    recipe = settings(server.url, verify="all", draws="shortest")
    stages = ("collect", "curate")
    run = pipeline.run(recipe, workspace, stages=stages).run
    marker = read_marker(run, "curate")
    assert marker is not None
    result = marker["result"]
    samples = pq.read_table(run.samples).to_pylist()
    prompts = {sample["id"].split("#")[0] for sample in samples}
    assert len(samples) == len(prompts) == result["draws"]["prompts"] > 20
    for sample in samples:
        assert sample["completion"].endswith(f"Answer: {int(sample['id'][1:].split('#')[0]) * 4}")
    assert result["rows"] == result["kept"] + sum(result["reasons"].values())
    assert result["reasons"]["wrong answer"] == sum(
        step["dropped"] for step in result["funnel"] if step["filter"] == "verified"
    )
    assert "What each filter took out" in write_report(run).read_text()
    assert pipeline.run(recipe, workspace, stages=stages).skipped == stages
    asked = len(server.bodies)
    other = pipeline.run(settings(server.url, verify="all", draws="agreed"), workspace, stages=stages).run
    assert len(server.bodies) == asked  # the answers were paid for already
    assert pq.read_metadata(other.samples).num_rows == len(samples)


def test_a_filter_that_is_missing_stops_the_run_before_anybody_is_asked(
    provider, workspace: Workspace, settings
):
    server = provider(sums)
    with pytest.raises(UsageError, match="no filter named"):
        pipeline.run(settings(server.url, filters=["mine"]), workspace)
    assert server.bodies == []
