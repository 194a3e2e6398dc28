"""Traffic that changes, and traffic that does not: when the alarm comes, and what is kept after it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from cascade_pool import Pool
from rows import DATA, Row

from stillhouse.cascade import drift
from stillhouse.cascade.calibration import calibrate
from stillhouse.cascade.scores import SIGNALS, sketch_of, unfamiliar
from stillhouse.models.embedded import world
from stillhouse.pipeline.cascading import asked_text
from stillhouse.stats import Floats

NEW = 0.2  # share of the new kind in the traffic
STATIONARY, LENGTH = 50, 10_000
SEED = 17


def drift_rows(folder: Path, run: Path, pool: Pool, quick: bool) -> list[Row]:
    """The new kind are queries of CLINC150: short questions of which the student knows nothing."""
    source = DATA / "intents" / "data_full.json"
    if not source.exists():
        return []
    sketch = sketch_of(asked_text(prompt) for prompt in world.prompts("train", 6000, 1))
    calibration = calibrate(pool.rows, sketch, "desk")
    usual = strangeness(pool.rows.signals) > calibration.strange
    queries = [text for text, _ in json.loads(source.read_text())["test"]]
    other = np.array([sum(unfamiliar(sketch, text)) / 2 for text in queries]) > calibration.strange
    rng, full = np.random.default_rng(SEED), not quick
    fresh = drift.watch(calibration.usual_strange, calibration.usual_differing)

    delays, after = [], []
    for _ in range(40 if quick else 200):
        state, kept = fresh, []
        for _ in range(1000):
            new = bool(rng.random() < NEW)
            strange = bool(rng.choice(other if new else usual))
            deferred = drift.must_defer(state, strange)
            if state.alarm is not None and new:
                kept.append(not deferred)
            state = drift.seen(state, strange, deferred)
        delays.append(1000 if state.alarm is None else state.alarm)
        after.append(float(np.mean(kept)) if kept else 1.0)
    runs, length = (3, 2000) if quick else (STATIONARY, LENGTH)
    alarms = 0
    for _ in range(runs):
        state = fresh
        for strange in rng.choice(usual, length):
            state = drift.seen(state, bool(strange), False)
        alarms += state.alarm is not None
    late = float(np.quantile(delays, 0.95))
    return [
        Row("drift: usual prompts that are unfamiliar", float(usual.mean()), ""),
        Row("drift: prompts of the new kind that are", float(other.mean()), ""),
        Row("drift: requests until the alarm, median", float(np.median(delays)), ""),
        Row(
            "drift: requests until the alarm, 95 of 100",
            late,
            "",
            target="<= 200" if full else None,
            holds=late <= 200 if full else None,
        ),
        Row("drift: prompts of the new kind still kept after it", float(np.mean(after)), ""),
        Row(
            f"drift: alarms in {runs} runs of {length:,} without a change",
            alarms,
            "",
            target="0" if full else None,
            holds=alarms == 0 if full else None,
        ),
    ]


def strangeness(signals: Floats) -> Floats:
    words, pairs = (signals[:, SIGNALS.index(f"unfamiliar {what}")] for what in ("words", "pairs"))
    found: Floats = (words + pairs) / 2
    return found
