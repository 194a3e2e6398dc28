"""A run whose teacher reads the training rows at its endpoint: the plan, the bill, and what erasing finds."""

import json

import pyarrow.parquet as pq
import pytest
from tiny import TEMPLATE, tiny_model

from stillhouse import pipeline
from stillhouse.cli.targets import info
from stillhouse.ledger import Ledger
from stillhouse.ledger.erasure import erase
from stillhouse.ledger.quarantine import recall
from stillhouse.ledger.subject import Subject
from stillhouse.models.serve import background
from stillhouse.recipe import parse_recipe
from stillhouse.workspace import read_marker

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = ["collect", "curate", "train"]


@pytest.fixture
def recipe(tmp_path):
    model = tiny_model(tmp_path / "model", template=TEMPLATE, max_position_embeddings=128)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}", "id": f"p{n}"}) + "\n" for n in range(20)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    price = {"input": 1.0, "output": 1.0}

    def make(url, **distil):
        return parse_recipe(
            {
                "run": {"name": "t", "seed": 3},
                "teacher": {
                    "model": "model",
                    "endpoint": url,
                    "provider": "here",
                    "terms": terms,
                    "price": price,
                },
                "prompts": {"source": str(prompts)},
                "collect": {"max_tokens": 12, "temperature": 1.0},
                "curate": {"truncated": False, "repetitive": False, "near_duplicates": 0.0},
                "student": {"init": str(model)},
                "train": {
                    "objective": "distil",
                    "distil": {"tokenizer": str(model), **distil},
                    "epochs": 1,
                },
                "evaluate": {"held_out": 0.2},
            }
        )

    return make


def test_own_text_of_further_students_is_in_what_is_read_at_most(recipe, workspace):
    def to_read(seeds, objective):
        wanted = recipe("https://teacher.example/v1", head=8, draws=0)
        train = wanted.train.model_copy(update={"objective": objective, "epochs": 2.0})
        evaluate = wanted.evaluate.model_copy(update={"seeds": seeds, "hard_labels": True})
        wanted = wanted.model_copy(update={"train": train, "evaluate": evaluate})
        with Ledger.open(workspace) as ledger:
            planned = pipeline.plan(wanted, workspace, ledger)
        return planned.to_read / len(planned.prompts.train)

    assert to_read(1, "distil") == to_read(3, "distil") == 1, "a row is read once for all of them"
    assert to_read(1, "on_policy") == 1.5, "half of the second epoch is own text"
    assert to_read(3, "on_policy") == 1 + 3 * 0.5, "who learns references writes nothing"


def test_a_run_pays_for_each_reading_once_and_erasing_names_it(tmp_path, workspace, recipe):
    with background(str(tmp_path / "model"), tmp_path / "server.log") as url:
        wanted = recipe(url, head=8, draws=0)
        with Ledger.open(workspace) as ledger:
            planned = pipeline.plan(wanted, workspace, ledger)
        done = pipeline.run(wanted, workspace, stages=STAGES)
        told = read_marker(done.run, "train")["result"]
        rows = pq.read_table(done.run.readings).to_pylist()
        assert planned.to_read == len(planned.prompts.train) >= len(rows) > 10
        assert planned.cost.high > 0
        assert told["readings"]["answers"] == len({row["reading"] for row in rows})
        assert told["readings"]["cost"] > 0
        with Ledger.open(workspace) as ledger:
            attempts = ledger.attempts()
        # A student that starts from other weights learns from what was read already
        again = wanted.model_copy(update={"train": wanted.train.model_copy(update={"learning_rate": 0.01})})
        other = pipeline.run(again, workspace, stages=STAGES)
        assert other.run != done.run
        assert "train" not in other.skipped
        assert set(STAGES) <= set(pipeline.run(wanted, workspace, stages=STAGES).skipped)
        with Ledger.open(workspace) as ledger:
            assert ledger.attempts() == attempts, "somebody was asked twice"
    found, text = info(workspace, done.run)
    (who,) = found["teachers"]
    assert who["binding"]["engine"] == "here"
    assert who["binding"]["head"] == 9
    assert found["rows"] == len(rows)
    assert "the 9 likeliest and the tail" in text
    with Ledger.open(workspace) as ledger:
        erased = erase(ledger, Subject(leaves=(int(rows[0]["row"]),)), "request of the person")
        assert rows[0]["reading"] in erased.leaves
        assert rows[0]["row"] not in {row["row"] for row in pq.read_table(done.run.readings).to_pylist()}
        other = Subject(leaves=(rows[1]["reading"],))
        assert erase(ledger, other, "request of the person").shards, "targets were made from it"


def test_nothing_is_learned_from_readings_that_were_recalled(tmp_path, workspace, recipe):
    with background(str(tmp_path / "model"), tmp_path / "server.log") as url:
        wanted = recipe(url, head=8, draws=0)
        done = pipeline.run(wanted, workspace, stages=STAGES)
        rows = pq.read_table(done.run.readings).to_pylist()
        some = {row["reading"] for row in rows[:5]}
        gone = sum(row["reading"] in some for row in rows)
        # As if some had been read under an earlier decision: these leaves alone name it.
        with Ledger.open(workspace) as ledger:
            decision = ledger.leaf(rows[0]["reading"]).body["decision"]
            earlier = ledger.append("decision", ledger.leaf(decision).body | {"on": "2026-01-03"})
            for leaf in some:
                again = ledger.leaf(leaf).body
                attempt = ledger.begin(again["key"], "earlier", "p", "model", 0, decision=earlier).result()
                body = {**again, "attempt": attempt, "decision": earlier}
                contents = {name: text for name, text in ledger.contents(leaf).items() if text is not None}
                ledger.answer(attempt, body, contents, 0.0).result()
            recall(ledger, [earlier], "withdrawn")
        again = pipeline.run(wanted, workspace, stages=STAGES)
        assert "train" not in again.skipped
        (notice,) = read_marker(again.run, "train")["result"]["notices"]
        assert f"{gone} of {len(rows)} rows: {gone} recalled" in notice
        found, _ = info(workspace, again.run)
        assert found["rows"] == len(rows) - gone
        assert "train" in pipeline.run(wanted, workspace, stages=STAGES).skipped
        with Ledger.open(workspace) as ledger:
            recall(ledger, [earlier], "a mistake", lift=True)
        assert "train" not in pipeline.run(wanted, workspace, stages=STAGES).skipped
        assert info(workspace, again.run)[0]["rows"] == len(rows)


def test_whole_distributions_say_what_they_take(tmp_path, workspace, recipe):
    with background(str(tmp_path / "model"), None, "--max-logprobs", "-1") as url:
        run = pipeline.run(recipe(url, keep="all"), workspace, stages=STAGES).run
    found, text = info(workspace, run)
    (who,) = found["teachers"]
    size = who["binding"]["vocabulary"]
    assert 4 * size < found["bytes_per_token"] < 4 * size + 100
    assert found["kept"] == pytest.approx(1.0)
    assert "whole distributions" in text
