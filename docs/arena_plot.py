"""Writes docs/arena.svg from benchmarks/results/arena.json: for each way to copy what its answers teach,
against the share of ordinary accounts that a defence harms. `--check` only compares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drawing import frame, keep, line, path, px, text

from stillhouse.report.markup import Html, tag
from stillhouse.report.svg import Scale

DOCS = Path(__file__).parent
FILE, RESULTS = DOCS / "arena.svg", DOCS.parent / "benchmarks" / "results" / "arena.json"
WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 960, 310, 270
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 44, 50  # margins within a panel, in pixels
APART = 3  # pixels between lines that would lie on each other
LEAST, MOST = 0.0003, 0.3  # of the axis of harm; less stands at its beginning
DEFENCES = {
    "together": "all together",
    "limits": "limit of requests",
    "prices": "rising prices",
    "detection": "detection",
    "clusters": "clusters",
}
STYLE = """
svg{--bg:#fdfdfc;--ink:#1b1f23;--soft:#586069;--line:#e2e5e8;--a:#0072b2;--b:#d55e00;--c:#009e73;--d:#8a5a9e;--e:#1b1f23}
@media(prefers-color-scheme:dark){
svg{--bg:#121517;--ink:#e9ebed;--soft:#a3abb3;--line:#2c3238;--a:#58aee6;--b:#f28b3f;--c:#3fc79a;--d:#c795dc;--e:#e9ebed}}
text{font:12px -apple-system,BlinkMacSystemFont,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",Arial,
sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
.back{fill:var(--bg)}.title{font-size:13px;font-weight:600;fill:var(--ink)}
.grid{stroke:var(--line)}path,circle{fill:none;stroke-width:2;stroke-linejoin:round}circle{stroke-dasharray:none!important;fill:var(--bg)}
.limits{stroke:var(--a)}.prices{stroke:var(--b);stroke-dasharray:7 3}.detection{stroke:var(--c)}
.clusters{stroke:var(--d);stroke-dasharray:2 3}.together{stroke:var(--e);stroke-width:3.5}
.none{stroke:var(--soft);stroke-width:1;stroke-dasharray:1 4}
"""


def picture(rows: Sequence[dict[str, Any]]) -> str:
    values = {row["what"]: row["value"] for row in rows}
    begin, end = "limits, set to ", ": ordinary accounts harmed"
    shares = [
        what[len(begin) : -len(end)] for what in values if what.startswith(begin) and what.endswith(end)
    ]
    ways = list(
        dict.fromkeys(
            what.split("; ")[1].removesuffix(": kept") for what in values if what.endswith(": kept")
        )
    )
    parts: list[object] = []
    for place, way in enumerate(ways):
        parts += _panel(
            values, shares, way, 6 + (place % 3) * (PANEL_WIDTH + 6), 6 + place // 3 * PANEL_HEIGHT
        )
    parts += _legend(LEFT + 6, 2 * PANEL_HEIGHT + 34)
    about = "Share of the teacher's score that a copy keeps, against the share of ordinary accounts harmed."
    height = 2 * PANEL_HEIGHT + 86
    return frame("What a copy still learns, by defence", about, STYLE, (WIDTH, height), parts)


def _panel(values: dict[str, float], shares: Sequence[str], way: str, x0: float, y0: float) -> Iterator[Html]:
    x = Scale(LEAST, MOST, x0 + LEFT, x0 + PANEL_WIDTH - RIGHT, log=True)
    y = Scale(0.0, 1.0, y0 + PANEL_HEIGHT - BOTTOM, y0 + TOP)
    yield text(x0 + LEFT, y0 + 20, way, "title")
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield line(x.start, y(value), x.end, y(value), "grid")
        yield text(x0 + LEFT - 7, y(value) + 4, f"{value:.0%}", anchor="end")
    for value, words in ((LEAST, "less"), (0.001, "0.1 %"), (0.01, "1 %"), (0.1, "10 %")):
        yield text(x(value), y.start + 17, words, anchor="middle")
    yield text((x.start + x.end) / 2, y.start + 36, "ordinary accounts harmed", anchor="middle")
    unhindered = y(values[f"none; {way}: kept"])
    yield path([(x.start, unhindered), (x.end, unhindered)], "none")
    for place, name in enumerate(DEFENCES):
        points, aside = [], APART * (place - 2)
        for what in ["clusters"] if name == "clusters" else [f"{name}, set to {share}" for share in shares]:
            harm = min(MOST, max(LEAST, values[f"{what}: ordinary accounts harmed"]))
            points.append((x(harm), y(values[f"{what}; {way}: kept"]) + aside))
        if name == "clusters":
            points.append((x.end, points[0][1]))
        yield path(sorted(points), name)
        for at in points[:1] if name == "clusters" else points:
            yield tag("circle", cx=px(at[0]), cy=px(at[1]), r=3, class_=name)


def _legend(x: float, y: float) -> Iterator[Html]:
    yield text(
        x, y, "Share of the teacher's score that the copy keeps. Lines are set 3 pixels apart.", "title"
    )
    for place, (name, words) in enumerate((*DEFENCES.items(), ("none", "without any"))):
        at = x + 150 * place
        yield path([(at, y + 26), (at + 26, y + 26)], name)
        if name != "none":
            yield tag("circle", cx=px(at + 13), cy=px(y + 26), r=3, class_=name)
        yield text(at + 34, y + 30, words)


if __name__ == "__main__":
    keep(FILE, picture(json.loads(RESULTS.read_text())["rows"]))
