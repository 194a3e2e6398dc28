"""Learning a teacher's probabilities: the same lesson whoever tells it, and what cannot be learned."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TEMPLATE, tiny_model
from train.tiny_student import BASE, losses, make_recipe, sums, weights, write_samples
from transformers import BloomConfig, BloomForCausalLM

from stillhouse.errors import Interrupted, LedgerError, UsageError
from stillhouse.ledger.targets import Binding, ShardWriter, open_shard
from stillhouse.models.local import load_model
from stillhouse.train import Source, capture, loop, train
from stillhouse.train.capture import sparse_targets
from stillhouse.workspace import RunFolder

TEACHER = {**BASE, "width": 48, "seed": 9, "initializer_range": 0.5}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("teachers") / "teacher", template=TEMPLATE, **TEACHER)


def distil(run, student, teacher, source=None, **settings):
    train_settings = {key: settings.pop(key) for key in ("epochs", "dtype") if key in settings}
    recipe = make_recipe(str(student), {"objective": "distil", "distil": settings, **train_settings})
    source = source or Source(run.root.parent / "targets", (), "teacher", "r1")
    return train(run, recipe, teacher_folder=teacher and str(teacher), source=source)


def other_run(tmp_path, name):
    run = RunFolder(tmp_path / name)
    write_samples(run.samples, sums())
    return run


def curve(run):
    return np.array([row["loss"] for row in losses(run)])


def test_the_student_comes_nearer_to_the_teacher_and_the_same_seed_gives_the_same_weights(
    run, folder, teacher, tmp_path
):
    result = distil(run, folder, teacher, epochs=8)
    assert (result.objective, len(result.shards)) == ("distil", 1)
    assert result.bytes_per_token > 0
    seen = losses(run)
    held = [row["held_out"] for row in seen if "held_out" in row]
    assert held[-1] < 0.9 * held[0]
    again = other_run(tmp_path, "again")
    distil(again, folder, teacher, epochs=8)
    assert weights(again) == weights(run)
    assert [row["loss"] for row in losses(again)] == [row["loss"] for row in seen]


def test_a_stored_teacher_gives_the_curve_of_one_that_reads_along(run, folder, teacher, tmp_path):
    """All ids are kept, in 16 bits: a log-probability is off by at most 2^-11 of its size, and so the loss of
    a position by no more than that times its cross-entropy, here below 20 nats."""
    distil(run, folder, teacher, head=64, draws=0)
    along = other_run(tmp_path, "along")
    distil(along, folder, teacher, online=True)
    assert np.abs(curve(run) - curve(along)).max() < 20 * 2**-11
    assert np.abs(curve(along)).max() > 0.1


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_stored_targets_are_of_the_temperature_that_is_asked_for(run, folder, teacher, tmp_path, temperature):
    """All ids in 16 bits, as above, and the scale of T^2 that the loss has."""
    distil(run, folder, teacher, head=64, draws=0, temperature=temperature, epochs=1)
    along, drawn = other_run(tmp_path, "along"), other_run(tmp_path, "drawn")
    distil(along, folder, teacher, online=True, temperature=temperature, epochs=1)
    assert np.abs(curve(run) - curve(along)).max() < 20 * 2**-11 * temperature
    distil(drawn, folder, teacher, draws=512, temperature=temperature, epochs=1)
    assert np.abs(curve(drawn) / curve(along) - 1).max() < 0.1


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(run, folder):
    distil(run, folder, folder, online=True, epochs=1, dtype="float32")
    assert curve(run)[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("measure", ["reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl"])
def test_every_measure_falls(run, folder, teacher, measure):
    distil(run, folder, teacher, divergence=measure, online=True, temperature=2.0, hard=0.1, epochs=6)
    seen = curve(run)
    assert seen[-3:].mean() < 0.8 * seen[:3].mean()


def test_a_training_that_stopped_goes_on_with_the_targets_that_were_written(
    run, folder, teacher, tmp_path, monkeypatch
):
    whole = other_run(tmp_path, "whole")
    distil(whole, folder, teacher)
    reads = []
    original = capture.sparse_targets
    monkeypatch.setattr(capture, "sparse_targets", lambda *a: reads.append(1) or original(*a))
    monkeypatch.setattr(loop, "WATCH_SECONDS", 0.0)
    seen = []

    def stops(progress):
        seen.append(progress)
        if "reads" not in progress.note and progress.done == 4:
            raise KeyboardInterrupt

    recipe = make_recipe(str(folder), {"objective": "distil"})
    source = Source(tmp_path / "targets", (), "teacher", "r1")
    with pytest.raises(Interrupted):
        train(run, recipe, stops, teacher_folder=str(teacher), source=source)
    assert len(reads) == 48
    train(run, recipe, teacher_folder=str(teacher), source=source)
    assert len(reads) == 48, "the teacher read again what it had read"
    assert weights(run) == weights(whole)
    assert any("teacher reads" in progress.note for progress in seen)


def test_probabilities_that_came_with_the_answers(run, folder, teacher, tmp_path):
    """Shards as collecting writes them, of two teachers; one answer has none, one was changed since."""
    rows = load_rows(run, folder)
    reader, read = load_model(str(folder)).reader, load_model(str(teacher)).model
    sources = []
    for name, part in (("one", rows[:20]), ("two", rows[20:46])):
        vocabulary = reader.vocabulary()
        bound = Binding(name, "", vocabulary.digest, reader.template, len(vocabulary.raw), 8)
        with ShardWriter(tmp_path / "shards", bound) as writer:
            for row in part:
                ids = torch.from_numpy(row.ids.astype(np.int64))[None]
                with torch.no_grad():
                    logits = read(input_ids=ids).logits[0, row.start - 1 : -1, : len(vocabulary.raw)]
                changed = row.ids[:-1] if row.id == "45" else row.ids
                writer.add(row.id, changed, sparse_targets(logits, 8, 0))
            sources.append((bound, (writer.seal().stem,)))
    source = Source(tmp_path / "shards", sources)
    result = distil(run, folder, None, source, targets="answers", epochs=8)
    assert result.rows_left_out == {"no targets": 3}
    assert result.rows + result.rows_held_out == 45
    held = [row["held_out"] for row in losses(run) if "held_out" in row]
    assert held[-1] < 0.9 * held[0]
    foreign = [(replace(bound, template="another"), digests) for bound, digests in sources]
    retemplated = tiny_model(tmp_path / "other", template=TEMPLATE + " ", **BASE)
    with pytest.raises(LedgerError, match="another template"):
        distil(run, retemplated, None, Source(tmp_path / "shards", foreign), targets="answers")


def test_the_end_of_an_answer_is_learned_though_no_server_tells_of_it(run, folder, teacher, tmp_path):
    """Of the token that ends an answer nothing is on the wire: the student must stop all the same."""
    rows = load_rows(run, folder)
    student = load_model(str(folder))
    read, vocabulary = load_model(str(teacher)).model, student.reader.vocabulary()
    bound = Binding("one", "", vocabulary.digest, student.reader.template, len(vocabulary.raw), 8)
    with ShardWriter(tmp_path / "shards", bound) as writer:
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            with torch.no_grad():
                told = sparse_targets(read(input_ids=ids).logits[0, row.start - 1 : -2], 8, 0)
            offsets = np.append(told.offsets_N1, told.offsets_N1[-1])
            tail = np.append(told.log_tail_N, np.float32(0.0))
            writer.add(row.id, row.ids, replace(told, offsets_N1=offsets, log_tail_N=tail))
        source = Source(tmp_path / "shards", [(bound, (writer.seal().stem,))])
    result = distil(run, folder, None, source, targets="answers", epochs=8)
    assert result.target_tokens == 8 * sum(len(row.ids) - row.start for row in rows[: result.rows])

    def ends(model):
        """The probability of each row's last token, where the text has come to its end; mean."""
        found = []
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            with torch.no_grad():
                found.append(model(input_ids=ids).logits[0, -2].softmax(-1)[row.ids[-1]])
        return float(torch.stack(found).mean())

    assert ends(load_model(str(run.student)).model) > 10 * ends(student.model)


def load_rows(run, folder):
    from stillhouse.train.rows import read_rows

    return read_rows(run.samples, load_model(str(folder)), 1024)[0]


def test_what_cannot_be_learned_is_refused_with_a_way_out(run, folder, teacher, tmp_path):
    with pytest.raises(UsageError, match="teacher cannot read"):
        distil(run, folder, None)
    with pytest.raises(UsageError, match="no probabilities"):
        distil(run, folder, None, targets="answers")
    retemplated = tiny_model(tmp_path / "other", template=TEMPLATE + " ", **BASE)
    with pytest.raises(UsageError, match="token by token") as refused:
        distil(run, folder, retemplated)
    assert "template" in refused.value.why
    for settings, why in (
        ({"divergence": "reverse_kl"}, "forward_kl"),
        ({"temperature": 2.0, "targets": "answers"}, "temperature 1"),
    ):
        with pytest.raises(UsageError) as refused:
            distil(run, folder, teacher, **settings)
        assert why in refused.value.why


def test_a_truncated_shard_is_named_and_the_last_checkpoint_stays(run, folder, teacher, tmp_path):
    result = distil(run, folder, teacher)
    shard = tmp_path / "targets" / f"{result.shards[0]}.targets"
    assert open_shard(shard).binding.draws == 32
    shard.write_bytes(shard.read_bytes()[:-100])
    kept = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
    with pytest.raises(LedgerError, match=result.shards[0][:12]):
        distil(run, folder, teacher, epochs=4)
    assert {path: path.read_bytes() for path in kept} == kept
    assert json.loads(run.captured.read_text())["shards"] == list(result.shards)


@pytest.mark.parametrize("how", [{"online": True}, {"online": False}, {"keep": "vectors"}])
def test_a_teacher_whose_head_is_padded_teaches_what_it_teaches_without(run, folder, teacher, tmp_path, how):
    """The padding would be likelier than all real ids together; the student's own head has none."""
    model = load_model(str(teacher)).model
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 64, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[rows:] = 50.0
    wide = tiny_model(tmp_path / "wide", template=TEMPLATE, **TEACHER)
    model.save_pretrained(wide)
    distil(run, folder, teacher, **how, dtype="float32")
    padded = other_run(tmp_path, "padded")
    distil(padded, folder, wide, **how, dtype="float32")
    assert curve(padded) == pytest.approx(curve(run), rel=1e-4, abs=1e-6)


def test_a_teacher_with_other_tokens_is_refused_by_the_first_of_them(run, folder, teacher, tmp_path):
    """One more real token, which the student's head has no row for; names and files are the same."""
    from transformers import AutoTokenizer

    more = tiny_model(tmp_path / "more", template=TEMPLATE, **TEACHER)
    tokenizer = AutoTokenizer.from_pretrained(more)
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    tokenizer.save_pretrained(more)
    model = load_model(str(more)).model
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(more)
    with pytest.raises(UsageError, match="token by token") as refused:
        distil(run, folder, more, online=True)
    assert "ids that differ: 1 " in refused.value.why
    assert f"{len(tokenizer) - 1} is no token and special '<tool>'" in refused.value.why
    assert 'unit = "chunk"' in refused.value.mend


def test_rows_are_packed_for_the_student_alone_where_the_teacher_reads_them_before(
    run, folder, teacher, tmp_path
):
    """Bloom tells places apart by their distance and cannot be packed."""
    shutil.copytree(teacher, tmp_path / "bloom")
    config = BloomConfig(
        vocab_size=len(load_model(str(teacher)).tokenizer), hidden_size=16, n_layer=1, n_head=2
    )
    config.eos_token_id = load_model(str(teacher)).model.config.eos_token_id
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")

    def learn(**settings):
        recipe = make_recipe(
            str(folder), {"objective": "distil", "epochs": 1, "packing": True, "distil": settings}
        )
        source = Source(tmp_path / "targets", (), "teacher", "r1")
        return train(run, recipe, teacher_folder=str(tmp_path / "bloom"), source=source)

    assert learn(draws=8).steps > 0
    with pytest.raises(UsageError, match="cannot be packed for this teacher"):
        learn(online=True)
