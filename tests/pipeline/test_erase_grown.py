"""A reply that invented prompts is erased from a run that a real growing made."""

import json

import pyarrow.parquet as pq
import pytest
from provider import answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.ledger import Ledger
from stillhouse.ledger.erasure import erase
from stillhouse.ledger.subject import Subject
from stillhouse.recipe import parse_recipe


async def teach(body, number):
    asked = body["messages"][-1]["content"]
    if "JSON array" not in asked:
        return answer("yes")
    mark = body["seed"] * 1000 + len(asked)
    words = "abcde"
    listed = [f"tell {mark + 37 * i} {words[i] * 4} whether item {mark * 7 + i} is his" for i in range(5)]
    return answer(json.dumps(listed))


@pytest.fixture
def recipe(tmp_path):
    rows = [{"prompt": f"say {n} to the quick one", "id": f"p{n}"} for n in range(30)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    student = tiny_model(tmp_path / "student")

    def make(url):
        return parse_recipe(
            {
                "run": {"name": "t"},
                "teacher": {"model": "m", "endpoint": url, "provider": "somewhere", "terms": terms},
                "prompts": {
                    "source": str(tmp_path / "prompts.jsonl"),
                    "grow": {"method": "self_instruct", "count": 12},
                },
                "collect": {"max_tokens": 8},
                "student": {"init": str(student)},
                "evaluate": {"held_out": 0.3},
            }
        )

    return make


def test_invented_prompts_go_with_the_reply_that_brought_them(provider, workspace, recipe):
    server = provider(teach)
    run = pipeline.run(recipe(server.url), workspace, stages=["collect", "curate"]).run
    rows = pq.read_table(run.grown).to_pylist()
    leaf = rows[0]["leaf"]
    texts = [row["text"] for row in rows if row["leaf"] == leaf]
    names = {row["id"] for row in rows if row["leaf"] == leaf and row["id"]}
    answers = {row["leaf"] for row in pq.read_table(run.exchanges).to_pylist() if row["prompt_id"] in names}
    assert names < set(pq.read_table(run.prompts)["id"].to_pylist())
    asked = len(server.bodies)

    with Ledger.open(workspace) as ledger:
        done = erase(ledger, Subject(leaves=(leaf,)), "request of the person")
        assert answers
        assert answers < set(done.leaves)
        assert ledger.verify().ok
    for path in (run.grown, run.prompts, run.exchanges, run.samples, run.dropped):
        held = json.dumps(pq.read_table(path).to_pylist())
        assert not any(text in held for text in texts), path

    again = pipeline.run(recipe(server.url), workspace, stages=["collect", "curate"]).run
    grown = pq.read_table(again.grown).to_pylist()
    assert leaf not in {row["leaf"] for row in grown}
    assert len({row["id"] for row in grown if row["id"]}) == 12  # others were invented in their place
    assert len(server.bodies) > asked
    assert not names & set(pq.read_table(again.prompts)["id"].to_pylist())
