"""The scorers that stillhouse ships. Each compares one answer with one reference and gives 0.0 or 1.0.

A reference that a scorer cannot read raises BadReference: that row is then unscored, for a wrong reference
says nothing about the answer. An answer that cannot be read is wrong and scores 0.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

from stillhouse.text import normalise


class BadReference(ValueError):
    """The reference is not of the form that the scorer compares with."""


def exact(answer: str, reference: str) -> float:
    """The whole answer equals the reference after `text.normalise` (case, white space, Unicode form)."""
    return float(normalise(answer) == normalise(reference))


def json_value(answer: str, reference: str) -> float:
    """The first JSON object or array in the answer equals the reference.

    Text around it and code fences are passed over. Key order is free, 1 equals 1.0, true does not equal 1,
    strings are compared as they stand.
    """
    try:
        wanted = _DECODER.decode(reference)
    except (ValueError, RecursionError):
        wanted = None
    if not isinstance(wanted, dict | list):
        raise BadReference("the reference is not a JSON object or array")
    found = _first_json(answer)
    return float(found is not None and _same(found, wanted))


def numeric(answer: str, reference: str) -> float:
    """The last number in the answer equals the last number in the reference, exactly (1.50 equals 1.5).

    Reads 1,234.5 and $-5 and -$5 and 12% (as 12) and 1e3. A comma that does not stand before groups of
    three digits (1,5) is not guessed to be a decimal comma: such a number is unreadable, and so wrong.
    """
    wanted = _last_number(reference)
    if wanted is None:
        raise BadReference("the reference holds no number that can be read")
    return float(_last_number(answer) == wanted)


def choice(answer: str, reference: str) -> float:
    """The first line with text after the last "Answer:", or the whole answer, equals the reference label.

    Case, white space, emphasis marks and punctuation at the end do not count.
    """
    wanted = _bare(reference, ".,;:!?")
    if not wanted:
        raise BadReference("the reference label is empty")
    marked = _after_marker(answer)
    return float(_bare(answer if marked is None else marked, ".,;:!?") == wanted)


def last_line(answer: str, reference: str) -> float:
    """The first line with text after the last "Answer:", or else the last line that is not empty, equals the
    reference.

    Case, white space, emphasis marks and periods at the end do not count.
    """
    wanted = _bare(reference, ".")
    if not wanted:
        raise BadReference("the reference is empty")
    marked = _after_marker(answer)
    lines = [line for line in answer.splitlines() if line.strip()]
    given = marked if marked is not None else lines[-1] if lines else ""
    return float(_bare(given, ".") == wanted)


def mentions(answer: str, reference: str) -> float:
    """Every string of the reference, a JSON list, occurs in the answer; case and white space do not count.

    It must stand there as words of its own: D1234 is not mentioned by D12345. In scripts that are written
    without spaces between words it may stand anywhere.
    """
    try:
        wanted = json.loads(reference)
    except (ValueError, RecursionError):
        wanted = None
    if not isinstance(wanted, list) or not wanted:
        raise BadReference("the reference is not a JSON list of strings")
    if not all(isinstance(item, str) and item.strip() for item in wanted):
        raise BadReference("the reference list holds something other than strings with text in them")
    text = normalise(answer)
    return float(all(_stands_in(normalise(item), text) for item in wanted))


_JSON_START = re.compile(r"[{\[]")
_MARKER = re.compile(r"\banswer\s*:", re.IGNORECASE)
_EMPHASIS = "*_`"
# Letters and digits of scripts with spaces between words; from Thai on few have them (Vietnamese has).
_LETTER = r"[^\W\u0e00-\u1dff\u2000-\U0010ffff]"
_MINUS = "-\u2212"
_NUMBER_LIKE = re.compile(r"(?:(?<![\w.,])\.)?[0-9](?:[0-9.,]*[0-9])?(?:[eE][-+]?[0-9]{1,3}(?!\w))?")
_READABLE = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
# A minus between two words or digits (2024-05-01, A-4) is a hyphen.
_NEGATIVE = re.compile(rf"(?:(?:^|[^\w)\]%.])[{_MINUS}][$€£¥]?|[$€£¥][{_MINUS}])$")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _first_json(text: str) -> Any:
    """The first object or array that parses, or None; a bracket that opens nothing is passed over."""
    for start in _JSON_START.finditer(text):
        try:
            return _DECODER.raw_decode(text, start.start())[0]
        except (ValueError, RecursionError):
            continue
    return None


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _last_number(text: str) -> Decimal | None:
    numbers = list(_NUMBER_LIKE.finditer(text))
    if not numbers or not _READABLE.fullmatch(numbers[-1].group()):
        return None
    found = numbers[-1]
    size = Decimal(found.group().replace(",", ""))
    before = text[max(0, found.start() - 3) : found.start()]
    # copy_negate, for the minus operator would round to the context's 28 digits.
    return size.copy_negate() if _NEGATIVE.search(before) else size


def _after_marker(answer: str) -> str | None:
    """The first line after the last marker that holds more than emphasis, "" where none does; None without
    a marker."""
    markers = list(_MARKER.finditer(answer))
    if not markers:
        return None
    lines = answer[markers[-1].end() :].splitlines()
    return next((line for line in lines if _bare(line, "")), "")


def _stands_in(item: str, text: str) -> bool:
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, item) else ""
    after = rf"(?!{_LETTER})" if re.match(_LETTER, item[-1:]) else ""
    return re.search(before + re.escape(item) + after, text) is not None


def _bare(text: str, punctuation: str) -> str:
    return normalise(text).strip(_EMPHASIS + " ").rstrip(punctuation + _EMPHASIS + " ")
