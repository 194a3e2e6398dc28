"""From held-out answers of student and teacher to a file that says which answers of the student are kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from stillhouse.cascade.drift import STRANGE, upper_rate
from stillhouse.cascade.risk import LEVEL, MOST, Guarantee, control, families, thresholds_of
from stillhouse.cascade.scores import SIGNALS, Scale, Sketch, Token, fit, risks, signals_of, unfamiliar
from stillhouse.errors import UsageError
from stillhouse.stats import Codes, Floats, Marks, clustered_share
from stillhouse.text import normalise

FORM = "stillhouse cascade 1"
FITTED = 3  # one row in so many is fitted on; the others set the threshold
POINTS = 20  # of the curve
GAINS = 10.0  # more caution with gains than with losses: signals tell less of a luck than of a fault


@dataclass(frozen=True, slots=True)
class Rows:
    """N held-out prompts, of which both answers are known: the student's signals [N, len(SIGNALS)], what
    keeping it loses [N], both scores [N], and whether the two texts differ [N]. `signed`: the losses are
    differences of scores in [-1, 1]; else 1 where the texts differ."""

    ids: tuple[str, ...]
    families: tuple[str, ...]
    signals: Floats
    losses: Floats
    teacher: Floats
    student: Floats
    differs: Marks
    signed: bool

    def part(self, chosen: Marks | Codes) -> Rows:
        """Some of the rows, by marks or by their numbers."""
        at = np.arange(len(self.ids))[chosen]
        return Rows(
            tuple(self.ids[i] for i in at),
            tuple(self.families[i] for i in at),
            self.signals[at],
            self.losses[at],
            self.teacher[at],
            self.student[at],
            self.differs[at],
            self.signed,
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a gateway needs to decide. A prompt is unfamiliar above `strange`, which at most a share
    `usual_strange` of such prompts is; of answers that are kept the teacher differs from at most a share
    `usual_differing`. `student` names the student's weights."""

    student: str
    scale: Scale
    gain: Scale | None  # of the chance that only the student is right; where gains count
    sketch: Sketch
    promise: Guarantee
    families: Mapping[str, Guarantee]
    most: float
    level: float
    signed: bool
    strange: float
    usual_strange: float
    usual_differing: float

    def promised(self, family: str | None) -> Guarantee:
        """The promise for all, or of one family. Raises UsageError for one that is not there."""
        if family is None:
            return self.promise
        if family not in self.families:
            raise UsageError(
                f"the calibration has no family {family!r}",
                f"it has {', '.join(self.families) or 'none'}",
                "name one of these, or leave `family` out",
            )
        return self.families[family]


def risk_of(calibration: Calibration, signals: Floats) -> Floats:
    """The chance of a loss, less that of a gain where gains count."""
    lost = risks(calibration.scale, signals)
    return lost if calibration.gain is None else lost - risks(calibration.gain, signals)


def differ(first: str, second: str) -> bool:
    """But for case and white space."""
    return normalise(first) != normalise(second)


def judge(
    calibration: Calibration, tokens: Sequence[Token], text: str, finish_reason: str, prompt: str
) -> tuple[float, bool]:
    """The risk of one answer, and whether its prompt is unfamiliar."""
    strange = unfamiliar(calibration.sketch, prompt)
    signals = signals_of(tokens, text, finish_reason, strange)
    return float(risk_of(calibration, signals)), sum(strange) / 2 > calibration.strange


def is_fitted_on(id: str) -> bool:
    """Whether a row belongs to the third that the score is fitted on; by its id, so that it always does."""
    return int.from_bytes(blake2b(id.encode(), digest_size=4).digest()) % FITTED == 0


def calibrate(
    rows: Rows, sketch: Sketch, student: str, most: float = MOST, level: float = LEVEL
) -> Calibration:
    """Fit the score on a third of the rows and set the threshold by the others.

    Raises UsageError where there are none of either.
    """
    fitted = np.array([is_fitted_on(id) for id in rows.ids], dtype=np.bool_)
    first, second = rows.part(fitted), rows.part(~fitted)
    if not first.ids or not second.ids:
        raise UsageError(
            "there are too few rows to calibrate on",
            f"{len(rows.ids)} test prompts were answered by both student and teacher",
            "raise `evaluate.count`, or give more test prompts, and evaluate again",
        )
    scale = fit(first.signals, np.maximum(first.losses, 0.0))
    gain = fit(first.signals, np.maximum(-first.losses, 0.0), GAINS) if rows.signed else None
    ordered, risk = (
        risks(scale, part.signals) - (0.0 if gain is None else risks(gain, part.signals))
        for part in (first, second)
    )
    thresholds = thresholds_of(ordered)
    promise = control(risk, second.losses, thresholds, rows.signed, most, level)
    each = families(risk, second.losses, second.families, thresholds, rows.signed, most, level)
    strange = float(np.quantile(_strangeness(first.signals), 1 - STRANGE, method="higher"))
    above = _strangeness(second.signals) > strange
    kept = risk <= promise.threshold if promise.threshold is not None else np.zeros(len(risk), np.bool_)
    return Calibration(
        student,
        scale,
        gain,
        sketch,
        promise,
        each if len(each) > 1 else {},
        most,
        level,
        rows.signed,
        strange,
        upper_rate(int(above.sum()), len(above)),
        upper_rate(int((second.differs & kept).sum()), int(kept.sum())),
    )


def _strangeness(signals: Floats) -> Floats:
    found: Floats = (
        signals[:, SIGNALS.index("unfamiliar words")] + signals[:, SIGNALS.index("unfamiliar pairs")]
    ) / 2
    return found


def curve(rows: Rows, order: Floats) -> list[dict[str, Any]]:
    """The cascade's score when those of highest `order` [N] are deferred, for shares from 0 to 1, with 95 %
    intervals of independent rows. Of a share between two rows the nearer is taken."""
    by = np.argsort(-order, kind="stable")
    points = []
    for step in range(POINTS + 1):
        count = round(step * len(by) / POINTS)
        scores = rows.student.copy()
        scores[by[:count]] = rows.teacher[by[:count]]
        span = clustered_share(scores, np.arange(len(scores), dtype=np.intp))
        points.append({"deferred": step / POINTS, "score": span.value, "low": span.low, "high": span.high})
    return points


def area(losses: Floats, order: Floats) -> float:
    """What is lost less, on average over all shares deferred, than by deferring at random."""
    gains = losses[np.argsort(-order, kind="stable")]
    path = np.concatenate([[0.0], np.cumsum(gains)]) / len(gains)
    return float(((path[1:] + path[:-1]) / 2).mean() - path[-1] / 2)


def mean_logprob_order(rows: Rows) -> Floats:
    """The plain rule that the score is held against: deferred by the lowest mean log-probability."""
    return rows.signals[:, SIGNALS.index("mean surprise")]


def held_back(rows: Rows) -> Rows:
    """The rows that no score was fitted on."""
    return rows.part(np.array([not is_fitted_on(id) for id in rows.ids], dtype=np.bool_))


def written(calibration: Calibration) -> dict[str, Any]:
    told = asdict(calibration)
    told["sketch"] = base64.b64encode(calibration.sketch.bits).decode()
    return {"form": FORM, "signals": list(SIGNALS), **told}


def read(told: bytes, where: str) -> Calibration:
    """Raises UsageError for a file that is none, or is of another version."""
    mend = "make it again: `stillhouse cascade calibrate RUN`"
    try:
        found = json.loads(told)
        if found.pop("form") != FORM or found.pop("signals") != list(SIGNALS):
            raise UsageError(f"{where} is of another version", f"this stillhouse reads {FORM!r}", mend)
        found["scale"] = _scale(found["scale"])
        found["gain"] = None if found["gain"] is None else _scale(found["gain"])
        found["sketch"] = Sketch(base64.b64decode(found["sketch"], validate=True))
        found["promise"] = Guarantee(**found["promise"])
        found["families"] = {name: Guarantee(**each) for name, each in found["families"].items()}
        return Calibration(**found)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{where} is no calibration of a cascade", str(error), mend) from error


def _scale(told: Mapping[str, Any]) -> Scale:
    return Scale(tuple(told["mean"]), tuple(told["weight"]), told["bias"])
