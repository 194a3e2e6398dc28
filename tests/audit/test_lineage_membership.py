"""Ledger membership: a student that learnt the rows knows them better than like ones, and no other does."""

import json
import random

import numpy as np
import pytest

from stillhouse.audit.lineage import Settings, find, material, membership
from stillhouse.audit.lineage.membership import Losses
from stillhouse.errors import UsageError

scipy_stats = pytest.importorskip("scipy.stats")


def compared(student, base, controls=(), level=0.01, groups=None):
    names = groups or tuple([f"{side}{n}" for n in range(len(student[at]))] for at, side in enumerate("io"))
    made = [Losses(name, np.array(a), np.array(b)) for name, (a, b) in controls]
    return membership.compare_membership(
        Losses("student", *map(np.array, student)),
        Losses("base", *map(np.array, base)),
        made,
        names,
        level,
        0,
        {},
    )


def noise(rng, count, middle=0.0):
    return rng.normal(middle, 1, count)


def test_under_chance_the_p_values_are_uniform():
    rng = np.random.default_rng(0)
    values = [membership.shuffled(noise(rng, 12), noise(rng, 15), rng) for _ in range(120)]
    assert scipy_stats.kstest(values, "uniform").pvalue > 0.01


def test_the_p_value_is_scipys_and_the_effect_mann_whitneys():
    rng = np.random.default_rng(1)
    inside, outside = noise(rng, 6, 0.8), noise(rng, 5)
    exact = scipy_stats.permutation_test(
        (inside, outside),
        lambda x, y: np.mean(x) - np.mean(y),
        permutation_type="independent",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert membership.shuffled(inside, outside, rng) == pytest.approx(exact.pvalue, abs=0.01)
    u = scipy_stats.mannwhitneyu(inside, outside).statistic
    assert membership.advantage(inside, outside).value == pytest.approx(u / 30)


def test_the_interval_covers_what_it_says():
    rng = np.random.default_rng(2)
    truth = scipy_stats.norm.cdf(0.7 / np.sqrt(2))
    made = [membership.advantage(noise(rng, 40, 0.7), noise(rng, 40)) for _ in range(300)]
    assert 0.92 <= np.mean([each.low <= truth <= each.high for each in made]) <= 0.98


def test_rows_that_differ_before_training_decide_nothing():
    rng = np.random.default_rng(3)
    base = noise(rng, 40, 2), noise(rng, 40, 4)
    found = compared((base[0] - 1, base[1]), base)
    assert found.verdict == "not decided"
    assert "for the base already" in found.why


def test_a_control_that_knows_them_as_well_takes_the_verdict_back():
    rng = np.random.default_rng(4)
    base = noise(rng, 40), noise(rng, 40)
    known = base[0] - 1, base[1]
    assert compared(known, base).verdict == "supported"
    found = compared(known, base, [("other", known)])
    assert found.verdict == "not decided"
    assert "other" in found.why


def test_rows_of_a_group_count_once_and_rows_without_a_loss_are_left_out():
    rng = np.random.default_rng(5)
    base = noise(rng, 4), noise(rng, 4)
    student = base[0] - 1, base[1]
    many = tuple(np.repeat(each, 30) for each in student), tuple(np.repeat(each, 30) for each in base)
    groups = tuple([f"{side}{n // 30}" for n in range(120)] for side in "io")
    found = compared(*many, groups=groups)
    assert found.tests[0].n == 8
    assert found.verdict == "not decided"
    missing = np.append(student[0], np.nan), student[1]
    names = ([*"abcde"], [*"fghi"])
    assert compared(missing, (np.append(base[0], 0), base[1]), groups=names).tests[0].n == 8


def test_one_row_is_too_few():
    with pytest.raises(UsageError, match="too few rows"):
        compared((np.zeros(1), np.zeros(5)), (np.zeros(1), np.zeros(5)))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A base, a student that was trained on rows of random letters, one trained on others, and the rows."""
    torch = pytest.importorskip("torch")
    from tiny import tiny_llama, tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("taught")
    base = tiny_model(folder / "base", width=32, seed=1)
    rng = random.Random(0)

    def row(n):
        text = "".join(rng.choice("abcdefgh") for _ in range(12))
        return {"prompt": f"row {n}", "completion": text}

    rows = [row(n) for n in range(72)]
    for name, part in (("rows", rows[:24]), ("held", rows[24:48]), ("others", rows[48:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(each) for each in part))
    tokenizer = tiny_tokenizer()
    for name in ("rows", "others"):
        part = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        model = tiny_llama(width=32, seed=1)
        ids = [tokenizer(each["prompt"] + each["completion"])["input_ids"] for each in part]
        longest = max(map(len, ids))
        batch = torch.tensor([each + [0] * (longest - len(each)) for each in ids])
        labels = batch.masked_fill(batch == 0, -100)
        optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(60):
            optimiser.zero_grad()
            model(input_ids=batch, labels=labels).loss.backward()
            optimiser.step()
        model.save_pretrained(folder / f"by-{name}")
        tokenizer.save_pretrained(folder / f"by-{name}")
    return folder, base


def asked(folder, base, suspect, *controls):
    given = [
        material("suspect", suspect),
        material("base", base),
        material("rows", folder / "rows.jsonl"),
        material("held-out", folder / "held.jsonl"),
        *(material("control", each) for each in controls),
    ]
    return find(given, Settings())


@pytest.mark.usefixtures("one_thread")
def test_a_student_of_these_rows_is_found_and_one_of_other_rows_is_not(taught):
    folder, base = taught
    found = asked(folder, base, folder / "by-rows", folder / "by-others")
    assert found.verdict == "supported", found.why
    assert found.tests[0].effect.low > 0.5
    other = asked(folder, base, folder / "by-others")
    assert other.verdict == "not decided"
    assert asked(folder, base, base).verdict == "not decided"


def test_samples_of_a_run_are_read_as_rows_and_broken_ones_counted(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    said = [{"role": "user", "content": "hello", "extra": ""}]
    rows = [
        {"messages": said, "completion": "yes", "group": "g"},
        {"messages": said, "completion": None, "group": ""},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "samples.parquet")
    read, broken = membership.read_samples(tmp_path / "samples.parquet")
    assert [(row.messages[0].content, row.completion, row.group) for row in read] == [("hello", "yes", "g")]
    assert broken == 1
