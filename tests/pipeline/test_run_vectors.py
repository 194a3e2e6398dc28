"""A run that learns from a teacher's vectors: what `targets info` says of them, and what erasing leaves."""

import json

import pytest
from tiny import TEMPLATE, tiny_model

from stillhouse import pipeline
from stillhouse.cli.targets import info
from stillhouse.errors import LedgerError
from stillhouse.ledger import Ledger
from stillhouse.ledger.erasure import erase
from stillhouse.ledger.subject import Subject
from stillhouse.ledger.targets import open_shard
from stillhouse.recipe import parse_recipe
from stillhouse.workspace import read_marker

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = ["collect", "curate", "train"]
WIDTH = 24


@pytest.fixture
def recipe(tmp_path):
    sizes = {"template": TEMPLATE, "max_position_embeddings": 128}
    teacher = tiny_model(tmp_path / "teacher", width=WIDTH, seed=4, **sizes)
    student = tiny_model(tmp_path / "student", **sizes)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}", "id": f"p{n}"}) + "\n" for n in range(20)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}

    def make(**distil):
        return parse_recipe(
            {
                "run": {"name": "t", "seed": 3},
                "teacher": {"model": str(teacher), "terms": terms},
                "prompts": {"source": str(prompts)},
                "collect": {"max_tokens": 12, "temperature": 1.0},
                "curate": {"truncated": False, "repetitive": False, "near_duplicates": 0.0},
                "student": {"init": str(student)},
                "train": {"objective": "distil", "distil": {"keep": "vectors", **distil}, "epochs": 1},
                "evaluate": {"held_out": 0.2},
            }
        )

    return make


def test_a_run_says_what_its_vectors_take_and_an_erased_answer_leaves_them(workspace, recipe):
    wanted = recipe(vectors="bfloat16")
    run = pipeline.run(wanted, workspace, stages=STAGES).run
    (shard,) = read_marker(run, "train")["result"]["shards"]
    found, text = info(workspace, run)
    (who,) = found["teachers"]
    assert who["shards"] == [shard]
    assert (who["binding"]["width"], who["binding"]["dtype"]) == (WIDTH, "bfloat16")
    assert 2 * WIDTH < found["bytes_per_token"] < 2 * WIDTH + 40
    assert (found["kept"], found["bias"], found["variance"]) == (1.0, 0.0, 0.0)
    for words in ("variance   0.0000", "at most 0.0000", f"vectors of {WIDTH} numbers in bfloat16"):
        assert words in text
    again = wanted.train.distil.model_copy(update={"temperature": 2.0, "divergence": "reverse_kl"})
    changed = wanted.model_copy(update={"train": wanted.train.model_copy(update={"distil": again})})
    other = pipeline.run(changed, workspace, stages=STAGES).run
    assert read_marker(other, "train")["result"]["shards"] == [shard]
    assert list(workspace.targets.iterdir()) == [workspace.targets / f"{shard}.targets"]
    leaf = int(open_shard(workspace.targets / f"{shard}.targets").sample_ids[2])
    with Ledger.open(workspace) as ledger:
        erased = erase(ledger, Subject(leaves=(leaf,)), "request of the person")
    assert list(erased.shards) == [shard]
    (left,) = workspace.targets.iterdir()
    assert str(leaf) not in open_shard(left).sample_ids
    with pytest.raises(LedgerError, match="there is no shard"):
        info(workspace, run)
    pipeline.run(wanted, workspace, stages=STAGES)
    assert info(workspace, run)[0]["rows"] == found["rows"] - 1
