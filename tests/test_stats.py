"""Intervals and tests against published values, scipy, closed forms and simulation."""

import math
import time
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from stillhouse import stats

fractions = st.floats(0, 1, allow_subnormal=False)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_values(successes, n, low, high):
    found = stats.wilson(successes, n)
    assert found.value == successes / n
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy_and_holds_its_estimate(case):
    successes, n = case
    ours = stats.wilson(successes, n, level=0.9)
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(0.9, "wilson")
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_wilson_of_nothing_is_undefined_and_nonsense_is_refused():
    assert stats.wilson(0, 0) == stats.UNDEFINED
    with pytest.raises(ValueError, match="successes"):
        stats.wilson(3, 2)
    with pytest.raises(ValueError, match="level"):
        stats.wilson(1, 2, level=1.0)


def test_group_codes_leave_ungrouped_rows_alone():
    codes = stats.group_codes(["a", "", "a", "", "b"], ["1", "2", "3", "4", "5"])
    assert codes.tolist() == [0, 1, 0, 2, 3]
    assert stats.group_codes(["x", ""], ["y", "x"]).tolist() == [0, 1], "an id is not a group's name"


@given(st.lists(fractions, min_size=2, max_size=40))
def test_without_groups_the_clustered_error_is_the_usual_one(values):
    ours = stats.clustered_error(values, np.arange(len(values)))
    assert ours == pytest.approx(float(scipy_stats.sem(values)), abs=1e-9)


def test_clustered_error_worked_by_hand():
    # mean 0.5; group sums of deviations 1.0, 0.0, -1.0; 3/2 * 2 = 3; sqrt(3) / 6
    values, groups = [1, 1, 1, 0, 0, 0], np.array([0, 0, 1, 1, 2, 2])
    assert stats.clustered_error(values, groups) == pytest.approx(math.sqrt(3) / 6)
    assert stats.clustered_error(values, np.zeros(6, dtype=np.intp)) is None
    assert stats.clustered_error([], np.zeros(0, dtype=np.intp)) is None


def test_without_groups_a_clustered_share_is_wilsons_interval():
    found, plain = stats.clustered_share([1, 1, 1, 0, 1, 0], np.arange(6)), stats.wilson(4, 6)
    assert (found.low, found.high) == (pytest.approx(plain.low), pytest.approx(plain.high))


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 11, 40, 5000])
@pytest.mark.parametrize(("level", "within"), [(0.9, 0.005), (0.95, 0.005), (0.99, 0.03)])
def test_t_quantiles_equal_scipys(freedom, level, within):
    assert stats.t_quantile(level, freedom) == pytest.approx(
        scipy_stats.t.ppf((1 + level) / 2, freedom), rel=within
    )


def test_copied_rows_add_no_certainty():
    """Each row ten times over, in its own group: the interval of the plain rows, not a tenth of it."""
    rng = np.random.default_rng(5)
    plain = (rng.random(60) < 0.8).astype(float)
    alone = stats.clustered_share(plain, np.arange(60))
    copied = stats.clustered_share(np.repeat(plain, 10), np.repeat(np.arange(60), 10))
    assert copied.low == pytest.approx(alone.low, abs=0.005)
    assert copied.high == pytest.approx(alone.high, abs=0.005)
    naive = stats.wilson(plain.sum() * 10, 600)
    assert copied.high - copied.low > 2.5 * (naive.high - naive.low)


def test_clustered_share_at_the_edges():
    one_group = np.zeros(4, dtype=np.intp)
    assert stats.clustered_share([], np.zeros(0, dtype=np.intp)) == stats.UNDEFINED
    assert stats.clustered_share([1, 0, 1, 1], one_group) == stats.Interval(0.75, None, None)
    assert stats.clustered_share([1.0], one_group[:1]).low == pytest.approx(stats.wilson(1, 1).low)
    saturated = stats.clustered_share([1.0] * 30, np.repeat(np.arange(6), 5))
    assert (saturated.value, saturated.low) == (1.0, pytest.approx(stats.wilson(6, 6).low))
    balanced = stats.clustered_share([1, 0] * 10, np.repeat(np.arange(10), 2))
    fewer = 20 * (scipy_stats.t.ppf(0.975, 19) / scipy_stats.t.ppf(0.975, 9)) ** 2
    expected = stats.wilson(fewer / 2, fewer)
    assert balanced.low == pytest.approx(expected.low, abs=1e-3), (
        "balanced groups promise no more than n rows"
    )


@given(
    st.lists(st.tuples(fractions, st.integers(0, 6)), min_size=1, max_size=50),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_a_clustered_share_lies_in_its_interval(rows, level):
    values = [value for value, _ in rows]
    found = stats.clustered_share(values, np.array([group for _, group in rows]), level)
    assert found.value == pytest.approx(float(np.mean(values)), abs=1e-12)
    assert found.low is None or 0 <= found.low <= found.value <= found.high <= 1


def test_clustered_share_covers_the_truth_about_as_often_as_it_says():
    """40 groups of 10 rows that share a chance drawn for the group; naive intervals cover far less."""
    rng = np.random.default_rng(11)
    groups = np.repeat(np.arange(40), 10)
    ours = naive = 0
    for _ in range(400):
        chance = np.repeat(rng.beta(1.6, 0.4, 40), 10)  # mean 0.8
        right = (rng.random(400) < chance).astype(float)
        span, plain = stats.clustered_share(right, groups), stats.wilson(right.sum(), 400)
        ours += span.low <= 0.8 <= span.high
        naive += plain.low <= 0.8 <= plain.high
    assert ours / 400 >= 0.92
    assert naive / 400 < 0.80


def test_bootstrap_ratio_agrees_with_the_delta_method():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(150), 4)
    teacher = (rng.random(600) < 0.9).astype(float)
    student = teacher * (rng.random(600) < 0.9)
    found = stats.bootstrap_ratio(student, teacher, groups, np.random.default_rng(1), 4000)
    residual = np.bincount(groups, weights=student - found.value * teacher)
    error = math.sqrt(float(residual @ residual)) / teacher.sum()
    assert found.value == student.sum() / teacher.sum()
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.15 * error)


def test_bootstrap_ratio_agrees_with_scipys_paired_bootstrap():
    rng = np.random.default_rng(4)
    teacher = rng.integers(1, 10, 80).astype(float)
    student = np.minimum(teacher, rng.integers(0, 10, 80))
    ours = stats.bootstrap_ratio(student, teacher, np.arange(80), np.random.default_rng(1), 5000)
    theirs = scipy_stats.bootstrap(
        (student, teacher),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_bootstrap_ratio_is_the_same_for_the_same_generator_seed_and_row_order_is_free():
    rng = np.random.default_rng(9)
    a, b, groups = rng.random(90), rng.random(90), rng.integers(0, 20, 90)
    first = stats.bootstrap_ratio(a, b, groups, np.random.default_rng(7), 300)
    order = rng.permutation(90)
    again = stats.bootstrap_ratio(a[order], b[order], groups[order], np.random.default_rng(7), 300)
    assert first.low == pytest.approx(again.low)
    assert first.high == pytest.approx(again.high)


def test_an_undefined_ratio_is_undefined_and_an_unsure_one_has_an_open_end():
    rng = np.random.default_rng(0)
    groups = np.arange(4)
    assert stats.bootstrap_ratio([1, 1, 0, 0], [0, 0, 0, 0], groups, rng) == stats.UNDEFINED
    assert stats.bootstrap_ratio([1, 0, 0, 0], [1, -1, 0, 0], groups, rng) == stats.UNDEFINED
    assert stats.bootstrap_ratio([], [], np.zeros(0, dtype=np.intp), rng) == stats.UNDEFINED
    unsure = stats.bootstrap_ratio([1, 0, 0, 0], [1, 0, 0, 0], groups, rng)
    assert unsure == stats.Interval(1.0, None, None), "a third of the draws hold no row with a denominator"
    single = stats.bootstrap_ratio([1, 0], [1, 1], np.zeros(2, dtype=np.intp), rng)
    assert single == stats.Interval(0.5, None, None)
    with pytest.raises(ValueError, match="group codes"):
        stats.bootstrap_ratio([1], [1], groups, rng)


def test_identical_systems_keep_exactly_everything():
    scores = np.array([1, 0, 1, 1, 0, 1] * 20, dtype=float)
    found = stats.bootstrap_ratio(scores, scores, np.arange(120), np.random.default_rng(0), 500)
    assert found == stats.Interval(1.0, 1.0, 1.0)


def test_two_thousand_resamples_of_a_thousand_rows_take_under_a_second():
    rng = np.random.default_rng(0)
    rows = rng.random(1000)
    start = time.process_time()
    stats.bootstrap_ratio(rows, rows + 0.1, np.arange(1000), rng, 2000)
    assert time.process_time() - start < 1.0


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_equals_the_exact_binomial_test(b, c):
    expected = scipy_stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert stats.mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert stats.mcnemar(b, c) == stats.mcnemar(c, b)


def test_mcnemar_closed_forms_and_large_counts():
    assert stats.mcnemar(0, 5) == 2 * 0.5**5
    assert stats.mcnemar(1, 9) == 22 / 1024
    assert stats.mcnemar(6000, 6500) == pytest.approx(scipy_stats.binomtest(6000, 12500).pvalue, rel=1e-6)
    with pytest.raises(ValueError, match="negative"):
        stats.mcnemar(-1, 2)


def energy(distances: np.ndarray, marks: tuple[bool, ...]) -> int:
    """The definition, pair by pair, in twentieths; below 0 it counts as 0."""
    n = len(marks)

    def mean(first: bool, second: bool) -> float:
        pairs = [
            distances[i, j] for i in range(n) for j in range(n) if marks[i] == first and marks[j] == second
        ]
        return float(np.mean(pairs))

    return max(0, round(20 * (2 * mean(True, False) - mean(True, True) - mean(False, False))))


@given(
    st.lists(st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**30)), min_size=1, max_size=3)
)
def test_the_energy_test_is_exact(shapes):
    """Beside every joint way of marking, gone through one by one. The distances make whole energies, so that
    none lies half-way between two twentieths."""
    strata, ways = [], []
    for n, m, seed in shapes:
        m = min(m, n - 1)  # noqa: PLW2901
        upper = np.triu(np.random.default_rng(seed).integers(0, 4, size=(n, n)), 1) * 36
        distances = upper + upper.T
        marks = tuple(i < m for i in range(n))
        strata.append((distances, np.array(marks)))
        ways.append([energy(distances, w) for w in sorted(set(permutations(marks)))])
    observed = sum(energy(d, tuple(map(bool, marks))) for d, marks in strata)
    sums = [sum(way) for way in product(*ways)]
    expected = sum(total >= observed for total in sums) / len(sums)
    assert stats.energy_test(strata) == pytest.approx(expected)


def test_the_energy_test_without_evidence_is_1():
    apart = np.array([[0, 5], [5, 0]])
    assert stats.energy_test([]) == 1.0
    alike = np.zeros((3, 3), dtype=np.int64)
    assert stats.energy_test([(apart, np.array([True, True])), (alike, np.array([True, False, True]))]) == 1.0
    assert stats.energy_test([(apart, np.array([True, False]))]) == 1.0


def test_the_difference_of_two_separate_shares_is_newcombes():
    """Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10: 56/70 less 48/80 is 0.2, from
    0.0524 to 0.3339."""
    found = stats.independent_difference(stats.wilson(56, 70), stats.wilson(48, 80))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert stats.independent_difference(stats.UNDEFINED, stats.wilson(1, 2)) == stats.UNDEFINED
