"""Targets that are damaged, foreign or too large: training says what to do, and its last checkpoint stays."""

import json

import numpy as np
import pytest
import torch
from tiny import TEMPLATE, tiny_model
from train.tiny_student import BASE, make_recipe, sums, weights, write_samples
from transformers import AutoTokenizer

from stillhouse.errors import Interrupted, LedgerError, ModelError, UsageError
from stillhouse.ledger.targets import open_shard
from stillhouse.train import Source, loop, train
from stillhouse.workspace import RunFolder

TEACHER = {**BASE, "width": 48, "seed": 9, "initializer_range": 0.5}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("teachers") / "teacher", template=TEMPLATE, **TEACHER)


def learn(run, student, teacher, watch=None, **distil):
    recipe = make_recipe(str(student), {"objective": "distil", "distil": distil, "epochs": 1})
    source = Source(run.root.parent / "targets", (), "teacher", "r1")
    more = {} if watch is None else {"watch": watch}
    return train(run, recipe, teacher_folder=str(teacher), source=source, **more)


def stop_at(step):
    def watch(progress):
        if progress.unit == "step" and progress.done == step:
            raise KeyboardInterrupt

    return watch


def saved(run):
    return {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}


def no_number(path):
    shard, data = open_shard(path), bytearray(path.read_bytes())
    first, packed = shard.borders[len(shard.sample_ids) // 2], bool(shard.binding.head)
    kind = "<f2" if packed else "<f4"
    sizes = (shard.positions[len(shard.sample_ids) // 2] * 3 + 7) // 8 if packed else 0
    value = np.array([np.nan], dtype=kind).tobytes()
    data[first + sizes : first + sizes + len(value)] = value
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def another_tokenizer(path):
    named = open_shard(path).binding.tokenizer
    path.write_bytes(path.read_bytes().replace(named.encode(), b"0" * len(named)))


@pytest.mark.parametrize(
    "kept",
    [{"keep": "all"}, {"head": 4, "draws": 0}, {"keep": "vectors"}],
    ids=["whole", "packed", "vectors"],
)
@pytest.mark.parametrize(
    ("damage", "words"),
    [(no_number, "is none"), (cut, "its end is missing"), (another_tokenizer, "tokenizer")],
)
def test_a_damaged_shard_is_named_and_training_goes_on_once_it_is_gone(
    run, folder, teacher, tmp_path, monkeypatch, kept, damage, words
):
    monkeypatch.setattr(loop, "WATCH_SECONDS", 0.0)
    whole = RunFolder(tmp_path / "whole")
    write_samples(whole.samples, sums())
    learn(whole, folder, teacher, **kept)
    with pytest.raises(Interrupted):
        learn(run, folder, teacher, stop_at(2), **kept)
    before = saved(run)
    (shard,) = (tmp_path / "targets").glob("*.targets")
    damage(shard)
    with pytest.raises(LedgerError) as stopped:
        learn(run, folder, teacher, **kept)
    assert words in f"{stopped.value.what} {stopped.value.why}"
    assert str(shard) in stopped.value.what
    assert stopped.value.mend
    assert saved(run) == before != {}
    shard.unlink()
    learn(run, folder, teacher, **kept)
    assert weights(run) == weights(whole)


def test_memory_that_runs_out_leaves_the_checkpoint(run, folder, teacher, monkeypatch):
    monkeypatch.setattr(loop, "WATCH_SECONDS", 0.0)
    with pytest.raises(Interrupted):
        learn(run, folder, teacher, stop_at(2))
    before = saved(run)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "train_step", full)
    with pytest.raises(ModelError, match="out of memory at training step 3") as stopped:
        learn(run, folder, teacher)
    assert "train.batch_tokens" in stopped.value.mend
    assert saved(run) == before != {}


def test_a_teacher_with_more_tokens_is_refused_and_one_with_a_padded_head_is_not(
    run, folder, teacher, tmp_path
):
    larger = tiny_model(tmp_path / "larger", template=TEMPLATE, **TEACHER)
    tokenizer = AutoTokenizer.from_pretrained(larger)
    tokenizer.add_tokens(["larger"])
    tokenizer.save_pretrained(larger)
    with pytest.raises(UsageError, match="token by token") as refused:
        learn(run, folder, larger)
    assert "tokenizers differ" in refused.value.why
    padded = tiny_model(tmp_path / "padded", template=TEMPLATE, **{**TEACHER, "vocab_size": 64})
    result = learn(run, folder, padded, keep="all")
    assert open_shard(tmp_path / "targets" / f"{result.shards[0]}.targets").binding.vocabulary < 64
    assert json.loads(run.captured.read_text())["rows_read"] == [48]
