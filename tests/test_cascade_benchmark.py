"""What the figures of benchmarks/cascade.py rest on."""

import numpy as np
import pytest
from cascade_drift import Kind, streamed
from cascade_pool import NO_SKETCH, Pool, drawn, judged_by, kept_by

from stillhouse.cascade.calibration import Rows, calibrate, is_fitted_on
from stillhouse.cascade.risk import least_rows
from stillhouse.cascade.scores import SIGNALS

COUNT = 1500


@pytest.fixture(scope="module")
def pool():
    """Answers that are lost the likelier the less sure they are; one prompt in 200 is unfamiliar."""
    rng = np.random.default_rng(3)
    signals = np.zeros((COUNT, len(SIGNALS)))
    signals[:, SIGNALS.index("mean surprise")] = rng.normal(size=COUNT)
    signals[:, SIGNALS.index("unfamiliar words")] = rng.random(COUNT) < 0.005
    lost = (rng.random(COUNT) < 0.3 / (1 + np.exp(6 - 4 * signals[:, 0]))).astype(float)
    ids, right = tuple(f"row-{n}" for n in range(COUNT)), np.ones(COUNT)
    rows = Rows(ids, ("one",) * COUNT, signals, lost, right, 1 - lost, lost > 0, False)
    return Pool(rows, lost, right, 10 * right)


def of(strange, sure, lost):
    """A thousand requests of a kind."""
    marks = (np.arange(1000) < 1000 * part for part in (strange, sure))
    return Kind(*marks, np.full(1000, lost), np.zeros(1000, np.bool_))


def test_what_judges_a_promise_never_fitted_a_score(pool):
    truth = judged_by(pool)
    assert 0.6 * COUNT < len(truth.rows.ids) < 0.73 * COUNT
    assert not any(map(is_fitted_on, truth.rows.ids))
    calibration = calibrate(drawn(pool, np.random.default_rng(1), 3000).rows, NO_SKETCH, "")
    kept = kept_by(calibration, truth.rows.signals)
    assert 0 < np.where(kept, truth.rows.losses, 0.0).mean() < truth.rows.losses.mean()


def test_a_stream_ends_with_the_last_label_and_counts_what_is_kept_until_then(pool):
    calibration = calibrate(pool.rows, NO_SKETCH, "")
    usual, new = of(0.0, 1.0, 0.0), of(0.9, 1.0, 1.0)  # a tenth of the new kind seems familiar
    told = streamed(calibration, usual, new, 0.2, 10_000, np.random.default_rng(5))
    assert told.alarm is not None
    assert told.labelled is not None
    assert told.alarm < 200
    assert len(told.lost) == told.labelled - told.alarm
    assert sum(told.lost) == pytest.approx(0.02 * len(told.lost), rel=0.5)
    unfamiliar = 0.18 * len(told.lost)
    assert unfamiliar == pytest.approx(least_rows(), rel=0.2)


def test_a_stream_that_does_not_change_gives_no_alarm(pool):
    calibration = calibrate(pool.rows, NO_SKETCH, "")
    usual = of(0.005, 0.8, 0.0)
    told = streamed(calibration, usual, usual, 0.0, 3000, np.random.default_rng(5))
    assert told.alarm is None
    assert told.lost == ()
