"""Small charts as inline SVG: no script, no style attribute, colours by CSS class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

WIDTH, HEIGHT = 260, 124  # CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 0, 260, 20, 102  # of the drawing


@dataclass(frozen=True, slots=True)
class Series:
    """`kind` is the CSS class of its bars; `values` one for each stretch of time."""

    name: str
    kind: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Stretches:
    """The first one begins at `start` (Unix seconds), each lasts `width` seconds; `form` is for its time."""

    start: float
    width: float
    form: str

    def name(self, number: int) -> str:
        return datetime.fromtimestamp(self.start + number * self.width, UTC).strftime(self.form)


def bars(title: str, over: Stretches, series: Sequence[Series], say: Callable[[float], str]) -> Markup:
    """Stacked bars with the highest sum as the only grid line; each bar says its values when pointed at."""
    sums = [sum(values) for values in zip(*(each.values for each in series), strict=True)]
    top = max(sums, default=0) or 1
    step = (RIGHT - LEFT) / max(1, len(sums))
    drawn = []
    for number, total in enumerate(sums):
        if not total:
            continue
        parts = [(each, each.values[number]) for each in series if each.values[number]]
        said = ", ".join(f"{say(value)} {each.name}" for each, value in parts)
        begin, base = LEFT + number * step, float(BOTTOM)
        rects = Markup("")
        for each, value in parts:
            high = max(1.0, value / top * (BOTTOM - TOP))
            rects += Markup('<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>').format(
                each.kind, begin + step * 0.1, base - high, step * 0.8, high
            )
            base -= high
        drawn.append(Markup("<g><title>{}: {}</title>{}</g>").format(over.name(number), said, rects))
    totals = ", ".join(f"{say(sum(each.values))} {each.name}" for each in series)
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{title}: {totals}">'
        '<line class="grid" x1="0" x2="{w}" y1="{top}" y2="{top}"/>'
        '<line class="tick" x1="0" x2="{w}" y1="{base}" y2="{base}"/>'
        '<text class="axis" x="0" y="{label}">{most}</text>{bars}'
        '<text class="axis" x="0" y="{foot}">{first}</text>'
        '<text class="axis" x="{mid}" y="{foot}" text-anchor="middle">{middle}</text>'
        '<text class="axis" x="{w}" y="{foot}" text-anchor="end">{last}</text></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        title=title,
        totals=totals,
        top=TOP,
        base=BOTTOM,
        label=TOP - 6,
        most=say(max(sums, default=0)),
        bars=Markup("").join(drawn),
        foot=HEIGHT - 6,
        mid=WIDTH / 2,
        first=over.name(0),
        middle=over.name(len(sums) // 2),
        last=over.name(len(sums)),
    )


def meter(used: float, limit: float, warns: bool = True) -> Markup:
    """A bar of how much of a limit is used; what it means stands beside it."""
    part = min(1.0, used / limit) if limit else 1.0
    kind = "full" if warns and part >= 1 else "high" if warns and part >= 0.8 else "room"
    return Markup(
        '<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rail" width="100" height="6" rx="1"/>'
        '<rect class="{}" width="{:.2f}" height="6" rx="1"/>'
        "</svg>"
    ).format(kind, max(part * 100, 1.0 if used else 0.0))
