"""What a teacher thinks aloud is kept beside its answer, and never judged for it."""

import json

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from curating import balances, row, through

from stillhouse import pipeline
from stillhouse.errors import UsageError
from stillhouse.recipe import parse_recipe
from stillhouse.workspace import read_marker

THINK = "<think>(.*?)</think>"


def test_a_rationale_in_the_answer_is_taken_out_before_anything_judges_it(workspace):
    known = [{"id": f"p{n}", "messages": [], "reference": str(n * n), "scorer": "exact"} for n in range(1, 5)]
    rows = [
        row(1, "<think>one\ntimes one</think>\n\n1"),
        row(2, "<think>As an AI language model, I\nwould say 5</think>5"),
        row(3, "9", reasoning="three squared"),
        row(4, "16"),
        row(5, "<think>nothing comes of it</think>  "),
    ]
    done, kept, dropped = through(rows, workspace, known, rationale=THINK, verify="where_possible")
    assert balances(done)
    assert [(one["completion"], one["rationale"]) for one in kept] == [
        ("1", "one\ntimes one"),
        ("9", "three squared"),
        ("16", None),
    ]
    assert {one["completion"]: one["reason"] for one in dropped} == {"5": "wrong answer", "": "empty"}
    (step,) = [step for step in done.funnel if step["filter"] == "rationale"]
    assert step["marks"] == {"given apart": 1, "in the answer": 3, "none": 1}
    assert step["dropped"] == 0


def test_without_a_pattern_the_text_stays_and_what_the_server_gave_apart_is_kept(workspace):
    rows = [row(1, "<think>why</think> yes"), row(2, "no", reasoning="as it is late")]
    _, kept, _ = through(rows, workspace)
    assert [(one["completion"], one["rationale"]) for one in kept] == [
        ("<think>why</think> yes", None),
        ("no", "as it is late"),
    ]


def test_both_ways_at_once_and_a_pattern_without_a_group(workspace):
    rows = [row(1, "Because: it rains. Yes.", reasoning="first thoughts")]
    _, kept, _ = through(rows, workspace, rationale=r"Because: [^.]*\.")
    assert kept[0]["completion"] == "Yes."
    assert kept[0]["rationale"] == "first thoughts\nBecause: it rains."
    with pytest.raises(UsageError, match="no regular expression"):
        through(rows, workspace, rationale="(")


@pytest.mark.parametrize("personal", ["redact", "drop", "count"])
def test_personal_data_is_looked_for_in_rationales_as_well(workspace, personal):
    rows = [row(1, "yes", reasoning="anna.berg@gmail.com wrote so"), row(2, "no")]
    done, kept, dropped = through(rows, workspace, personal=personal)
    said = [one["rationale"] for one in kept]
    assert (
        said
        == {
            "redact": ["[email] wrote so", None],
            "drop": [None],
            "count": ["anna.berg@gmail.com wrote so", None],
        }[personal]
    )
    assert [one["reason"] for one in dropped] == (["personal data: email"] if personal == "drop" else [])
    assert balances(done)


async def thinking(body: dict, number: int) -> web.Response:
    """Every other answer has its reasoning in a field of its own, as vLLM and DeepSeek give it."""
    asked = int(body["messages"][-1]["content"].removeprefix("double "))
    message = {"role": "assistant", "content": f"{2 * asked}", "reasoning_content": f"{asked} and {asked}"}
    if asked % 2:
        message = {"role": "assistant", "content": f"<think>twice {asked}</think>{2 * asked}"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return web.json_response({"id": "x", "model": "m-1", "choices": [choice], "usage": usage})


def test_rationales_come_from_the_server_to_the_student(provider, workspace, tmp_path):
    from tiny import TEMPLATE, tiny_model

    tiny_model(tmp_path / "student", template=TEMPLATE, max_position_embeddings=128)
    asked = [{"prompt": f"double {n}", "reference": str(2 * n), "scorer": "exact"} for n in range(16)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    recipe = parse_recipe(
        {
            "run": {"name": "t", "seed": 3},
            "teacher": {"model": "m", "endpoint": provider(thinking).url, "provider": "x", "terms": terms},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "curate": {"rationale": THINK, "verify": "all", "near_duplicates": 0.0},
            "student": {"init": str(tmp_path / "student")},
            "train": {"epochs": 1, "rationale": {"weight": 0.5}, "held_out": 0.0},
            "evaluate": {"held_out": 0.25},
        }
    )
    run = pipeline.run(recipe, workspace, stages=["collect", "curate", "train"]).run
    samples = pq.read_table(run.samples).to_pylist()
    assert {len(one["completion"]) for one in samples} <= {1, 2}, "the label alone"
    for one in samples:
        number = one["messages"][0]["content"].removeprefix("double ")
        assert one["rationale"] == (f"twice {number}" if int(number) % 2 else f"{number} and {number}")
    marker = read_marker(run, "train")
    assert marker is not None
    assert marker["result"]["rationales"]["rows"] == marker["result"]["rows"] == len(samples) > 8
