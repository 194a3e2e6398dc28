"""Text as rows are compared by: normalised, cut into words, cut into shingles."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"\w+", re.UNICODE)


def normalise(text: str) -> str:
    """NFKC, case folded, white space runs to one space: what two texts share that a reader calls the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def shingles(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    """All runs of n tokens; a shorter text is one shingle of its own length."""
    if len(tokens) < n:
        return {tuple(tokens)} if tokens else set()
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
