"""Text as rows are compared by, and names of hosts as such are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address

# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces: a letter of them is a word by itself.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
# Accents, points and vowel signs that belong to their word though `\w` leaves them out.
_SIGNS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W{_UNSPACED}]|[{_SIGNS}])+")
_TOKEN = re.compile(rf"{_WORD.pattern}|[^\w\s]")
# The same for ASCII alone, which takes half the time.
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_ASCII_TOKEN = re.compile(r"\w+|[^\w\s\x1c-\x1f]", re.ASCII)
_STRETCH = re.compile(r"\S+")


def normalise(text: str) -> str:
    """NFKC, case folded, white space runs to one space: what two texts share that a reader calls the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def conversation(messages: Iterable[tuple[str, str]]) -> str:
    """One text for (role, content) pairs; two conversations that differ in case and white space share it."""
    # Normalised text holds no control separator: `split` takes both of these for white space.
    return "\x1e".join(f"{role}\x1f{normalise(content)}" for role, content in messages)


def tokens(text: str) -> list[str]:
    """Words and marks, normalised, in order: "3 + 4" and "3 - 4" differ, "It is." and "it is ." do not.

    Each stretch between white space stands for itself, so the tokens of a text are those of its stretches.
    """
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    return [token for stretch in text.split() for token in _TOKEN.findall(normalise(stretch))]


def words(text: str) -> list[str]:
    """The tokens that are no marks: what two copies share that differ in punctuation."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return [word for stretch in text.split() for word in _words_of(stretch)]


def _words_of(stretch: str) -> list[str]:
    if stretch.isascii():
        return _ASCII_WORD.findall(stretch.lower())
    return _WORD.findall(normalise(stretch))


def placed_words(text: str) -> Iterator[tuple[int, int]]:
    """Where each of `words(text)` stands in `text`, as [start, end) in characters.

    Where normalising joins characters (an accent apart from its letter) a word has the place of its whole
    stretch, because its own is not defined.
    """
    for stretch in _STRETCH.finditer(text):
        raw, plain = stretch.group(), normalise(stretch.group())
        pieces = raw.lower() if raw.isascii() else [normalise(character) for character in raw]
        if "".join(pieces) == plain:
            origin = [at for at, piece in enumerate(pieces) for _ in piece]
            places = [(origin[word.start()], origin[word.end() - 1] + 1) for word in _WORD.finditer(plain)]
        else:
            places = [(0, len(raw)) for _ in _WORD.finditer(plain)]
        for start, end in places:
            yield stretch.start() + start, stretch.start() + end


def is_unicode(text: str) -> bool:
    """False for a text with half a character (a lone surrogate), which no file or request can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def host_name(typed: str) -> str:
    """A host, or a pattern of hosts, however it was typed: lower case, without the dot of the root, in ASCII
    as the client asks for it (UTS 46). What cannot be written so stays as it is."""
    name = _without_root(typed.lower())
    if ":" in name:
        with suppress(ValueError):
            return ip_address(name).compressed
    if name.isascii():
        return name
    import idna

    with suppress(UnicodeError):
        return _without_root(idna.encode(name, uts46=True).decode())
    with suppress(UnicodeError):  # a pattern, and what only the older rules allow
        return _without_root(name.encode("idna").decode())
    return name


def _without_root(name: str) -> str:
    """Dots and spaces at the end may stand in any order."""
    name = name.strip()
    while name.endswith("."):
        name = name.rstrip(".").rstrip()
    return name
