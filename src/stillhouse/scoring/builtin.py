"""The scorers that stillhouse ships. Each compares one answer with one reference and gives 0.0 or 1.0, and
`json_fields_share` what lies between.

A reference that a scorer cannot read raises BadReference: that row is then unscored, for a wrong reference
says nothing about the answer. An answer that cannot be read is wrong and scores 0.
"""

from __future__ import annotations

import json
import re
from types import UnionType
from typing import Any

from stillhouse.scoring.numbers import stated_number
from stillhouse.text import normalise


class Unscored(Exception):
    """A scorer cannot give a score; its text says why."""


class BadReference(Unscored):
    """The reference is not of the form that the scorer compares with."""


def exact(answer: str, reference: str) -> float:
    """The whole answer equals the reference after `text.normalise` (case, white space, Unicode form)."""
    return float(normalise(answer) == normalise(reference))


def json_value(answer: str, reference: str) -> float:
    """The first JSON object or array in the answer equals the reference.

    Text around it and code fences are passed over. Key order is free, 1 equals 1.0, true does not equal 1,
    strings are compared as they stand.
    """
    wanted = _decoded(reference)
    if not isinstance(wanted, dict | list):
        raise BadReference("the reference is not a JSON object or array")
    found = _first_json(answer, dict | list)
    return float(found is not None and _same(found, wanted))


def json_fields(answer: str, reference: str) -> float:
    """Every field of the reference, a JSON object, stands with the same value in the first JSON object of the
    answer. Fields that the reference does not name are free; values are compared as by `json_value`."""
    return float(json_fields_share(answer, reference) == 1.0)


def json_fields_share(answer: str, reference: str) -> float:
    """The share of the reference's fields that the first JSON object of the answer has right; see
    `json_fields`. 0 without an object."""
    wanted = _decoded(reference)
    if not isinstance(wanted, dict) or not wanted:
        raise BadReference("the reference is not a JSON object with fields")
    found = _first_json(answer, dict)
    if found is None:
        return 0.0
    return sum(name in found and _same(found[name], wanted[name]) for name in wanted) / len(wanted)


def numeric(answer: str, reference: str) -> float:
    """The number that the answer comes down to equals the reference's, exactly (1.50 equals 1.5 and 3/2).

    It is the last number, or the last one in \\boxed{...} or after ####. Units, signs of currency and words
    around it do not count, and 12% is read as 12. See docs/evaluation.md for all the ways to write it. What
    could mean two numbers (1,5) is not guessed: it is unreadable, and so wrong.
    """
    wanted = stated_number(reference)
    if wanted is None:
        raise BadReference("the reference holds no number that can be read")
    return float(stated_number(answer) == wanted)


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
_TRIES = 1000  # brackets that open nothing
_MARKER = re.compile(r"\banswer\s*:", re.IGNORECASE)
_EMPHASIS = "*_`"
# Letters and digits of scripts with spaces between words; from Thai on few have them (Vietnamese has).
_LETTER = r"[^\W\u0e00-\u1dff\u2000-\U0010ffff]"


def as_reference(answer: str) -> tuple[str, ...]:
    """What an answer says, in the forms that scorers take as a reference: the whole, the line after its last
    "Answer:" and the first JSON in it."""
    marked, value = _after_marker(answer), _first_json(answer, dict | list)
    said = (answer, marked and marked.strip(f"{_EMPHASIS} "), None if value is None else json.dumps(value))
    return tuple(text for text in said if text)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _decoded(text: str) -> Any:
    """The value of a whole JSON text, None for anything else."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _first_json(text: str, kind: type | UnionType) -> Any:
    """The first value of this kind that parses, or None; a bracket that opens nothing is passed over (a
    thousand of them: each may be read to the end of the text), and of what parses as another kind nothing
    inside is looked at."""
    start, end, left = _JSON_START.search(text), 0, _TRIES
    while start is not None and left:
        try:
            value, end = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            end = start.end()
            left -= 1
        else:
            if isinstance(value, kind):
                return value
        start = _JSON_START.search(text, end)
    return None


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


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
