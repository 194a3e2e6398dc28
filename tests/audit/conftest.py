"""One real run with its release, and a checkpoint that somebody kept from before it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from provider import answer, providers
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.ledger import Ledger
from stillhouse.ledger.keys import read_public_key
from stillhouse.recipe import parse_recipe
from stillhouse.workspace import Workspace, init_workspace

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Made:
    workspace: Workspace
    release: Path
    key: bytes  # 32, of the maker
    kept: bytes  # the note of a checkpoint from before the release


async def digit(body, number):
    return answer(body["messages"][-1]["content"].split()[1])


def recipe_in(folder, teacher, count=60, **more):
    """A recipe for `count` digits, a tiny student, and a teacher whose terms somebody read."""
    student = tiny_model(folder / "student")
    rows = [
        {"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
        for i in range(count)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(folder / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    tree = {
        "run": {"name": "t", "seed": 3},
        "teacher": {"terms": terms, **teacher},
        "prompts": {"source": str(folder / "prompts.jsonl")},
        "collect": {"concurrency": 4, "max_tokens": 8},
        "student": {"init": str(student)},
        "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
        "evaluate": {"held_out": 0.2, "resamples": 100},
    }
    return parse_recipe({**tree, **more})


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    workspace = init_workspace(folder)
    with providers() as provider:
        recipe = recipe_in(folder, {"model": "m", "endpoint": provider(digit).url, "provider": "somewhere"})
        pipeline.run(recipe, workspace, stages=["collect", "curate", "train", "evaluate"])
        with Ledger.open(workspace) as ledger:
            kept = ledger.checkpoint().note
        done = pipeline.run(recipe, workspace)
    return Made(workspace, done.run.release, read_public_key(workspace), kept)


@pytest.fixture
def recipe_of():
    return recipe_in
