"""Text as rows are compared by."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def normalise(text: str) -> str:
    """NFKC, case folded, white space runs to one space: what two texts share that a reader calls the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def conversation(messages: Iterable[tuple[str, str]]) -> str:
    """One text for (role, content) pairs; two conversations that differ in case and white space share it."""
    # Normalised text holds no control separator: `split` takes both of these for white space.
    return "\x1e".join(f"{role}\x1f{normalise(content)}" for role, content in messages)


def is_unicode(text: str) -> bool:
    """False for a text with half a character (a lone surrogate), which no file or request can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
