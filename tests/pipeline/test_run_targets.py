"""From a real server's probabilities to shards that a trainer finds, through the pipeline."""

import json
import shutil
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from provider import Provider, answer
from tiny import TEMPLATE, tiny_model

from stillhouse import pipeline
from stillhouse.cli.targets import info, tally_text
from stillhouse.collect.taught import need_taught, read_taught
from stillhouse.errors import LedgerError, ModelError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.erasure import erase
from stillhouse.ledger.subject import Subject
from stillhouse.ledger.targets import SUFFIX, TargetReader
from stillhouse.models.reading import student_reader
from stillhouse.models.serve import background
from stillhouse.recipe import parse_recipe
from stillhouse.report import write_report
from stillhouse.train.rows import read_rows
from stillhouse.train.student import initial_student
from stillhouse.workspace import read_marker

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), template=TEMPLATE, max_position_embeddings=128)


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with background(str(model), tmp_path_factory.mktemp("log") / "server.log") as found:
        yield found


@pytest.fixture
def recipe(tmp_path, model):
    prompts = tmp_path / "prompts.jsonl"

    def make(url, prompts_count=20, **changes):
        rows = [{"prompt": f"say {n} please", "id": f"p{n}"} for n in range(prompts_count)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "terms.txt").write_text("you may train on the answers")
        terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
        tree = {
            "run": {"name": "t", "seed": 3},
            "teacher": {"model": model.name, "endpoint": url, "provider": "here", "terms": terms},
            "prompts": {"source": str(prompts)},
            "collect": {"max_tokens": 12, "temperature": 1.0, "top_logprobs": ASKED},
            "student": {"init": str(model)},
            "evaluate": {"held_out": 0.2},
        }
        for place, value in changes.items():
            table, key = place.split("__")
            tree.setdefault(table, {})[key] = value
        return parse_recipe(tree)

    return make


def collect(recipe, workspace):
    return pipeline.run(recipe, workspace, stages=["collect"]).run


def shards(workspace):
    return {path: path.stat().st_mtime_ns for path in workspace.targets.glob("*")}


def marker(run):
    return read_marker(run, "collect")["result"]["targets"]


def spelt(raw, logprob):
    return {"token": raw, "bytes": list(raw.encode()), "logprob": logprob}


async def letters(body, number):
    """A provider whose answers have the faults that real ones have."""
    text = body["messages"][-1]["content"].split()[1]
    if int(text) % 5 == 0:
        return answer(text)
    entry = spelt("x" if int(text) % 5 == 1 else text[0], -0.1)
    rivals = [{"token": "q", "bytes": [113], "logprob": -9999.0}] if int(text) % 5 == 2 else []
    content = [entry | {"top_logprobs": [entry, *rivals]}, *(spelt(each, -0.2) for each in text[1:])]
    said = json.loads(answer(text).body)
    said["choices"][0]["logprobs"] = {"content": content}
    from aiohttp import web

    return web.json_response(said)


def test_a_trainer_finds_the_targets_of_every_sample(url, recipe, workspace, model):
    wanted = recipe(url, curate__truncated=False)
    finished = pipeline.run(wanted, workspace, stages=["collect", "curate"])
    run = finished.run
    (taught,) = need_taught(run)
    reader = TargetReader(workspace.targets, taught.tally.shards, taught.binding)
    student = initial_student(wanted, None)
    rows, left_out = read_rows(run.samples, student, 128)
    samples = pq.read_table(run.samples).to_pylist()
    assert len(rows) == len(samples) > 10
    assert not left_out
    exchanges = {row["leaf"]: row for row in pq.read_table(run.exchanges).to_pylist()}
    with Ledger.open(workspace) as ledger:
        for sample, row in zip(samples, rows, strict=True):
            (leaf,) = sample["leaves"]
            place = reader.locate(str(leaf), row.ids, len(row.ids) - row.start)
            targets = reader.read([place])
            sizes = np.diff(targets.offsets_N1)
            assert sizes.max() <= ASKED + 1
            said = orjson.loads(ledger.contents(leaf)["response"])["choices"][0]["logprobs"]["content"]
            first = dict(
                zip(targets.ids_E[: sizes[0]].tolist(), targets.logprobs_E[: sizes[0]].tolist(), strict=True)
            )
            assert sizes[0] >= ASKED
            for rival in said[0]["top_logprobs"]:
                at = student.tokenizer.convert_tokens_to_ids(rival["token"])
                assert first[at] == pytest.approx(rival["logprob"], rel=1e-3)
            assert exchanges[leaf]["answer"] == sample["completion"]
    binding = taught.binding
    assert (binding.teacher, binding.engine, binding.head) == (model.name, "here", ASKED + 1)
    assert binding.tokenizer == student_reader(wanted.student, None).vocabulary().digest
    assert len(binding.template) == 64
    (said,) = marker(run)
    assert (said["rows"], said["shards"]) == (len(exchanges), taught.tally.shards)


def test_what_is_there_is_neither_asked_nor_written_again(url, recipe, workspace):
    wanted = recipe(url)
    run = collect(wanted, workspace)
    written, record, said = shards(workspace), run.targets.stat().st_mtime_ns, marker(run)
    assert collect(wanted, workspace) == run
    assert shards(workspace) == written
    assert run.targets.stat().st_mtime_ns == record
    assert marker(run) == said
    # Killed before the record was written: the same shard comes out again, and nothing else.
    run.targets.unlink()
    collect(wanted, workspace)
    assert set(shards(workspace)) == set(written)
    assert marker(run) == said


def test_further_answers_get_shards_of_their_own(url, recipe, workspace):
    few = collect(recipe(url, 10), workspace)
    first = shards(workspace)
    many = collect(recipe(url, 20), workspace)
    assert few == many  # the file of prompts grew, the recipe is the same
    assert len(shards(workspace)) == 2
    assert first.items() <= shards(workspace).items()
    (taught,) = need_taught(many)
    rows = pq.read_table(many.exchanges).num_rows
    assert taught.tally.rows == rows
    reader = TargetReader(workspace.targets, taught.tally.shards, taught.binding)
    assert sum(len(shard.sample_ids) for shard in reader.shards) == rows
    # Fewer prompts again: the shard with answers that the run has no more is replaced.
    collect(recipe(url, 10), workspace)
    assert need_taught(many)[0].tally.shards == [path.stem for path in first]


def test_two_prompts_that_share_an_answer_share_its_row(url, recipe, workspace, tmp_path):
    wanted = recipe(url)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "say 3 please", "id": "again"}) + "\n")
    run = collect(wanted, workspace)
    leaves = pq.read_table(run.exchanges)["leaf"].to_pylist()
    (taught,) = need_taught(run)
    assert taught.tally.rows == len(set(leaves)) <= len(leaves)


def test_every_teacher_has_shards_of_its_own(url, recipe, workspace, provider):
    other = provider(letters)
    wanted = recipe(url).model_dump(mode="json")
    wanted["teachers"] = [{**wanted["teacher"], "endpoint": other.url, "provider": "there"}]
    wanted["collect"]["teachers"] = "all"
    run = collect(parse_recipe(wanted), workspace)
    taught = need_taught(run)
    assert [one.binding.engine for one in taught] == ["here", "there"]
    assert sum(one.tally.rows for one in taught) == pq.read_table(run.exchanges).num_rows
    found, text = info(workspace, run)
    assert found["rows"] == sum(each["rows"] for each in found["teachers"])
    assert "at there" in text


def test_what_a_provider_left_out_is_counted_and_said(recipe, workspace, provider):
    server: Provider = provider(letters)
    run = collect(recipe(server.url), workspace)
    (said,) = marker(run)
    assert said["rows"] == said["with_targets"] + sum(said["reasons"].values())
    assert said["reasons"]["no logprobs"] > 0
    assert said["reasons"]["the tokens do not spell the text"] > 0
    assert said["counts"]["sentinel"] > 0
    assert said["counts"]["fewer than asked"] > 0
    text = "\n".join(tally_text([said]))
    for words in ("no logprobs", "sentinel", "bytes a token"):
        assert words in text
    page = write_report(run).read_text()
    for words in ("probabilities", "no logprobs", "sentinel"):
        assert words in page
    found, shown = info(workspace, run)
    assert found["without_targets"] == said["reasons"]
    assert found["rules"] == said["counts"]
    assert found["bytes"] == sum(path.stat().st_size for path in shards(workspace))
    assert "sentinel" in shown


def test_a_run_without_probabilities_says_so(recipe, workspace, provider):
    server = provider()
    run = collect(recipe(server.url, collect__top_logprobs=None), workspace)
    assert marker(run) is None
    assert "top_logprobs" not in server.bodies[0]
    with pytest.raises(UsageError, match="has no targets"):
        info(workspace, run)
    assert "not asked for" in write_report(run).read_text()


def test_a_shard_that_is_missing_cut_or_foreign_is_named_with_what_to_do(url, recipe, workspace):
    run = collect(recipe(url), workspace)
    (path,) = shards(workspace)
    whole = path.read_bytes()
    for damage, words in (
        (path.unlink, "no shard"),
        (lambda: path.write_bytes(whole[:-40]), "its end is missing"),
        (lambda: path.write_bytes(whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]), "sealed with"),
        (lambda: path.write_bytes(b""), "its end is missing"),
    ):
        damage()
        with pytest.raises(LedgerError) as caught:
            info(workspace, run)
        assert words in f"{caught.value.what} {caught.value.why}"
        assert str(path) in caught.value.what
        assert "stillhouse collect RECIPE" in caught.value.mend
        path.unlink(missing_ok=True)
        collect(recipe(url), workspace)  # asks nobody, and writes the same file again
        assert path.read_bytes() == whole
    record = json.loads(run.targets.read_text())
    record["teachers"][0]["binding"]["tokenizer"] = "0" * 64
    run.targets.write_text(json.dumps(record))
    with pytest.raises(LedgerError, match="another tokenizer"):
        info(workspace, run)
    run.targets.write_text("{")
    with pytest.raises(LedgerError, match=r"targets\.json is damaged"):
        read_taught(run)


def test_an_erased_answer_has_no_targets_any_more(url, recipe, workspace):
    run = collect(recipe(url), workspace)
    leaf, *others = pq.read_table(run.exchanges)["leaf"].to_pylist()
    (before,) = need_taught(run)
    with Ledger.open(workspace) as ledger:
        (fresh,) = erase(ledger, Subject(leaves=(leaf,)), "request of the person").shards.values()
    assert [path.stem for path in shards(workspace)] == [fresh]
    with pytest.raises(LedgerError, match="no shard") as caught:
        info(workspace, run)
    assert "erased" in caught.value.why
    collect(recipe(url), workspace)  # the erased answer is not bought again
    (after,) = need_taught(run)
    assert after.tally.shards == [fresh] == [path.stem for path in shards(workspace)]
    assert after.tally.rows == before.tally.rows - 1
    assert pq.read_table(run.exchanges)["leaf"].to_pylist() == others
    assert info(workspace, run)[0]["rows"] == len(others)


def test_a_damaged_shard_stops_the_next_collecting(url, recipe, workspace):
    collect(recipe(url), workspace)
    (path,) = shards(workspace)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LedgerError, match="not a usable shard"):
        collect(recipe(url), workspace)


def test_a_student_whose_tokens_have_no_bytes_is_refused_before_anybody_is_asked(
    recipe, workspace, provider, model, tmp_path
):
    folder = tmp_path / "pieces"
    shutil.copytree(model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    server = provider()
    with pytest.raises(ModelError, match="no bytes of their own"):
        collect(recipe(server.url, student__init=str(folder)), workspace)
    assert server.bodies == []


@pytest.mark.parametrize("init", ["folder", "from_teacher", "config"])
def test_rows_are_read_as_the_trainer_reads_them(model, recipe, init):
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    wanted = recipe(
        "http://127.0.0.1:1/v1",
        student__init=str(model) if init == "folder" else init,
        student__config=small if init == "config" else None,
    )
    student, teacher = wanted.student, str(model)
    made = initial_student(wanted, teacher).reader
    found = student_reader(student, teacher)
    assert found.stop_ids == made.stop_ids
    assert found.template == made.template
    assert found.vocabulary().digest == made.vocabulary().digest
    if init != "folder":
        with pytest.raises(UsageError):
            student_reader(student, None)


def test_a_teacher_that_is_served_here_and_its_student_share_every_id(recipe, workspace, model):
    tree = recipe("http://127.0.0.1:1/v1").model_dump(mode="json")
    tree["teacher"] |= {"model": str(model), "endpoint": None, "provider": None}
    tree["student"]["init"] = "from_teacher"
    run = collect(parse_recipe(tree), workspace)
    (said,) = marker(run)
    assert said["mass_mapped"] == pytest.approx(1.0)
    assert Path(workspace.targets / (said["shards"][0] + SUFFIX)).is_file()
