"""Paired intervals, margins, tests and calibration against likelihoods gone through one by one, closed forms
and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from intervals import BEFORE, Truth, draw
from scipy import optimize
from scipy import stats as scipy_stats

from stillhouse import stats
from stillhouse.stats.paired import difference_score, ratio_score

counts = st.integers(0, 40)
tables = st.builds(
    lambda both, first, second, neither: stats.Table(both + first + second + neither, both, first, second),
    counts, counts, counts, counts,
).filter(lambda table: table.both + table.second_only > 0 and table.both + table.first_only > 0)  # fmt: skip


def answers(both, first_only, second_only, neither):
    """Scores of two systems, and every row a group of its own."""
    first = np.array([1.0] * (both + first_only) + [0.0] * (second_only + neither))
    second = np.array([1.0] * both + [0.0] * first_only + [1.0] * second_only + [0.0] * neither)
    return first, second, np.arange(len(first))


def most_likely(table, cells):
    """The likeliest cells of a one-parameter family of tables, found by search."""
    seen = np.array(
        [
            table.both,
            table.first_only,
            table.second_only,
            table.n - table.both - table.first_only - table.second_only,
        ]
    )

    def loss(x):
        chances = cells(x)
        if min(chances) < 0:
            return 1e9
        with np.errstate(divide="ignore"):
            logs = np.log(chances)
        return -sum(n * log for n, log in zip(seen, logs, strict=True) if n)

    grid = np.linspace(0, 1, 4001)
    losses = [loss(x) for x in grid]
    best = int(np.argmin(losses))
    low, high = grid[max(0, best - 1)], grid[min(4000, best + 1)]
    found = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return cells(found.x if found.fun <= losses[best] else grid[best])


@settings(deadline=None, max_examples=30)
@given(tables, st.floats(0.3, 2.5))
def test_the_ratio_score_has_the_variance_of_the_likeliest_table_with_that_ratio(table, ratio):
    seen = (table.both + table.first_only + table.second_only) / table.n  # unchanged by the restriction

    def cells(first_only):  # both + first = ratio * (both + second), all three sum to `seen`
        share = first_only * seen
        second_only = seen * (1 - ratio) + ratio * share
        return (seen - share - second_only, share, second_only, 1 - seen)

    _, first_only, second_only, _ = most_likely(table, cells)
    assume(first_only + second_only > 1e-6)
    distance = table.both + table.first_only - ratio * (table.both + table.second_only)
    variance = table.n * ratio * (first_only + second_only)
    score, skewness = ratio_score(table, ratio)
    assert score == pytest.approx(distance / math.sqrt(variance), rel=1e-3, abs=1e-3)
    both = seen - first_only - second_only
    third = table.n * (both * (1 - ratio) ** 3 + first_only - second_only * ratio**3)
    assert skewness == pytest.approx(np.clip(third / variance**1.5, -1, 1), rel=1e-2, abs=1e-2)


@settings(deadline=None, max_examples=30)
@given(tables, st.floats(-0.6, 0.6))
def test_the_difference_score_has_the_variance_of_the_likeliest_table_with_that_difference(table, gap):
    # Beside the difference the pooled rest is free: its split does not matter to the likelihood's maximum.
    rest = table.n - table.first_only - table.second_only
    pooled = stats.Table(table.n, rest, table.first_only, table.second_only)

    def cells(second_only):
        return (1 - 2 * second_only - gap, second_only + gap, second_only, 0.0)

    _, first_only, second_only, _ = most_likely(pooled, cells)
    variance = table.n * (first_only + second_only - gap**2)
    assume(variance > 1e-6)
    distance = table.first_only - table.second_only - table.n * gap
    assert difference_score(table, gap) == pytest.approx(distance / math.sqrt(variance), rel=1e-3, abs=1e-3)


def test_systems_that_never_disagree_get_an_interval_of_the_width_that_so_few_rows_leave():
    """All alike on n rows: at the ends the statistic is z, A / (A + z^2) and its inverse."""
    first, second, rows = answers(57, 0, 0, 3)
    found = stats.paired_ratio(first, second, rows)
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    assert found.value == 1.0
    assert found.low == pytest.approx(60 * 0.95 / (60 * 0.95 + z2), abs=1e-9)
    assert found.high == pytest.approx(1 / found.low)
    apart = stats.paired_difference(first, second, rows)
    assert (apart.low, apart.high) == (pytest.approx(-z2 / (60 + z2)), pytest.approx(z2 / (60 + z2)))


@given(tables)
def test_the_interval_holds_its_estimate_and_turns_over_with_the_systems(table):
    neither = int(table.n - table.both - table.first_only - table.second_only)
    first, second, rows = answers(int(table.both), int(table.first_only), int(table.second_only), neither)
    assume(len(rows) > 1)
    one, other = stats.paired_ratio(first, second, rows), stats.paired_ratio(second, first, rows)
    assert 0 <= one.low <= one.value <= one.high
    assert (one.low, one.high) == (pytest.approx(1 / other.high), pytest.approx(1 / other.low))
    gap, back = stats.paired_difference(first, second, rows), stats.paired_difference(second, first, rows)
    assert -1 <= gap.low <= gap.value <= gap.high <= 1
    assert gap.low == pytest.approx(-back.high, abs=1e-9)


def test_copied_rows_add_no_certainty_to_a_ratio():
    first, second, rows = answers(80, 3, 8, 9)
    alone = stats.paired_ratio(first, second, rows)
    copied = stats.paired_ratio(*(np.repeat(each, 10) for each in (first, second, rows)))
    assert (copied.low, copied.high) == (
        pytest.approx(alone.low, abs=0.003),
        pytest.approx(alone.high, abs=0.003),
    )
    naive = stats.paired_ratio(np.repeat(first, 10), np.repeat(second, 10), np.arange(1000))
    assert copied.high - copied.low > 2.5 * (naive.high - naive.low)


def test_fiellers_interval_worked_by_hand_and_at_its_edges():
    """200 rows alone and half a row each way: the roots of the quadratic in the moments of 201 rows."""
    rng = np.random.default_rng(6)
    top, bottom = rng.choice([-1.0, 0.0, 1.0], 200), rng.choice([0.0, 1.0, 1.0], 200)
    found = stats.fieller_ratio(top, bottom, np.arange(200))
    weights = np.array([1.0] * 200 + [0.5, 0.5])
    rows = np.array([np.append(top, [1, 0]), np.append(bottom, [0, 1])])
    means, moments = np.average(rows, axis=1, weights=weights), np.cov(rows, aweights=weights, ddof=0)
    scaled = scipy_stats.norm.ppf(0.975) ** 2 / 201
    (c, b), (_, a) = np.outer(means, means) - scaled * moments
    roots = np.sort(np.roots([a, -2 * b, c]))
    assert (found.low, found.high) == (pytest.approx(roots[0]), pytest.approx(roots[1]))
    none = np.zeros(0, dtype=np.intp)
    assert stats.fieller_ratio([], [], none) == stats.UNDEFINED
    assert stats.fieller_ratio([1, 1], [-1, 0], np.arange(2)) == stats.UNDEFINED
    assert stats.fieller_ratio([1, 1], [1, 1], np.zeros(2, dtype=np.intp)) == stats.Interval(1.0, None, None)
    unbounded = stats.fieller_ratio([1, -1, 1, 0], [1, -1, 1, 0], np.arange(4))
    assert unbounded == stats.Interval(1.0, None, None), "the denominator may as well be nothing"
    alike = stats.fieller_ratio(np.ones(50), np.ones(50), np.arange(50))
    assert alike.low < 1 < alike.high


def test_a_ratio_at_the_edges():
    none = np.zeros(0, dtype=np.intp)
    assert stats.paired_ratio([], [], none) == stats.UNDEFINED
    assert stats.paired_difference([], [], none) == stats.UNDEFINED
    assert stats.paired_ratio([1, 0], [0, 0], np.arange(2)) == stats.UNDEFINED
    assert stats.paired_ratio([1, 0], [1, 1], np.zeros(2, dtype=np.intp)) == stats.Interval(0.5, None, None)
    assert stats.paired_difference([1], [0], np.zeros(1, dtype=np.intp)) == stats.Interval(1.0, None, None)
    lost = stats.paired_ratio(np.zeros(50), np.ones(50), np.arange(50))
    assert (lost.value, lost.low) == (0.0, 0.0)
    assert 0.03 < lost.high < 0.1


@pytest.mark.parametrize(
    "truth",
    [
        Truth(0.95, 0.94, 0.98, 150),
        Truth(0.95, 0.93, 0.97, 600),
        Truth(0.9, 0.9, 0.95, 30, 10, 4.0),
        Truth(0.95, 0.93, 0.98, 100, 5, 2.0),
    ],
    ids=str,
)
def test_intervals_cover_the_truth_and_the_verdict_errs_within_its_level(truth):
    """A smaller version of benchmarks/intervals.py: 500 runs, so 93 to 97 % within a standard error."""
    rng = np.random.default_rng(4)
    covered = apart = gained = wrong = 0
    gap_truth = (truth.accuracy * truth.kept - BEFORE) / (truth.accuracy - BEFORE)
    for _ in range(500):
        student, teacher, codes = draw(rng, truth)
        span = stats.paired_ratio(student, teacher, codes)
        gap = stats.paired_difference(student, teacher, codes)
        before = (rng.random(len(codes)) < BEFORE).astype(float)
        closed = stats.fieller_ratio(student - before, teacher - before, codes)
        gained += closed.low <= gap_truth <= closed.high
        covered += span.low <= truth.kept <= span.high
        apart += gap.low <= truth.accuracy * (truth.kept - 1) <= gap.high
        wrong += stats.decide(student, teacher, codes, 1 - truth.kept + 1e-9).ruling == "non-inferior"
    assert 0.92 <= covered / 500 <= 0.98
    assert 0.92 <= apart / 500 <= 0.98
    assert 0.92 <= gained / 500 <= 0.98
    assert wrong / 500 <= 0.04


def test_fractions_are_as_certain_as_they_are():
    """Parts of four fields each: narrower than right and wrong, and the truth is covered still."""
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(300):
        teacher = rng.binomial(4, 0.95, 200) / 4
        student = rng.binomial(4, 0.9, 200) / 4
        span = stats.paired_ratio(student, teacher, np.arange(200))
        covered += span.low <= 0.9 / 0.95 <= span.high
    assert 0.91 <= covered / 300 <= 0.98
    assert span.high - span.low < 0.08


def test_the_verdicts_of_three_plain_cases_and_of_none():
    good, bad = answers(950, 5, 6, 39), answers(800, 2, 150, 48)
    assert stats.decide(*good, margin=0.05) == stats.Decision("non-inferior", 0)
    assert stats.decide(*bad, margin=0.05) == stats.Decision("inferior", 0)
    few = stats.decide(*answers(45, 1, 2, 2), margin=0.05)
    assert few.ruling == "not decided"
    assert 20 < few.more < 2000
    at_the_margin = stats.decide(*answers(19, 0, 1, 0), margin=0.05)
    assert at_the_margin == stats.Decision("not decided", None)
    assert stats.decide(np.zeros(5), np.zeros(5), np.arange(5), 0.05) is None
    assert stats.decide(np.ones(5), np.ones(5), np.zeros(5, dtype=np.intp), 0.05) is None


@pytest.mark.parametrize(
    ("accuracy", "agreement", "ratio", "margin"),
    [(0.9, 0.9, 1.0, 0.05), (0.95, 0.95, 0.99, 0.04), (0.8, 0.85, 0.85, 0.05)],
)
def test_the_planned_number_of_prompts_decides_four_times_of_five(accuracy, agreement, ratio, margin):
    n = stats.prompts_needed(accuracy, agreement, margin, ratio)
    rng = np.random.default_rng(2)
    wanted = "non-inferior" if ratio > 1 - margin else "inferior"
    decided = sum(
        stats.decide(*draw(rng, Truth(accuracy, agreement, ratio, n)), margin).ruling == wanted
        for _ in range(400)
    )
    assert 0.74 <= decided / 400 <= 0.86
    if ratio == 1.0:
        planned = stats.decidable_margin(stats.expected_table(n, accuracy, agreement))
        assert planned == pytest.approx(margin, rel=0.01)


def test_planning_says_so_where_no_number_would_do_or_the_assumptions_contradict():
    assert stats.prompts_needed(0.9, 0.9, 0.05, ratio=0.95) is None
    assert stats.decidable_margin(stats.expected_table(2, 0.9, 0.9)) > 0.6
    with pytest.raises(ValueError, match="no table"):
        stats.expected_table(100, 0.9, 0.99, ratio=0.9)
    with pytest.raises(ValueError, match="no table"):
        stats.expected_table(100, 1.0, 0.9)
    wide, narrow = (stats.decidable_margin(stats.expected_table(n, 0.9, 0.9)) for n in (100, 1000))
    assert narrow < wide


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40))
def test_without_groups_sign_flips_are_mcnemars_exact_test(differences):
    flipped = stats.sign_flip(differences, np.arange(len(differences)))
    assert flipped == pytest.approx(stats.mcnemar(differences.count(1.0), differences.count(-1.0)))


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 7)), min_size=1, max_size=30))
def test_sign_flips_of_groups_equal_going_through_all_of_them(rows):
    values, groups = [value / 2 for value, _ in rows], np.array([group for _, group in rows])
    sums = [sum(v for v, (_, g) in zip(values, rows, strict=True) if g == group) for group in range(8)]
    observed = abs(sum(sums))
    ways = [
        abs(sum(map(math.prod, zip(signs, sums, strict=True))))
        for signs in itertools.product((1, -1), repeat=8)
    ]
    expected = sum(way >= observed - 1e-9 for way in ways) / len(ways)
    assert stats.sign_flip(values, groups) == pytest.approx(expected, abs=1e-9)


def test_sign_flips_without_a_difference_are_1_and_large_sums_are_handled():
    assert stats.sign_flip([], np.zeros(0, dtype=np.intp)) == 1.0
    assert stats.sign_flip([0.0, 0.0], np.arange(2)) == 1.0
    rng = np.random.default_rng(0)
    values = rng.normal(0.1, 1, 400)
    z = values.sum() / math.sqrt(float(values @ values))
    assert stats.sign_flip(values, np.arange(400)) == pytest.approx(2 * scipy_stats.norm.sf(z), rel=0.05)


def test_holms_adjustment_worked_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([0.2]) == [0.2], "a family of its own is not adjusted"
    assert stats.holm([None]) == [None]
    assert stats.holm([]) == []


def test_calibration_worked_by_hand():
    confidence, right = np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, False, True, True])
    assert stats.expected_calibration_error(confidence, right, bins=2) == pytest.approx((0.4 + 0.4) / 2)
    assert stats.brier_score(confidence, right) == pytest.approx((0.01 + 0.81 + 0.16 + 0.16) / 4)
    wanted = -(math.log(0.9) + math.log(0.1) + 2 * math.log(0.6)) / 4
    assert stats.negative_log_likelihood(confidence, right) == pytest.approx(wanted)
    assert stats.negative_log_likelihood(np.array([0.0]), np.array([True])) == math.inf
    assert stats.negative_log_likelihood(np.array([1.0]), np.array([True])) == 0.0


def test_calibration_of_nothing_is_unknown_and_nonsense_is_refused():
    none, no = np.zeros(0), np.zeros(0, dtype=bool)
    for figure in (stats.expected_calibration_error, stats.brier_score, stats.negative_log_likelihood):
        assert figure(none, no) is None
        with pytest.raises(ValueError, match="probability"):
            figure(np.array([1.5]), np.array([True]))
        with pytest.raises(ValueError, match="outcomes"):
            figure(np.array([0.5]), no)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80), st.randoms())
def test_the_calibration_error_does_not_hang_on_the_order_of_rows(rows, random):
    def error(of):
        return stats.expected_calibration_error(np.array([c for c, _ in of]), np.array([r for _, r in of]))

    mixed = list(rows)
    random.shuffle(mixed)
    assert 0 <= error(rows) <= 1
    assert error(mixed) == pytest.approx(error(rows), abs=1e-12)


def test_a_model_that_means_what_it_says_is_calibrated():
    rng = np.random.default_rng(1)
    confidence = rng.beta(4, 1, 20_000)
    right = rng.random(20_000) < confidence
    assert stats.expected_calibration_error(confidence, right) < 0.015
    assert stats.expected_calibration_error(confidence**0.25, right) > 0.08
    assert stats.brier_score(confidence, right) < stats.brier_score(confidence**0.25, right)


def test_what_is_not_decided_always_needs_more_prompts():
    """The interval allows for skewness and the power does not: here that seemed to call for one fewer."""
    teacher, student = np.ones(9), np.ones(9)
    teacher[5] = 0.0
    decision = stats.decide(student, teacher, np.array([0, 3, 0, 3, 1, 0, 1, 3, 1]), 0.49)
    assert decision is not None
    assert decision.ruling == "not decided"
    assert decision.more == 1
