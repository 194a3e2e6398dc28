"""What `benchmarks/queries.py` trains, and what it makes of the shares."""

from dataclasses import replace

import pytest
import queries
from queries import FOCUSED, FULL, figures, measure, needed

ONE = replace(FULL, seeds=(1,))


def test_the_number_needed_lies_on_a_line_over_the_logarithm():
    assert needed([(1000, 0.8), (4000, 1.0)], 0.9) == (pytest.approx(2000), "")
    assert needed([(1000, 0.8), (2000, 0.9), (4000, 0.85), (8000, 1.0)], 0.9) == (pytest.approx(2000), "")
    assert needed([(1000, 0.95), (2000, 0.99)], 0.9) == (1000, "at most")
    assert needed([(1000, 0.5), (6000, 0.8)], 0.9) == (6000, "more than")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Trains nothing: every method keeps what it is told to, by its budget."""

    def run(shares):
        tried = {method: [] for method in queries.METHODS}

        def student_of(place, method, budget, seed, scale, before):
            tried[method].append((budget, before))
            return tmp_path / method / str(budget)

        def score_of(model, count):
            return 0.5 * (1.0 if model.parent.name == "teacher" else shares[int(model.parent.name)])

        monkeypatch.setattr(queries, "student_of", student_of)
        monkeypatch.setattr(queries, "score_of", score_of)
        return tried, measure(tmp_path, ONE)

    return run


def test_budgets_grow_until_the_share_is_kept_and_the_smallest_is_tried_where_it_may_do(measured):
    tried, kept = measured({750: 0.5, 1500: 0.8, 3000: 0.98})
    assert tried["text"] == [(1500, None), (3000, None)]
    assert tried[FOCUSED] == [(750, None), (1500, "750"), (3000, "1500")]
    assert kept["text"] == [{1500: 0.8, 3000: 0.98}]
    tried, kept = measured({750: 0.6, 1500: 0.92, 3000: 0.95, 6000: 0.96})
    assert tried["text"] == [(1500, None), (750, None), (3000, None), (6000, None)]
    tried, kept = measured({750: 0.91, 1500: 0.97})
    assert tried["text"] == [(1500, None), (750, None)]
    assert tried[FOCUSED] == [(750, None), (1500, "750")]
    rows = {row.what: row for row in figures(kept, ONE)}
    assert rows["text: exchanges for 90%, at most"].value == 750
    assert rows["text: exchanges for 97%"].value == pytest.approx(1500)


def test_a_target_holds_only_where_the_share_was_reached():
    scale = replace(FULL, seeds=(1, 2))
    kept = {"text": [{1500: 0.8, 3000: 1.0}] * 2, "other": [{1500: 0.8, 3000: 0.8, 6000: 0.8}, {750: 0.99}]}
    rows = {row.what: row for row in figures(kept, scale)}
    assert rows["other: share kept with 6,000 exchanges"].unit == "(1 of 2 seeds)"
    worst = rows["other: exchanges for 97%, at most or more than"]
    assert (worst.value, worst.holds, worst.low) == (3375, False, None)
    kept["other"] = [{750: 0.99}] * 2
    rows = {row.what: row for row in figures(kept, scale)}
    assert rows["other: exchanges for 97%, at most"].holds
