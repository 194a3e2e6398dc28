"""From a served teacher of another tokenizer to a student that learned how likely it held its words."""

import json

import pytest
import torch
from small_models import make_folder
from tiny import TEMPLATE, tiny_model

from stillhouse import pipeline
from stillhouse.cli.show import plan_object, plan_text
from stillhouse.cli.targets import info
from stillhouse.collect.taught import need_taught
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.targets import TargetReader, chunks_of, holds_chunks
from stillhouse.models.local import load_model
from stillhouse.models.serve import background
from stillhouse.recipe import parse_recipe
from stillhouse.train import chunks
from stillhouse.train.capture import capture
from stillhouse.train.rows import read_rows
from stillhouse.workspace import read_marker

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A token for each byte; the letters that the student knows are the likelier ones, so most answers are
    text to both."""
    folder = make_folder(tmp_path_factory.mktemp("models") / "teacher", tie_word_embeddings=False)
    model = load_model(str(folder)).model
    ids = load_model(str(folder)).tokenizer.get_vocab()
    with torch.no_grad():
        kept = [ids["<|end|>"], ids["\u0120"], *(ids[letter] for letter in "abcde123")]
        junk = sorted(set(range(model.config.vocab_size)) - set(kept))
        model.get_output_embeddings().weight[junk] = 0.0
        model.get_output_embeddings().weight[kept] *= 8.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_model(
        tmp_path_factory.mktemp("models") / "student", template=TEMPLATE, max_position_embeddings=256
    )


@pytest.fixture
def recipe(tmp_path, student):
    def make(model, unit="chunk", targets="answers", endpoint=None):
        rows = [{"prompt": f"say {n} please", "id": f"p{n}"} for n in range(30)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "terms.txt").write_text("you may train on the answers")
        terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
        served = {"endpoint": endpoint, "provider": "here"} if endpoint else {}
        return parse_recipe(
            {
                "run": {"name": "t", "seed": 3},
                "teacher": {"model": str(model), "terms": terms, **served},
                "prompts": {"source": str(tmp_path / "prompts.jsonl")},
                "collect": {"max_tokens": 16, "temperature": 1.0, "top_logprobs": 20},
                "curate": {"truncated": False},
                "student": {"init": str(student)},
                "train": {
                    "objective": "distil",
                    "distil": {"unit": unit, "targets": targets},
                    "epochs": 4,
                    "batch_tokens": 256,
                    "learning_rate": 0.005,
                },
                "evaluate": {"held_out": 0.2},
            }
        )

    return make


def test_a_student_learns_from_what_a_server_says_of_its_words(recipe, teacher, student, workspace, tmp_path):
    with background(str(teacher), tmp_path / "server.log") as url:
        wanted = recipe(teacher.name, endpoint=url)
        run = pipeline.run(wanted, workspace, stages=["collect", "curate", "train"]).run
    (taught,) = need_taught(run)
    assert holds_chunks(taught.binding)
    assert taught.tally.with_targets > 10
    trained = read_marker(run, "train")["result"]
    assert trained["rows"] + trained["rows_held_out"] > 10
    assert trained["shards"] == taught.tally.shards
    lines = [json.loads(line) for line in run.losses.read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    said, text = info(workspace, run)
    assert said["coverage"] == taught.tally.coverage > 0
    assert said["kept"] is None
    assert "estimator  how likely each chunk is" in text

    # The same answers, read by the same model here: what was served lacks only what was not named
    here = load_model(str(teacher))
    local = load_model(str(student))
    rows, _ = read_rows(run.samples, local, 256)
    bound = chunks.bound(here, "t", "", local.reader)
    reads = chunks.reading(here, local.reader, run.samples, rows, 512)
    shards = capture(reads, rows, tmp_path, tmp_path / "c.json", bound, None, lambda _: None)
    served, read = (
        TargetReader(workspace.targets, taught.tally.shards, taught.binding),
        TargetReader(tmp_path, shards, bound),
    )
    compared = 0
    for row in rows:
        size = len(row.ids) - row.start
        both = [
            chunks_of(reader.read([reader.locate(row.id, row.ids, size)]), [size])
            for reader in (served, read)
        ]
        if not both[0].known:
            assert not both[1].known
            continue
        words = len(both[0].logprobs_C) - 1  # a server does not show the end, so the last word has no border
        assert len(both[1].logprobs_C) == words + 2
        lost = both[1].logprobs_C[:words] - both[0].logprobs_C[:words]
        assert (lost > -0.02).all()
        assert (lost < 0.5).all()
        compared += words
        assert both[0].before_N[-1] == len(both[0].logprobs_C)
    assert compared > 10


def test_a_plan_says_how_the_tokenizers_compare_before_anybody_is_asked(recipe, teacher, student, workspace):
    with Ledger.open(workspace) as ledger:
        told = recipe(teacher, targets="teacher")
        plan = pipeline.plan(told, workspace, ledger)
        assert "reading    student and teacher have different tokenizers; " in plan_text(told, plan)
        assert "probes are one text to both" in plan_object(told, plan)["reading"]
        token = recipe(teacher, "token", "teacher")
        for ask in (
            lambda: pipeline.plan(token, workspace, ledger),
            lambda: pipeline.run(token, workspace, stages=["collect"]),
        ):
            with pytest.raises(UsageError, match="token by token") as refused:
                ask()
            assert "ids that differ" in refused.value.why
            assert 'train.distil.unit = "chunk"' in refused.value.mend
        assert not list(workspace.runs.glob("*/exchanges.parquet"))
        alike = recipe(student, "token", "teacher")
        assert "have the same" in plan_text(alike, pipeline.plan(alike, workspace, ledger))
