"""Is the traffic still that of the calibration? Alarms with a stated rate of false ones.

Two things are counted that have a known rate while nothing changes: prompts that are unfamiliar (further from
the training prompts than all but a few of the calibration's), and audited answers that were kept though the
teacher answers otherwise. For each, evidence that the rate has risen is gathered by an e-detector (Shin,
Ramdas and Rinaldo 2023, arXiv:2203.03532) of the kind of Shiryaev and Roberts: M becomes (M + 1) * e, where e
is the likelihood ratio of a raised rate to the usual one. While the rate is at most the usual one, M less the
number of steps is a supermartingale, so the chance of M reaching `CERTAIN` within t steps is at most t /
CERTAIN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from stillhouse.cascade.risk import LEVEL, MOST, least_rows
from stillhouse.stats import binomial_upper

CERTAIN = 1e7  # so that within 10,000 requests a false alarm has a chance of at most 1 in 1,000
RAISED = (0.03, 0.06, 0.12, 0.25, 0.5)  # what is added to the usual rate, of the rest of 1
STRANGE = 0.01  # share of the calibration's prompts that count as unfamiliar
SURE = 1e-3  # chance that a usual rate is bounded too low


@dataclass(frozen=True, slots=True)
class Evidence:
    """That something happens more often than with the chance `usual`: M for each of `RAISED`."""

    usual: float
    grown: tuple[float, ...] = (0.0,) * len(RAISED)

    @property
    def weight(self) -> float:
        return sum(self.grown) / len(self.grown)


def add(evidence: Evidence, happened: bool) -> Evidence:
    """The evidence after one more time that it could have happened."""
    usual = evidence.usual
    grown = []
    for part, before in zip(RAISED, evidence.grown, strict=True):
        raised = usual + part * (1 - usual)
        ratio = raised / usual if happened else (1 - raised) / (1 - usual)
        grown.append(min((before + 1) * ratio, 1e200))
    return Evidence(usual, tuple(grown))


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of the traffic so far. `alarm` is the number of the request at which it was found to have
    changed, None while it was not; `labels` unfamiliar prompts have been answered by both since."""

    strange: Evidence
    differing: Evidence
    requests: int = 0
    deferred: int = 0
    unfamiliar: int = 0
    audited: int = 0
    differed: int = 0
    alarm: int | None = None
    why: str = ""
    labels: int = 0

    @property
    def owed(self) -> int:
        """Labels of unfamiliar prompts that are still needed to calibrate anew; 0 without an alarm."""
        return 0 if self.alarm is None else max(0, least_rows(MOST, LEVEL) - self.labels)


def watch(usual_strange: float, usual_differing: float) -> Watch:
    return Watch(Evidence(usual_strange), Evidence(usual_differing))


def seen(state: Watch, unfamiliar: bool, deferred: bool) -> Watch:
    """After one more request, as it was decided."""
    strange = add(state.strange, unfamiliar)
    state = replace(
        state,
        strange=strange,
        requests=state.requests + 1,
        deferred=state.deferred + deferred,
        unfamiliar=state.unfamiliar + unfamiliar,
        labels=state.labels + (state.alarm is not None and unfamiliar and deferred),
    )
    return _alarmed(state, strange, "prompts unlike those of the training are asked more often")


def audited(state: Watch, differs: bool) -> Watch:
    """After one more answer that was to be kept and that the teacher was asked for as well."""
    differing = add(state.differing, differs)
    state = replace(state, differing=differing, audited=state.audited + 1, differed=state.differed + differs)
    return _alarmed(state, differing, "the teacher differs from answers that were to be kept more often")


def must_defer(state: Watch, unfamiliar: bool) -> bool:
    """Whether an answer is deferred whatever its risk: after an alarm the calibration says nothing about
    prompts unlike its own; and nothing about any where answers themselves have changed."""
    return state.alarm is not None and (unfamiliar or state.differing.weight >= CERTAIN)


def upper_rate(happened: int, of: int) -> float:
    """A bound on a rate that is too low with a chance of `SURE` only, from so many of the calibration's rows
    (Clopper and Pearson 1934); 1/2 without rows, since nothing is usual then."""
    if of == 0:
        return 0.5
    return min(0.5, binomial_upper(happened, of, 1 - SURE))


def requests_to_alarm(usual: float, rate: float) -> float:
    """About how many requests it takes: log(CERTAIN) over the evidence that each brings, in nats."""
    gain = max(
        rate * math.log((usual + part * (1 - usual)) / usual) + (1 - rate) * math.log(1 - part)
        for part in RAISED
    )
    return math.log(CERTAIN * len(RAISED)) / gain if gain > 0 else math.inf


def _alarmed(state: Watch, evidence: Evidence, why: str) -> Watch:
    if state.alarm is None and evidence.weight >= CERTAIN:
        return replace(state, alarm=state.requests, why=why)
    return state
