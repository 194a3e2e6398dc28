"""Writes docs/controller.svg: the controller of src/stillhouse/ask/pace.py against the servers that
tests/pace_simulator.py simulates. Nothing in it is random; `--check` only compares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from drawing import frame, keep, line, path, text

from stillhouse.ask import pace
from stillhouse.report.markup import Html, tag
from stillhouse.report.svg import Scale

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from pace_simulator import Provider, Trace, simulate  # noqa: E402

FILE = DOCS / "controller.svg"
WIDTH, PANEL = 880, 340
LEFT, RIGHT, TOP, PLOT = 54, 24, 84, 186  # margins and the height of a plot, in pixels
EVERY = 0.5  # seconds between two points of what is in flight

STYLE = """
svg{--bg:#fdfdfc;--ink:#1b1f23;--soft:#586069;--line:#e2e5e8;--blue:#0072b2;--orange:#d55e00;--grey:#6b737c}
@media(prefers-color-scheme:dark){
svg{--bg:#121517;--ink:#e9ebed;--soft:#a3abb3;--line:#2c3238;--blue:#58aee6;--orange:#f28b3f;--grey:#98a1aa}}
text{font:12px -apple-system,BlinkMacSystemFont,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",Arial,
sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
.back{fill:var(--bg)}.title{font-size:15px;font-weight:600;fill:var(--ink)}.said{font-size:13px}
.grid{stroke:var(--line)}.tick{stroke:var(--grey)}
.server{fill:none;stroke:var(--grey);stroke-width:1.5;stroke-dasharray:5 4}
.room{fill:var(--grey);opacity:.1}
.flight{fill:var(--blue);opacity:.26}
.limit{fill:none;stroke:var(--blue);stroke-width:2;stroke-linejoin:round}
.refused{stroke:var(--orange);stroke-width:1.5}.refusal{fill:var(--orange)}
.label{font-weight:600;paint-order:stroke;stroke:var(--bg);stroke-width:4px;fill:var(--ink)}
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """A server that works on so many requests at once, and what the controller made of it."""

    title: str
    said: str
    label: str  # of the server's line, above or below it
    label_at: int
    slots: Callable[[float], int]
    seconds: int
    most: int  # top of the scale, requests
    trace: Trace


def refusing() -> Panel:
    """A provider that refuses what passes its limit, and changes the limit twice without saying so."""

    def slots(now: float) -> int:
        return 40 if now < 90 else 14 if now < 180 else 70

    trace = simulate(pace.pace(1000, 0.0), Provider(slots=slots, retry_after=1.0), 300)
    said = (
        f"{len(trace.refused)} of {len(trace.sends):,} requests are refused, with Retry-After: 1, and "
        f"{100 * _worked(trace, slots, 20, 300):.0f} % of the room is used after the first 20 s."
    )
    title = "A provider that tells its limit only by refusing, and changes it"
    return Panel(title, said, "room for", -8, slots, 300, 90, trace)


def queueing() -> Panel:
    """A server of one's own that refuses nothing, and loses two thirds of its speed on the way."""

    def slots(now: float) -> int:
        return 16 if now < 150 else 6

    trace = simulate(pace.pace(256, 0.0, follow="latency"), Provider(slots=slots, queue=True), 300)
    said = (
        "Nothing is refused, more requests only wait longer. After the first 20 s it answers at "
        f"{100 * _worked(trace, slots, 20, 300):.0f} % of its full rate."
    )
    return Panel("A local server that queues", said, "knee at", 17, slots, 300, 45, trace)


def picture(panels: Sequence[Panel]) -> str:
    height = PANEL * len(panels) + 34
    about = " ".join(f"{panel.title}. {panel.said}" for panel in panels)
    parts = [part for row, panel in enumerate(panels) for part in _panel(panel, 8 + PANEL * row)]
    parts += _legend(height - 22)
    return frame("Requests in flight, as the controller lets them out", about, STYLE, (WIDTH, height), parts)


def _panel(panel: Panel, y0: float) -> Iterator[Html]:
    top, base = y0 + TOP, y0 + TOP + PLOT
    x, y = Scale(0, panel.seconds, LEFT, WIDTH - RIGHT), Scale(0, panel.most, base, top)
    yield text(LEFT, y0 + 26, panel.title, "title")
    yield text(LEFT, y0 + 47, panel.said, "said")
    yield text(LEFT, top - 8, "requests")
    for value in y.ticks(4):
        yield line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid")
        yield text(LEFT - 9, y(value) + 4, f"{value:.0f}", anchor="end")
    for second in range(0, panel.seconds + 1, 30):
        yield line(x(second), base + 23, x(second), base + 27, "tick")
        yield text(x(second), base + 42, f"{second} s", anchor="middle")
    stairs = list(_stairs(panel))
    server = [(x(now), y(value)) for now, value in stairs]
    yield path([(LEFT, base), *server, (WIDTH - RIGHT, base)], "room")
    flights = [(x(now), y(value)) for now, value in _sampled(panel.trace, panel.seconds)]
    yield path([(LEFT, base), *flights, (WIDTH - RIGHT, base)], "flight")
    yield path(server, "server")
    yield path([(x(now), y(value)) for now, value in _limits(panel.trace, panel.seconds)], "limit")
    for (start, value), (end, _) in zip(stairs[::2], stairs[1::2], strict=True):
        words, middle = f"{panel.label} {value}", x((start + end) / 2)
        yield text(middle, y(value) + panel.label_at, words, "label", "middle")
    marks = sorted({round(x(now)) for now in panel.trace.refused})
    if marks:
        yield text(LEFT - 9, base + 18, "429", "refusal", "end")
        yield path([point for px in marks for point in ((px, base + 9), (px, base + 18))], "refused", "ML")


def _legend(y: float) -> Iterator[Html]:
    at = LEFT
    for mark, words, room in (
        (tag("path", d=f"M{at} {y}h22", class_="limit"), "the controller’s limit", 190),
        (tag("rect", x=at + 190, y=y - 6, width=22, height=12, class_="flight"), "in flight", 120),
        (tag("path", d=f"M{at + 310} {y}h22", class_="server"), "what the server works on at once", 250),
        (tag("path", d=f"M{at + 571} {y - 5}v10", class_="refused"), "a request refused", 0),
    ):
        yield mark
        yield text(at + 30, y + 4, words)
        at += room


def _worked(trace: Trace, slots: Callable[[float], int], start: int, end: int) -> float:
    """Share of the answers that the server could have given in these seconds, at one a second and slot."""
    could = sum(slots(second) for second in range(start, end))
    return sum(start <= now < end for now in trace.answered) / could


def _stairs(panel: Panel) -> Iterator[tuple[float, int]]:
    """The server's slots as corners of a line: two for each level."""
    starts = [s for s in range(panel.seconds) if s == 0 or panel.slots(s) != panel.slots(s - 1)]
    for start, end in pairwise([*starts, panel.seconds]):
        yield start, panel.slots(start)
        yield end, panel.slots(start)


def _sampled(trace: Trace, seconds: int) -> Iterator[tuple[float, int]]:
    """What is in flight at even steps of time."""
    states, flight = iter(trace.states), 0
    at = next(states, None)
    for step in range(round(seconds / EVERY) + 1):
        while at is not None and at[0] <= step * EVERY:
            flight, at = at[2], next(states, None)
        yield step * EVERY, flight


def _limits(trace: Trace, seconds: int) -> Iterator[tuple[float, float]]:
    """The controller's limit where it changes, as corners of a line."""
    limit = float(pace.START)
    yield 0, limit
    for now, value, _ in trace.states:
        if value != limit:
            yield now, limit
            yield now, value
            limit = value
    yield seconds, limit


if __name__ == "__main__":
    keep(FILE, picture([refusing(), queueing()]))
