"""The few building blocks that every section of the page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillhouse.report.figures import UNKNOWN
from stillhouse.report.markup import Html, plain, tag
from stillhouse.report.style import CSS

# key in evaluation.json, CSS class and shape, name for people
SYSTEMS = (
    ("teacher", "teacher", "teacher"),
    ("student", "student", "student"),
    ("student_before", "before", "student before"),
    ("baseline", "baseline", "baseline"),
)
SCORE_METHOD = (
    "95% intervals by Wilson’s method at the effective number of independent prompts, clustered by group"
)
FAMILY_METHOD = (
    "95% intervals of scores by Wilson’s method at the effective number of independent prompts, clustered by"
    " group (in a family of a single group its prompts are taken as independent); of the share kept by"
    " paired score intervals at that number"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
WIDTHS = (800, 358)  # CSS pixels of the wide and the narrow drawings
IMPORTED = "imported; collected elsewhere"
UNANCHORED = "unanchored: internally consistent only"
SHARE_METHOD = "95% paired score interval, clustered by prompt group"


def document(title: str, body: Html) -> str:
    """A whole page, which loads nothing and runs nothing."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(CSS)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def section(name: str, title: str, lead: object, *content: object) -> Html:
    """A section with its heading and a sentence on what it shows beside the content."""
    head = tag(
        "header", tag("h2", title, id=f"{name}-title"), tag("p", lead, class_="lead") if lead else None
    )
    return tag("section", head, tag("div", content, class_="body"), id=name, aria_labelledby=f"{name}-title")


def absent(what: str, why: str) -> Html:
    """What is not there, in words, where a figure would stand."""
    return tag("p", tag("b", what), " ", why, class_="absent")


def cell(value: object, class_: str = "") -> Html:
    """A table cell; an unknown value looks like one."""
    if isinstance(value, Html) and value.startswith(("<td", "<th")):
        return value
    if isinstance(value, str) and not isinstance(value, Html) and value == UNKNOWN:
        class_ = f"{class_} unknown".strip()
    return tag("td", value, class_=class_ or None)


def table(
    caption: str,
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    words: Sequence[int] = (0,),
    class_: str = "",
) -> Html:
    """A table that scrolls inside itself on a narrow page. Columns hold numbers but for those in `words`."""
    heads = [
        tag("th", name, scope="col", class_="n" if column not in words else None)
        for column, name in enumerate(head)
    ]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            [cell(value, "n" if column not in words else "") for column, value in enumerate(row[1:], 1)],
        )
        for row in rows
    ]
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", heads)),
        tag("tbody", body),
        class_=class_ or None,
    )
    return tag("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption)


def numbers(
    caption: str, head: Sequence[object], rows: Sequence[Sequence[object]], title: str = "The numbers"
) -> Html:
    """The figures behind a drawing, folded away under a title."""
    return tag("details", tag("summary", title), table(caption, head, rows), class_="numbers")


def pairs(entries: Sequence[tuple[str, object]]) -> Html:
    """Names and values as a list of definitions."""
    rows = []
    for name, value in entries:
        unknown = isinstance(value, str) and value == UNKNOWN
        rows.append(tag("div", tag("dt", name), tag("dd", value, class_="unknown" if unknown else None)))
    return tag("dl", rows, class_="pairs")


def figure(drawings: Sequence[Html], caption: object, *below: object) -> Html:
    return tag("figure", list(drawings), tag("figcaption", caption), below)


def rows_link(path: Path) -> Html | None:
    """A link to the file beside the report that holds the rows, where it is there."""
    return tag("a", path.name, href=plain(path.name), class_="rows") if path.is_file() else None
