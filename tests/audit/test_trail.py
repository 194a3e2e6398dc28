"""What a release rests on: whose answers, by whose leave, and whether they were there before the training."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from provider import answer
from resealing import seal_again
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.audit import verify
from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.disclosure import disclose, disclosed
from stillhouse.ledger.manifest import digests
from stillhouse.ledger.quarantine import recall
from stillhouse.release import release

pytestmark = pytest.mark.usefixtures("one_thread")


async def digit(body, number):
    return answer(body["messages"][-1]["content"].split()[1])


def failures(done):
    return {check.name: check.detail for check in done.checks if not check.ok}


def test_a_student_of_a_folder_verifies_and_tells_the_folders_name_alone(recipe_of, workspace, tmp_path):
    """Leaves name such a teacher by its folder, older ones by the whole path."""
    teacher = tiny_model(tmp_path / "secret" / "taught")
    recipe = recipe_of(tmp_path, {"model": str(teacher)}, 30, collect={"concurrency": 4, "max_tokens": 4})
    done = verify(pipeline.run(recipe, workspace).run.release)
    assert not failures(done)
    lines = {check.name: check.detail for check in done.checks}
    assert lines["teachers"] == "taught 100.0% of the rows"


def test_what_was_recalled_and_dropped_does_not_keep_the_rest_from_its_release(
    recipe_of, workspace, provider, tmp_path
):
    server = {"model": "m", "endpoint": provider(digit).url, "provider": "somewhere"}
    few, more = (recipe_of(tmp_path, server, 50, prompts=_prompts(tmp_path, count)) for count in (20, 40))
    pipeline.run(few, workspace, stages=["collect"])
    workspace.operator.write_text('territory = "DE"\n')  # so that the rest is asked for by another decision
    trained = pipeline.run(more, workspace, stages=["collect", "curate", "train", "evaluate"]).run
    with Ledger.open(workspace) as ledger:
        targets = [leaf.index for leaf in ledger.leaves("decision") if leaf.body["use"] == "train_target"]
        recall(ledger, targets[:1], "a test")
        with pytest.raises(GateRefused, match="recalled"):  # the student of before learned from them
            release(trained, more, ledger, targets[1:], datetime.now(UTC))
    done = verify(pipeline.run(more, workspace).run.release)
    assert not failures(done)
    assert trained.release.is_dir()


def _prompts(folder, count):
    return {"source": str(folder / "prompts.jsonl"), "count": count}


@pytest.mark.parametrize("of", ["a transform of their own", "the transform of the training"])
def test_rows_that_the_maker_recorded_after_the_training_are_found(made, tmp_path, of):
    """Released as if they had been trained on, with everything else as the maker alone can write it."""
    folder = Path(shutil.copytree(made.release, tmp_path / "forged"))
    proofs = folder / "provenance"
    before = {leaf.index: leaf for leaf in disclosed(proofs)}
    body = next(leaf.body for leaf in before.values() if leaf.kind == "release")
    path = proofs / "rows.parquet"
    first = pq.read_table(path).slice(0, 2)
    with Ledger.open(made.workspace) as ledger:
        transform = body["transform"]
        if of == "a transform of their own":
            transform = ledger.append("transform", {"what": "never trained on"})
        leaves = [
            ledger.append("row", {"transform": transform, "exchanges": row["exchanges"]})
            for row in first.to_pylist()
        ]
        listed = [{**row, "leaf": leaf} for row, leaf in zip(first.to_pylist(), leaves, strict=True)]
        pq.write_table(pa.Table.from_pylist(listed, schema=first.schema), path)
        teachers = json.loads((proofs / "teachers.json").read_bytes())
        (proofs / "teachers.json").write_text(json.dumps([{**teachers[0], "rows": 2}]))
        for name in ("model.sig", "MANIFEST", "provenance/checkpoint", "provenance/public-key.pem"):
            (folder / name).unlink()
        (proofs / "leaves.jsonl.gz").unlink()
        shutil.rmtree(proofs / "tile")
        forged = ledger.append("release", {**body, "rows": 2, "files": digests(folder)})
        shown = {index for index, leaf in before.items() if leaf.kind not in ("row", "release")}
        disclose(ledger, proofs, {*shown, transform, *leaves, forged}, ledger.checkpoint())
    seal_again(folder, made.workspace, body["name"])
    assert set(failures(verify(folder))) == {"rows"}
    assert failures(verify(made.release)) == {}
