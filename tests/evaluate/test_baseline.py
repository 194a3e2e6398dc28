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
        ask("4", "only", "one more question"),
    ]
    texts = [given.text for given in baseline_answers(samples, prompts, seed=1)]
    assert texts == ["shipping", "ink is fine", "billing", "always this"]


def test_samples_without_words_give_no_answer(tmp_path):
    path = write_samples(tmp_path / "s.parquet", [("blank", " ", "a"), ("blank", "", "b")])
    (blank,) = baseline_answers(path, [ask("1", "blank", "y")], seed=1)
    assert (blank.text, blank.reason) == (None, "the samples of this family hold no words")
    several = write_samples(tmp_path / "t.parquet", [("one", " ", "a"), ("two", "", "b")])
    assert baseline_answers(several, [ask("1", "one", "y")], seed=1) == "its samples hold no words"


def test_the_family_of_a_test_prompt_is_not_given_away(tmp_path):
    """As in CLINC150: the family is the label, which no student is told."""
    rows = [("in_scope", f"what is my balance {i}", "balance") for i in range(10)]
    rows += [("in_scope", f"freeze my card {i}", "freeze") for i in range(10)]
    rows += [("oos", f"who painted this picture {i}", "oos") for i in range(10)]
    path = write_samples(tmp_path / "s.parquet", rows)
    texts = ["my balance", "a picture", "freeze my card"]
    told = [
        baseline_answers(path, [ask(str(i), family, text) for i, text in enumerate(texts)], seed=1)
        for family in ("in_scope", "oos", "never seen")
    ]
    assert [given.text for given in told[0]] == ["balance", "oos", "freeze"]
    assert told[0] == told[1] == told[2]


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
