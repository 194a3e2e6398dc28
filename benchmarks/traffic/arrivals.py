"""When requests come: the arrival processes of real clients, scaled to the volume of an account.

A trace (ServeGen) says for each 600 s of two weeks how many requests a second a client sent, the coefficient
of variation of the time between them, and the law fitted to it. An account runs through its trace as often as
the month needs, from a place of its own, at a rate that is scaled so that its volume is met in expectation.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from rows import DATA

from traffic.wording import MONTHS, Month

WINDOW = 600.0
DAY = 86_400.0

Span = tuple[float, float]  # seconds into the month
Law = tuple[bool, float, float]  # a Gamma law (else Weibull), its shape, its scale for a mean of 1


@dataclass(frozen=True, slots=True)
class Trace:
    """`until[i]`: the share of the client's requests that came before the end of window i.
    `laws[i]`: how intervals are distributed that begin in it. `active`: the windows with requests."""

    name: str
    until: tuple[float, ...]
    laws: tuple[Law, ...]
    active: tuple[int, ...]

    def before(self, window: float) -> float:
        """Runs through the trace, counted in requests, until that many windows after its begin."""
        runs, rest = divmod(window, len(self.until))
        place = int(rest)
        low = self.until[place - 1] if place else 0.0
        return runs + low + (rest - place) * (self.until[place] - low)


@cache
def trace_names(month: Month) -> tuple[str, ...]:
    """The clients of a month: every other one, so that both months have heavy and light ones."""
    found = sorted(int(path.stem.removeprefix("client-")) for path in (DATA / "traffic").glob("client-*.csv"))
    return tuple(f"client-{number}" for number in found if number % 2 == MONTHS.index(month))


@cache
def read_trace(name: str) -> Trace:
    with open(DATA / "traffic" / f"{name}.csv", newline="") as file:
        windows = [(float(rate), law, shape) for _, rate, _, law, shape, _ in csv.reader(file)]
    total = sum(rate for rate, _, _ in windows)
    until, so_far = [], 0.0
    for rate, _, _ in windows:
        so_far += rate
        until.append(so_far / total)
    laws = tuple(_of_mean_one(law, float(shape)) for _, law, shape in windows)
    return Trace(name, tuple(until), laws, tuple(i for i, (rate, _, _) in enumerate(windows) if rate > 0))


def _of_mean_one(law: str, shape: float) -> Law:
    """Windows with too few requests for a fit have none: exponential, which is Gamma of shape 1."""
    if law == "Gamma":
        return True, shape, 1.0 / shape
    if law == "Weibull":
        return False, shape, 1.0 / math.gamma(1.0 + 1.0 / shape)
    return True, 1.0, 1.0


def phase_of(draw: Random, trace: Trace, first: float) -> int:
    """By how many windows to shift the trace so that the client is at work `first` seconds into the month."""
    return (draw.choice(trace.active) - int(first / WINDOW)) % len(trace.until)


def arrivals(
    draw: Random, trace: Trace | None, phase: int, start: float, span: Span, volume: float
) -> Iterator[float]:
    """Unix seconds of about `volume` requests between the two ends of `span`, in order.

    A renewal process in the client's own time, in which the trace's rate is 1: intervals follow the law of
    the window in which they begin, so bursts stay what they are at any volume. Without a trace: one at a
    random moment of each of `volume` equal slots.
    """
    first, last = span
    if trace is None:  # an own schedule
        slots = max(1, round(volume))
        step = (last - first) / slots
        for number in range(slots):
            yield start + first + (number + draw.random()) * step
        return
    begin = trace.before(first / WINDOW + phase)
    end = trace.before(last / WINDOW + phase)
    step = (end - begin) / volume
    windows = len(trace.until)
    place = begin
    window = int(first / WINDOW + phase) % windows
    place += _left(draw, trace.laws[window]) * step
    while place < end:
        runs = int(place)
        rest = place - runs
        window = min(bisect_right(trace.until, rest), trace.active[-1])
        low = trace.until[window - 1] if window else 0.0
        inside = (rest - low) / (trace.until[window] - low)
        yield start + (runs * windows + window + inside - phase) * WINDOW
        gamma, shape, scale = trace.laws[window]
        place += step * (draw.gammavariate(shape, scale) if gamma else draw.weibullvariate(scale, shape))


def _left(draw: Random, law: Law) -> float:
    """What is left of the interval that is running when the span begins: a share of one that was met in
    proportion to its length. Without this, bursty clients would send too much (Feller, vol. 2, XI.4)."""
    gamma, shape, scale = law
    if gamma:
        return draw.random() * draw.gammavariate(shape + 1.0, scale)
    return draw.random() * scale * math.pow(draw.gammavariate(1.0 + 1.0 / shape, 1.0), 1.0 / shape)
