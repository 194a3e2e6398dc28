"""The figures of the report, drawn as inline SVG: no script, no font, colours by CSS class.

Each figure is drawn for a given width in CSS pixels, so that its text keeps its size: the page holds a
wide and a narrow drawing and shows the one that fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.report.figures import Measure, count, percent, scaled
from stillhouse.report.markup import Html, join, tag

_POINTS = 360  # at most so many points to a line: more than the pixels of the narrow drawing
_LABEL = 18  # pixels between the lines of two labels
_TICK = 76  # pixels between two ticks of the FLOPs axis, so that their words do not touch


@dataclass(frozen=True, slots=True)
class Point:
    """A system in the scatter: `kind` is its CSS class and shape, `flops` is per answer or None."""

    kind: str
    label: str
    flops: float | None
    score: Measure


@dataclass(frozen=True, slots=True)
class Scale:
    """A map from values to pixels, linear or logarithmic, with ticks at round values."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5)):
                found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(found) >= wanted - 1:
                    return found
            return found
        rough = (self.high - self.low) / wanted
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(s * size for s in (1, 2, 2.5, 5, 10) if s * size >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def scatter(points: Sequence[Point], width: int, title: str, description: str) -> Html:
    """Score against FLOPs per answer (log), whiskers for intervals; systems without FLOPs in a strip."""
    placed = [p for p in points if p.score.value is not None]
    costed = [p for p in placed if p.flops]
    strip = 0 if len(costed) == len(placed) else 118 if width > 500 else 84
    height, left, top, bottom = (430 if width > 500 else 380), 52, 22, 56
    right = width - 16 - strip
    values = [v for p in placed for v in (p.score.value, p.score.low, p.score.high) if v is not None]
    floor = max(0.0, math.floor(min(values) * 10 - 0.2) / 10)
    ceiling = max(floor + 0.1, min(1.0, math.ceil(max(values) * 10 + 0.1) / 10))
    y = Scale(floor, ceiling, height - bottom, top)
    parts: list[object] = [_rows(y, left, width - 16, lambda v: percent(v, 0))]
    parts.append(tag("text", "score", x=left, y=top - 9, class_="axis"))
    if costed:
        flops = [p.flops for p in costed if p.flops]
        x = Scale(min(flops) / 2.2, max(flops) * 2.2, left, right, log=True)
        last = -math.inf
        for tick in x.ticks(4 if width > 500 else 3):
            if x(tick) - last < _TICK:
                continue
            last = x(tick)
            parts.append(_line(last, height - bottom, last, height - bottom + 5, "tick"))
            parts.append(_text(last, height - bottom + 20, scaled(tick, "FLOP"), "axis", "middle"))
        middle = (left + right) / 2
        parts.append(_text(middle, height - 12, "FLOPs per answer, log scale", "axis", "middle"))
    if strip:
        parts.append(_line(right, top, right, height - bottom, "split"))
        for row, words in enumerate(("no FLOPs", "counted")):
            parts.append(_text(right + strip / 2, height - bottom + 20 + 16 * row, words, "axis", "middle"))
    if costed:
        parts.append(_guides(costed, x, y))
    taken: list[tuple[float, float, float]] = []
    for point in sorted(placed, key=lambda p: -(p.score.value or 0.0)):
        px = x(point.flops) if point.flops else right + strip / 2
        parts.append(_point(point, px, y, right if point.flops else width, taken))
    return _figure("scatter", width, height, title, description, parts)


def losses(
    train: Sequence[tuple[float, float]],
    held_out: Sequence[tuple[float, float]],
    rate: Sequence[tuple[float, float]],
    width: int,
    title: str,
    description: str,
) -> Html:
    """Loss (nats per token) over steps for training and held-out rows, the learning rate small below."""
    height, left, top, right = (400 if width > 500 else 350), 56, 22, width - 16
    below = 64 if rate else 0
    bottom = height - 48 - below - (26 if rate else 0)
    steps = [step for step, _ in (*train, *held_out, *rate)]
    values = [value for _, value in (*train, *held_out)]
    x = Scale(min(0.0, *steps), max(1.0, *steps), left, right)
    log = min(values) > 0 and max(values) / min(values) > 12
    low, high = (min(values) * 0.85, max(values) * 1.1) if log else (0.0, max(values) * 1.05 or 1.0)
    y = Scale(min(low, *values), high, bottom, top, log)
    parts: list[object] = [_rows(y, left, right, lambda v: f"{v:g}")]
    unit = f"nats per token{', log scale' if log else ''}"
    parts.append(tag("text", unit, x=left, y=top - 9, class_="axis"))
    parts.append(_path(_thin(train), x, y, "line train"))
    parts.append(_path(_thin(held_out), x, y, "line held"))
    shown = _thin(held_out)
    if len(shown) <= 60:
        parts += [tag("circle", cx=_px(x(s)), cy=_px(y(v)), r=3, class_="dot held") for s, v in shown]
    if held_out:
        step, value = min(held_out, key=lambda point: point[1])
        parts.append(tag("circle", cx=_px(x(step)), cy=_px(y(value)), r=7, class_="ring"))
        anchor = "end" if x(step) > (left + right) / 2 else "start"
        parts.append(_text(x(step), y(value) - 14, f"lowest {value:.3f}", "label", anchor))
    base = bottom + 26 + below if rate else bottom
    if rate:
        top_rate = max(value for _, value in rate) or 1.0
        small = Scale(0.0, top_rate, base, bottom + 30)
        parts.append(_rows(small, left, right, lambda v: f"{v:.2g}", [0.0, top_rate]))
        parts.append(_path(_thin(rate), x, small, "line rate"))
        parts.append(_text(right, bottom + 24, "learning rate", "axis", "end"))
    for tick in x.ticks(6 if width > 500 else 3):
        parts.append(_text(x(tick), base + 18, count(tick), "axis", "middle"))
    parts.append(_text((left + right) / 2, base + 40, "optimiser step", "axis", "middle"))
    return _figure("losses", width, height, title, description, parts)


def trend(
    points: Sequence[tuple[float, Measure]],
    width: int,
    name: str,
    titles: tuple[str, str],
    axes: tuple[str, str],
    tick_words: Callable[[float], str],
    level: float | None = None,
) -> Html:
    """Shares (0 to 1, or a little above) with whiskers over a logarithmic axis of values above 0, joined in
    their order. `titles` are the drawing's title and its description, `axes` the words at y and x, and
    `level` a value to reach. Every point is labelled: they are few."""
    height, left, top, right = (320 if width > 500 else 290), 56, 26, width - 30
    bottom = height - 52
    values = [v for _, m in points for v in (m.value, m.low, m.high) if v is not None]
    values += [] if level is None else [level]
    floor = math.floor(min(values) * 10 - 0.2) / 10
    y = Scale(max(0.0, floor), math.ceil(max(values) * 10 + 0.1) / 10, bottom, top)
    places = [place for place, _ in points]
    x = Scale(min(places) / 1.5, max(places) * 1.5, left, right, log=True)
    parts: list[object] = [_rows(y, left, right, lambda v: percent(v, 0))]
    parts.append(tag("text", axes[0], x=left, y=top - 11, class_="axis"))
    if level is not None:
        parts.append(_line(left, y(level), right, y(level), "level"))
    shown = [(place, m.value) for place, m in points if m.value is not None]
    parts.append(_path(shown, x, y, "line train"))
    last = -math.inf
    for place, m in points:
        if m.value is None:
            continue
        px = x(place)
        if m.low is not None and m.high is not None:
            ends = ((px, m.low, px, m.high), (px - 8, m.low, px + 8, m.low), (px - 8, m.high, px + 8, m.high))
            parts += [_line(x1, y(v1), x2, y(v2), "whisker student") for x1, v1, x2, v2 in ends]
        parts.append(shape("student", px, y(m.value)))
        top_of = y(m.value if m.high is None else m.high)
        parts.append(_text(px, max(top_of - 8, 12), percent(m.value), "label", "middle"))
        if px - last >= _TICK * 0.75:
            last = px
            parts.append(_line(px, bottom, px, bottom + 5, "tick"))
            parts.append(_text(px, bottom + 19, tick_words(place), "axis", "middle"))
    parts.append(_text((left + right) / 2, height - 10, f"{axes[1]}, log scale", "axis", "middle"))
    return _figure(name, width, height, *titles, parts)


def shares(
    lines: Sequence[tuple[str, Sequence[tuple[float, Measure]]]],
    chosen: float | None,
    width: int,
    titles: tuple[str, str],
    axes: tuple[str, str],
) -> Html:
    """Scores over shares from 0 to 1, one line for each CSS class; the first has whiskers at quarters, and
    `chosen` is marked on it."""
    height, left, top, right = (340 if width > 500 else 300), 56, 26, width - 30
    bottom = height - 52
    values = [v for _, line in lines for _, m in line for v in (m.value,) if v is not None]
    values += [v for _, m in lines[0][1] for v in (m.low, m.high) if v is not None]
    low, high = min(values), max(values)
    room = max(0.01, (high - low) / 10)
    y = Scale(low - room, high + room, bottom, top)
    x = Scale(0.0, 1.0, left, right)
    parts: list[object] = [_rows(y, left, right, percent)]
    parts.append(tag("text", axes[0], x=left, y=top - 11, class_="axis"))
    for share, m in lines[0][1]:
        if 4 * share == round(4 * share) and m.low is not None and m.high is not None:
            parts.append(_line(x(share), y(m.low), x(share), y(m.high), "whisker student"))
    for class_, line in lines:
        shown = [(share, m.value) for share, m in line if m.value is not None]
        parts.append(_path(shown, x, y, f"line {class_}"))
    if chosen is not None:
        parts.append(_line(x(chosen), top, x(chosen), bottom, "level"))
        anchor = "end" if chosen > 0.6 else "start"
        place = x(chosen) + (-6 if anchor == "end" else 6)
        parts.append(_text(place, top + 12, f"promised at {percent(chosen)}", "label", anchor))
    for tick in x.ticks(5):
        parts.append(_text(x(tick), bottom + 19, percent(tick, 0), "axis", "middle"))
    parts.append(_text((left + right) / 2, height - 10, axes[1], "axis", "middle"))
    return _figure("cascade", width, height, *titles, parts)


def shape(kind: str, x: float = 9, y: float = 9) -> Html:
    """The mark of a system, 18 pixels wide: square, disc, ring or diamond."""
    if kind == "teacher":
        return tag("rect", x=_px(x - 5.5), y=_px(y - 5.5), width=11, height=11, class_="mark teacher")
    if kind == "baseline":
        path = f"M{_px(x)} {_px(y - 7)}l7 7l-7 7l-7 -7z"
        return tag("path", d=path, class_="mark baseline")
    return tag("circle", cx=_px(x), cy=_px(y), r=6, class_=f"mark {kind}")


def key(kind: str) -> Html:
    """The mark of a system for a legend or a table head."""
    return tag("svg", shape(kind), width=18, height=18, viewBox="0 0 18 18", class_="key", aria_hidden="true")


def _point(point: Point, px: float, y: Scale, edge: float, taken: list[tuple[float, float, float]]) -> Html:
    value, low, high = point.score.value or 0.0, point.score.low, point.score.high
    parts: list[Html] = []
    if low is not None and high is not None:
        ends = ((px, low, px, high), (px - 10, low, px + 10, low), (px - 10, high, px + 10, high))
        parts += [_line(x1, y(v1), x2, y(v2), f"whisker {point.kind}") for x1, v1, x2, v2 in ends]
    parts.append(shape(point.kind, px, y(value)))
    words = f"{point.label} {percent(value)}"
    room = 7.4 * len(words) + 16
    lines: tuple[str, ...]
    if not point.flops:
        lines, anchor, lx = (point.label, percent(value)), "middle", px
        ly = y(high if high is not None else value) - 30
        if ly < y.end + 10:
            ly = y(low if low is not None else value) + 24
    else:
        lines, anchor, lx, ly = (words,), "start", px + 16, y(value) + 4.5
        if px + room > edge:
            anchor, lx, ly = "end", edge - 6, y(value if low is None else low) + 20
        start = lx if anchor == "start" else lx - room
        while any(abs(ly - other) < _LABEL and start < e and s < start + room for s, e, other in taken):
            ly += 3
        taken.append((start, start + room, ly))
    parts += [_text(lx, ly + 16 * row, line, "label", anchor) for row, line in enumerate(lines)]
    tip = f"{point.label}: score {percent(value)}"
    if low is not None and high is not None:
        tip += f", interval {percent(low)} to {percent(high)}"
    tip += f", {scaled(point.flops, 'FLOP')} per answer" if point.flops else ", FLOPs not counted"
    return tag("g", tag("title", tip), parts)


def _guides(points: Sequence[Point], x: Scale, y: Scale) -> list[Html]:
    """The teacher's level, and a dotted line from the student before training to the student after it."""
    at = {p.kind: (x(p.flops), y(p.score.value)) for p in points if p.flops and p.score.value is not None}
    lines = []
    if "teacher" in at:
        px, py = at["teacher"]
        lines.append(_line(x.start, py, px - 16, py, "level"))
    if "before" in at and "student" in at:
        lines.append(_line(*at["before"], *at["student"], "rise"))
    return lines


def _rows(
    y: Scale, left: float, right: float, label: Callable[[float], str], ticks: Sequence[float] | None = None
) -> Html:
    parts = []
    for tick in y.ticks() if ticks is None else ticks:
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 8, y(tick) + 4, label(tick), "axis", "end"))
    return join(parts)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` points, each the mean of a run of neighbours; the last point stays itself."""
    if len(points) <= _POINTS:
        return list(points)
    size = math.ceil((len(points) - 1) / (_POINTS - 1))
    runs = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    return [(sum(s for s, _ in r) / len(r), sum(v for _, v in r) / len(r)) for r in runs] + [points[-1]]


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale, class_: str) -> Html | None:
    if not points:
        return None
    return tag("path", d="M" + "L".join(f"{_px(x(s))} {_px(y(v))}" for s, v in points), class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("line", x1=_px(x1), y1=_px(y1), x2=_px(x2), y2=_px(y2), class_=class_)


def _text(x: float, y: float, words: str, class_: str, anchor: str) -> Html:
    return tag("text", words, x=_px(x), y=_px(y), class_=class_, text_anchor=anchor)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _figure(name: str, width: int, height: int, title: str, about: str, parts: Sequence[object]) -> Html:
    ids = f"{name}-{width}-title", f"{name}-{width}-desc"
    return tag(
        "svg",
        tag("title", title, id=ids[0]),
        tag("desc", about, id=ids[1]),
        list(parts),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby=" ".join(ids),
        class_=f"chart {'wide' if width > 500 else 'narrow'}",
    )
