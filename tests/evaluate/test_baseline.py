"""The baseline on small families whose right behaviour is plain to see."""

import builtins

import pyarrow as pa
import pytest
from pyarrow import parquet

from stillhouse.evaluate.baseline import baseline_answers, is_choice
from stillhouse.records import Message, Prompt


def write_samples(path, rows):
    table = [
        {"messages": [{"role": "user", "content": question}], "completion": answer, "family": family}
        for family, question, answer in rows
    ]
    parquet.write_table(pa.Table.from_pylist(table), path)
    return path


def ask(name, family, text):
    return Prompt(name, (Message("system", "be brief"), Message("user", text)), family)


@pytest.fixture
def samples(tmp_path):
    routed = [("route", f"my parcel number {i} is late", "shipping") for i in range(10)]
    routed += [("route", f"the invoice number {i} is wrong", "billing") for i in range(10)]
    copied = [("copy", f"tell me about {thing}", f"{thing} is fine") for thing in ("tea", "ink", "oak")]
    only = [("only", f"question {i}", "always this") for i in range(3)]
    return write_samples(tmp_path / "samples.parquet", routed + copied + only)


def test_few_repeated_answers_are_classes_and_others_are_copied_from_the_nearest_sample(samples):
    prompts = [
        ask("1", "route", "where is my late parcel"),
        ask("2", "copy", "what about ink"),
        ask("3", "route", "wrong invoice!"),
        ask("4", "only", "???"),
    ]
    texts = [given.text for given in baseline_answers(samples, prompts, seed=1)]
    assert texts == ["shipping", "ink is fine", "billing", "always this"]


def test_an_unknown_family_and_samples_without_words_get_no_answer(tmp_path):
    path = write_samples(tmp_path / "s.parquet", [("blank", " ", "a"), ("blank", "", "b")])
    unknown, blank = baseline_answers(path, [ask("1", "new", "x"), ask("2", "blank", "y")], seed=1)
    assert (unknown.text, unknown.reason) == (None, "no sample is of this family")
    assert (blank.text, blank.reason) == (None, "the samples of this family hold no words")


def test_what_counts_as_a_choice():
    assert is_choice(["a", "b"] * 3)
    assert not is_choice(["a", "b", "c"])
    assert not is_choice([str(i % 51) for i in range(1000)])


def test_without_samples_or_scikit_learn_there_is_a_reason(tmp_path, samples, monkeypatch):
    assert "no samples" in baseline_answers(tmp_path / "none.parquet", [ask("1", "f", "x")], seed=1)
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "scikit-learn is not installed" in baseline_answers(samples, [ask("1", "route", "x")], seed=1)
