from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TEMPLATE, tiny_llama, tiny_tokenizer
from train.tiny_student import sample, sums, write_samples

from stillhouse.errors import UsageError
from stillhouse.models.local import LocalModel
from stillhouse.train.rows import Row, epoch_batches, read_rows, split_held_out


def student(template=TEMPLATE, stops=(1,), end="</s>"):
    tokenizer = tiny_tokenizer(template, end)
    return LocalModel("s", "s", tiny_llama(), tokenizer, frozenset(stops), bool(template), 128)


def test_only_the_last_completion_of_several_turns_is_trained(tmp_path):
    row = sample(1, "hi", "yes")
    row["messages"] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    write_samples(tmp_path / "s.parquet", [row])
    model = student()
    (found,), left_out = read_rows(tmp_path / "s.parquet", model, 100)
    assert left_out == {}
    assert model.tokenizer.decode(found.ids[: found.start]).replace(" ", "") == (
        "<user>a\n<assistant>b\n<user>c\n<assistant>"
    )
    assert model.tokenizer.convert_ids_to_tokens(found.ids[found.start :]) == ["y", "e", "s", "</s>"]


def test_a_tokenizer_without_template_reads_the_contents_joined_by_newlines(tmp_path):
    write_samples(tmp_path / "s.parquet", [sample(1, "ab", "c")])
    model = student(template=None)
    (found,), _ = read_rows(tmp_path / "s.parquet", model, 100)
    assert model.tokenizer.convert_ids_to_tokens(found.ids) == ["a", "b", "c", "</s>"]
    assert found.start == 2


def test_rows_left_out_are_counted_by_reason(tmp_path):
    rows = [sample(1, "ab", "c"), sample(2, "ab" * 60, "c"), sample(3, "ab", "")]
    write_samples(tmp_path / "s.parquet", rows)
    found, left_out = read_rows(tmp_path / "s.parquet", student(), 100)
    assert len(found) == 1
    assert left_out == {"too long": 1, "no completion tokens": 1}


def test_without_an_end_in_the_tokenizer_the_models_own_is_taken_and_without_any_nothing_is_trained(tmp_path):
    write_samples(tmp_path / "s.parquet", [sample(1, "ab", "c")])
    (found,), _ = read_rows(tmp_path / "s.parquet", student(stops=(7, 9), end=None), 100)
    assert found.ids[-1] == 7
    assert found.ids.dtype == np.int32
    with pytest.raises(UsageError, match="no token that ends an answer"):
        read_rows(tmp_path / "s.parquet", student(stops=(), end=None), 100)


@pytest.mark.parametrize("written", [True, False])
def test_an_empty_samples_file_is_an_error(tmp_path, written):
    if written:
        write_samples(tmp_path / "s.parquet", [])
    with pytest.raises(UsageError, match="nothing to train on"):
        read_rows(tmp_path / "s.parquet", student(), 100)


def test_held_out_rows_are_whole_groups_and_follow_the_seed():
    rows = [Row(np.array([4, 5, n + 3], dtype=np.int32), 1, str(r["group"])) for n, r in enumerate(sums(40))]
    learnt, held = split_held_out(rows, 0.25, 7)
    assert len(held) == 10
    assert len(learnt) == 30
    assert not {r.group for r in learnt} & {r.group for r in held}
    assert split_held_out(rows, 0.25, 7) == (learnt, held)
    assert any(split_held_out(rows, 0.25, seed)[1] != held for seed in range(8, 12))
    assert split_held_out(rows, 0.0, 7) == (rows, [])
    assert split_held_out(rows[:1], 1.0, 7) == (rows[:1], [])
    assert split_held_out(rows, 1.0, 7)[0]  # something is always left to train on


@given(st.lists(st.integers(2, 50), min_size=1, max_size=60), st.integers(10, 200), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_within_the_batch_size(lengths, tokens, seed):
    batches = epoch_batches(lengths, tokens, seed, 0)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= tokens
    assert len(epoch_batches(lengths, tokens, seed, 1)) == len(batches)
    assert epoch_batches(lengths, tokens, seed, 0) == batches
