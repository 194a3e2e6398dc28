"""Numbers as people and models write them, read exactly or not at all.

A form that could mean two numbers is not guessed at: it is unreadable.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_MINUS = "-\u2212\u2013\uff0d"
_CURRENCY = "$€£¥₹"
_LETTER = r"[^\W\d_]"
_PLAIN = r"(?>(?:(?<![\w.,])\.)?[0-9](?:[0-9.,]*[0-9])?(?:[eE][-+\u2212]?[0-9]{1,3}(?!\w))?)"
_LONGEST = 4000  # characters; Python refuses to read much longer ones
_TIMES = r"(?:[x×*·]|\\times|\\cdot)"

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
# Not a heading of Markdown, which begins with a word.
_MARKED = re.compile(rf"####[ \t]*([{_MINUS}{_CURRENCY}\\]*\.?\d[^\n]*)")
_TOKEN = re.compile(
    rf"""
    # Not within a word (m2, D1234) or a number that was passed over, and no exponent of a unit (m^2).
    (?<!{_LETTER}) (?<!{_LETTER}_) (?<![0-9]) (?<![0-9][.,])
    (?<!\^) (?<!\^[{{{_MINUS}]) (?<!\^\{{[{_MINUS}]) (?<![\w)]\*\*)
    (?:
        (?:(?P<units>(?>[0-9]+))\s?)? \\[dt]?frac\s*\{{(?P<over>{_PLAIN})\}}\s*\{{(?P<under>{_PLAIN})\}}
      | (?:(?P<whole>(?>[0-9]+))[ ])? (?<![0-9]/) (?P<top>{_PLAIN}) [/\u2044] (?P<bottom>{_PLAIN}) (?!/[0-9])
      | (?P<size>{_PLAIN})
        (?:
            \s?{_TIMES}\s?10 (?:\^|\*\*) (?:\{{\s*)? (?P<power>[+{_MINUS}]?[0-9]{{1,3}}) (?![0-9]) \s*\}}?
          | (?P<unread> \s?\^ | \*\*(?=[0-9]) | (?::[0-9]+)+ )
        )?
    )
    """,
    re.VERBOSE,
)
# 1,234.5 and 12,34,567 as grouped in India; 1.234,5 and 1.234.567, which can only be meant in that way.
_ENGLISH = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|[0-9]+)?(?:\.[0-9]+)?")
_EUROPEAN = re.compile(r"[0-9]{1,3}(?:(?:\.[0-9]{3})+,[0-9]+|(?:\.[0-9]{3}){2,})")
# A minus between two words or digits (2024-05-01, A-4) is a hyphen; one apart from its digits is a bullet.
_NEGATIVE = re.compile(rf"(?:(?:^|[^\w)\]%.{_MINUS}])[{_MINUS}][{_CURRENCY}]?|[{_CURRENCY}][{_MINUS}])$")
_CODE = re.compile(rf"(?<!{_LETTER})(?:Rs\.?|USD|EUR|GBP|CHF|INR|JPY|CNY)(?=[{_MINUS}]?[0-9])")
_POWER = re.compile(r"(?<=[0-9])\u207b?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
# \frac12 and \frac{1}2 are \frac{1}{2}.
_OVER = re.compile(r"(\\[dt]?frac)\s*([0-9])")
_UNDER = re.compile(r"(\\[dt]?frac\s*\{[^{}]*\})\s*([0-9])")
# Of an expression with a root or pi one number is a part.
_ROOT = re.compile(r"(?:\\sqrt\s*(?:\[[0-9]\])?\s*\{?|\bsqrt\(|√\s*\(?)$")
_FACTOR = re.compile(r"\s*(?:\\(?:sqrt|pi)|√|π)")
_GAP = re.compile(r"(?<=[0-9])(?:['’\u00a0\u2009\u202f]|\\,|\\!|\{,\})(?=[0-9]{3}(?![0-9]))")


def stated_number(text: str) -> Fraction | None:
    """The number that a text comes down to: the last one of the last \\boxed{...}, else the one that follows
    the last ####, else the last one of all. None where that cannot be read."""
    boxed, marked = _BOXED.findall(text), _MARKED.findall(text)
    text = _plain(boxed[-1] if boxed else marked[-1] if marked else text)
    numbers = list(_TOKEN.finditer(text))
    if not numbers:
        return None
    found = numbers[0 if marked and not boxed else -1]
    if _ROOT.search(text[max(0, found.start() - 12) : found.start()]) or _FACTOR.match(text, found.end()):
        return None
    size = _value(found)
    before = text[max(0, found.start() - 3) : found.start()]
    return -size if size is not None and _NEGATIVE.search(before) else size


def _plain(text: str) -> str:
    """The same in ASCII digits, with commas between groups, fractions as n/d and signs of one character."""
    if not text.isascii():
        text = _POWER.sub(lambda power: f"^{unicodedata.normalize('NFKC', power.group())}", text)
        text = "".join(map(_ascii_digit, text))
    text = _UNDER.sub(r"\1{\2}", _OVER.sub(r"\1{\2}", text))
    text = _GAP.sub(",", text.replace("\\$", "$").replace("\\%", "%"))
    return _CODE.sub("$", text)


def _ascii_digit(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    written = unicodedata.normalize("NFKC", character)
    return f" {written}" if "\u2044" in written and written[-1].isdigit() else character


def _value(found: re.Match[str]) -> Fraction | None:
    if found["unread"] is not None:
        return None
    if found["size"] is not None:
        size = _read(found["size"])
        if size is None or found["power"] is None:
            return size
        return size * Fraction(10) ** int(re.sub(rf"[{_MINUS}]", "-", found["power"]))
    top = _read(found["over"] or found["top"])
    bottom = _read(found["under"] or found["bottom"])
    if top is None or not bottom:
        return None
    if whole := found["whole"] or found["units"]:
        # 12 16/4 is two numbers, of which the last counts.
        if top >= bottom:
            return top / bottom
        return None if len(whole) > _LONGEST else top / bottom + int(whole)
    return top / bottom


def _read(digits: str) -> Fraction | None:
    if len(digits) > _LONGEST:
        return None
    size, _, power = digits.replace("\u2212", "-").replace("E", "e").partition("e")
    if _EUROPEAN.fullmatch(size):
        size = size.replace(".", "").replace(",", ".")
    elif not _ENGLISH.fullmatch(size):
        return None
    return Fraction(f"{size.replace(',', '')}e{power or 0}")
