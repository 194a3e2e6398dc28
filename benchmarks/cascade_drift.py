"""Traffic that changes, and traffic that does not: when the alarm comes, and what is lost after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cascade_desk import learned, student_signals
from cascade_pool import CALIBRATED, NO_SKETCH, SEED, Pool, drawn, judged_by, kept_by
from rows import DATA, Row

from stillhouse.cascade import drift
from stillhouse.cascade.calibration import Calibration, calibrate
from stillhouse.cascade.risk import MOST
from stillhouse.cascade.scores import SIGNALS, sketch_of
from stillhouse.pipeline.cascading import asked_text
from stillhouse.records import Message, Prompt
from stillhouse.stats import Floats, Marks

NEW = 0.2  # share of the new kind in the traffic
AUDIT = 0.02  # of sure answers, as the gateway has it by default
STREAMS, STATIONARY, LENGTH = 200, 50, 10_000
QUERIES = 1000  # of the new kind that the student answers


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind, as a calibration sees them: unfamiliar, sure enough to be kept, what keeping
    them loses, and whether the teacher answers otherwise [N]."""

    strange: Marks
    sure: Marks
    losses: Floats
    differs: Marks


@dataclass(frozen=True, slots=True)
class Stream:
    """`alarm` the number of the request that gave it, `labelled` of the one that gave the last label that was
    asked for; both None where they did not come. `lost`: of each request between the two."""

    alarm: int | None
    labelled: int | None
    lost: tuple[float, ...]


def drift_rows(folder: Path, run: Path, pool: Pool, quick: bool) -> list[Row]:
    """The new kind are queries of CLINC150: short questions of which the student knows nothing, so that every
    answer to one that is kept counts as lost. Each stream has a calibration of its own, drawn from the pool,
    and its usual requests from those rows of the pool that no score is fitted on."""
    source = DATA / "intents" / "data_full.json"
    if not source.exists():
        return []
    rng, truth, full = np.random.default_rng(SEED), judged_by(pool), not quick
    queries = new_kind(source, 100 if quick else QUERIES)
    sketch = sketch_of(map(asked_text, learned()))
    signals = student_signals(folder / "new.npz", run / "student", queries, sketch)[0]
    shares, streams = [], []
    for _ in range(20 if quick else STREAMS):
        calibration = calibrate(drawn(pool, rng, CALIBRATED).rows, NO_SKETCH, "desk")
        new, usual = new_of(calibration, signals), usual_of(calibration, truth)
        shares.append((usual.strange.mean(), new.strange.mean(), new.sure.mean()))
        streams.append(streamed(calibration, usual, new, NEW, LENGTH, rng))
    alarms, count = 0, 3 if quick else STATIONARY
    for _ in range(count):
        calibration = calibrate(drawn(pool, rng, CALIBRATED).rows, NO_SKETCH, "desk")
        usual = usual_of(calibration, truth)
        alarms += streamed(calibration, usual, usual, 0.0, 2000 if quick else LENGTH, rng).alarm is not None
    late = [float("inf") if each.alarm is None else each.alarm for each in streams]
    labelled = [float("inf") if each.labelled is None else each.labelled for each in streams]
    lost = [float(np.mean(each.lost)) for each in streams if each.lost]
    usually, unfamiliar, sure = np.mean(shares, axis=0)
    return [
        Row("drift: usual prompts that are unfamiliar", float(usually), ""),
        Row("drift: prompts of the new kind that are", float(unfamiliar), ""),
        Row("drift: answers to them that would be kept before the alarm", float(sure), ""),
        *_within("drift: requests until the alarm", late, 200, full),
        Row("drift: requests until the last label needed, median", float(np.median(labelled)), ""),
        Row(
            "drift: lost between the two",
            float(np.mean(lost)) if lost else None,
            "",
            *(np.quantile(lost, [0.025, 0.975]).tolist() if lost else ()),
            target=f"<= {MOST:g}" if full else None,
            holds=bool(lost) and float(np.mean(lost)) <= MOST if full else None,
        ),
        Row(
            f"drift: alarms in {count} runs of {2000 if quick else LENGTH:,} without a change",
            alarms,
            "",
            target="0" if full else None,
            holds=alarms == 0 if full else None,
        ),
    ]


def _within(what: str, values: list[float], most: int, full: bool) -> list[Row]:
    """Median, and the longest of all, which is what has to hold."""
    longest = max(values)
    return [
        Row(f"{what}, median", float(np.median(values)), ""),
        Row(
            f"{what}, longest of {len(values)}",
            longest,
            "",
            target=f"<= {most}" if full else None,
            holds=longest <= most if full else None,
        ),
    ]


def new_kind(source: Path, count: int) -> list[Prompt]:
    rows = json.loads(source.read_text())["test"]
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:count]
    return [
        Prompt(f"new-{n:05d}", (Message("user", rows[n][0]),), "new", "", rows[n][1], "exact") for n in chosen
    ]


def new_of(calibration: Calibration, signals: Floats) -> Kind:
    strange, sure = strangeness(signals) > calibration.strange, kept_by(calibration, signals)
    return Kind(strange, sure, np.ones(len(signals)), np.ones(len(signals), np.bool_))


def usual_of(calibration: Calibration, pool: Pool) -> Kind:
    rows = pool.rows
    strange, sure = strangeness(rows.signals) > calibration.strange, kept_by(calibration, rows.signals)
    return Kind(strange, sure, rows.losses, rows.differs)


def streamed(
    calibration: Calibration, usual: Kind, new: Kind, share: float, length: int, rng: np.random.Generator
) -> Stream:
    """At most `length` requests, decided as the gateway decides them, until the labels are there."""
    state = drift.watch(calibration.usual_strange, calibration.usual_differing)
    is_new, audit = rng.random(length) < share, rng.random(length) < AUDIT
    at_new, at_usual = (rng.integers(0, len(kind.sure), length) for kind in (new, usual))
    lost: list[float] = []
    for n in range(length):
        kind, at = (new, at_new[n]) if is_new[n] else (usual, at_usual[n])
        strange = bool(kind.strange[at])
        sure = bool(kind.sure[at]) and not drift.must_defer(state, strange)
        kept = sure and not audit[n]
        if state.alarm is not None:
            lost.append(float(kind.losses[at]) if kept else 0.0)
        state = drift.seen(state, strange, not kept)
        if sure and audit[n]:
            state = drift.audited(state, bool(kind.differs[at]))
        if state.alarm is not None and state.owed == 0:
            return Stream(state.alarm, n + 1, tuple(lost))
    return Stream(state.alarm, None, tuple(lost))


def strangeness(signals: Floats) -> Floats:
    words, pairs = (signals[:, SIGNALS.index(f"unfamiliar {what}")] for what in ("words", "pairs"))
    found: Floats = (words + pairs) / 2
    return found
