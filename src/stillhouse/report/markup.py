"""Markup that cannot carry what a model wrote: text becomes markup in one place, and is escaped there.

`tag` escapes every child that is not already `Html`, so a forgotten escape is a visible `&lt;` and never
a hole. Characters that cannot be seen (controls, direction changes, zero-width and filler characters, lone
surrogates) are shown by their code point: text that hides something must look as if it did.
"""

from __future__ import annotations

import html
import re
import unicodedata
from itertools import islice

_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff0-\ufffc\ufffe\uffff\U000e0000-\U000e0fff" + _FILLERS + "]"
)
_ODD_RUN = re.compile(f"({_ODD.pattern})\\1*")
_MARKS = 200
_VOID = {"meta", "br", "hr"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. None and False children or attributes are left out; lists are laid flat.

    `class_` and `for_` lose their underscore, other underscores become hyphens.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        named = key.rstrip("_").replace("_", "-")
        parts.append(f" {named}" if value is True else f' {named}="{html.escape(plain(str(value)))}"')
    parts.append(">")
    if name not in _VOID:
        parts.append(join(*children))
        parts.append(f"</{name}>")
    return Html("".join(parts))


def join(*children: object) -> Html:
    """The children as markup, one after the other; what is not Html is escaped."""
    parts: list[str] = []
    for child in children:
        if child is None or child is False:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(*child))
        else:
            parts.append(html.escape(plain(str(child))))
    return Html("".join(parts))


def plain(text: str) -> str:
    """`text` with every invisible character replaced by its code point in brackets."""
    return _ODD.sub(lambda match: f"[U+{ord(match.group()):04X}]", text)


def shown(text: str) -> Html:
    """A model's text as markup: escaped, each run of an invisible character as one labelled mark.

    After the first `_MARKS` marks the rest is spelt out plainly, which takes a tenth of the room.
    """
    parts: list[str] = []
    at = 0
    for match in islice(_ODD_RUN.finditer(text), _MARKS):
        parts.append(html.escape(text[at : match.start()]))
        parts.append(_mark(match.group()))
        at = match.end()
    parts.append(html.escape(plain(text[at:])))
    return Html("".join(parts))


def clip(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters and the number of those left out."""
    return text[:limit], max(0, len(text) - limit)


def short(text: str, limit: int = 80) -> str:
    """One line of at most `limit` characters for a label."""
    line = " ".join(text[: limit * 8].split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _mark(run: str) -> Html:
    code = f"U+{ord(run[0]):04X}"
    name = unicodedata.name(run[0], "control character")
    times = f" ×{len(run):,}" if len(run) > 1 else ""
    return tag("b", code + times, class_="odd", title=f"{code} {name}{times}")
