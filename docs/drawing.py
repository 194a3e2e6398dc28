"""What the drawings of these documents share: a frame, lines and words as SVG, and the file that is kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from stillhouse.report.markup import Html, tag


def frame(title: str, about: str, style: str, size: tuple[int, int], parts: Sequence[object]) -> str:
    """The whole drawing, `size` pixels wide and high."""
    width, height = size
    return (
        tag(
            "svg",
            tag("title", title, id="t"),
            tag("desc", about, id="d"),
            tag("style", Html(style)),
            tag("rect", width=width, height=height, rx=8, class_="back"),
            parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_labelledby="t d",
        )
        + "\n"
    )


def path(points: Sequence[tuple[float, float]], class_: str, steps: str = "") -> Html:
    """A line through the points; with `steps` "ML", one stroke for each pair."""
    letters = [steps[n % 2] if steps else "ML"[n > 0] for n in range(len(points))]
    drawn = "".join(f"{letter}{px(a)} {px(b)}" for letter, (a, b) in zip(letters, points, strict=True))
    return tag("path", d=drawn, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("line", x1=px(x1), y1=px(y1), x2=px(x2), y2=px(y2), class_=class_)


def text(x: float, y: float, words: str, class_: str | None = None, anchor: str | None = None) -> Html:
    return tag("text", words, x=px(x), y=px(y), class_=class_, text_anchor=anchor)


def px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def keep(file: Path, drawn: str) -> None:
    """Write the drawing; with `--check` on the command line, only say whether it is the one that is there."""
    if "--check" not in sys.argv:
        file.write_text(drawn)
    elif not file.exists() or file.read_text() != drawn:
        sys.exit(f"out of date: {file.name}; run `make docs`")
