"""Whether the student does as its teacher does, beside scoring as well: style, refusals, form, weak spots.

Pure: rows in, plain values out. Teacher and student are compared on the prompts that both answered.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stillhouse import stats
from stillhouse.evaluate.calibration import calibration
from stillhouse.evaluate.figures import Figures, family, lay_out
from stillhouse.evaluate.predictions import Prediction
from stillhouse.refusals import declines
from stillhouse.text import is_unicode

Pair = tuple[Prediction, Prediction]  # the teacher's row and the student's; both have an answer

ENDS = ("value", "low", "high")
MARKS = {
    "markdown": re.compile(r"^#{1,6} \S|\*\*[^*\n]+\*\*|^\|.+\|\s*$", re.MULTILINE),
    "list": re.compile(r"^\s*(?:[-*+\u2022]|\d{1,3}[.)])\s+\S", re.MULTILINE),
    "code": re.compile(r"```"),
}
_FENCED = re.compile(r"```\w*\n(.*)\n```", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def fidelity_figures(rows: Sequence[Prediction], apart: Sequence[str], seed: int, resamples: int) -> Figures:
    """All that follows from the rows alone.

    calibration   see `calibration`
    style         see `style`
    refusals      n prompts, refused by `both`, `lost` (only the teacher refused), `invented` (only the
                  student did)
    json, tool_calls
                  see `form`
    slice         families, `less`, and n, teacher, student, retention, each for those `apart` and the `rest`;
                  None where `apart` names none
    """
    pairs = answered_by_both(rows)
    return {
        "calibration": calibration(rows),
        "style": style(pairs, seed, resamples),
        "refusals": refusals(pairs),
        "json": form(pairs, whole_json, _same_keys),
        "tool_calls": form(pairs, tool_calls, _same_calls),
        "slice": kept_apart(rows, apart) if apart else None,
    }


def answered_by_both(rows: Sequence[Prediction]) -> list[Pair]:
    theirs = {row.prompt_id: row for row in rows if row.system == "teacher" and row.answer is not None}
    return [
        (theirs[row.prompt_id], row)
        for row in rows
        if row.system == "student" and row.answer is not None and row.prompt_id in theirs
    ]


def style(pairs: Sequence[Pair], seed: int, resamples: int) -> Figures:
    """Length of the student's answers to that of the teacher's (`characters`, and `tokens` as each counts its
    own), and for each kind of mark the share of answers that have any: teacher, student, `change`.

    `punctuation` is the share of all characters but white space.
    """
    counted = [pair for pair in pairs if all(row.completion_tokens is not None for row in pair)]
    found: Figures = {
        "n": len(pairs),
        "characters": _ratio(pairs, lambda row: len(row.answer or ""), seed, resamples),
        "tokens": _ratio(counted, lambda row: row.completion_tokens or 0, seed, resamples),
    }
    for name, pattern in MARKS.items():
        has = [[float(bool(pattern.search(row.answer or ""))) for row in pair] for pair in pairs]
        found[name] = _shares(has, pairs)
    found["punctuation"] = {
        who: _punctuation([pair[place].answer or "" for pair in pairs])
        for place, who in enumerate(("teacher", "student"))
    }
    return found


def refusals(pairs: Sequence[Pair]) -> Figures:
    said = [tuple(_refused(row) for row in pair) for pair in pairs]
    return {
        "n": len(pairs),
        "both": said.count((True, True)),
        "lost": said.count((True, False)),
        "invented": said.count((False, True)),
    }


def form(pairs: Sequence[Pair], read: Callable[[str], Any], same: Callable[[Any, Any], bool]) -> Figures:
    """Where the teacher's answer is of a form that `read` reads (None for what it does not): n, how many of
    the student's are (`valid`) and say it in the same fields (`same`); `invented` where only the student's
    is of that form."""
    read_both = [(read(theirs.answer or ""), read(ours.answer or "")) for theirs, ours in pairs]
    wanted = [pair for pair in read_both if pair[0] is not None]
    valid = [pair for pair in wanted if pair[1] is not None]
    return {
        "n": len(wanted),
        "valid": len(valid),
        "same": sum(same(theirs, ours) for theirs, ours in valid),
        "invented": sum(theirs is None and ours is not None for theirs, ours in read_both),
    }


def whole_json(answer: str) -> Any:
    """The object or array that the answer is, a code fence around it aside; else None."""
    stripped = answer.strip()
    if fenced := _FENCED.fullmatch(stripped):
        stripped = fenced[1]
    try:
        found = json.loads(stripped)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def tool_calls(answer: str) -> list[str] | None:
    """Names of the functions that an answer calls in `<tool_call>` marks; None without any call, and where
    one is not JSON with a `name` and `arguments`."""
    names = []
    for block in _CALL.findall(answer):
        try:
            call = json.loads(block)
        except (ValueError, RecursionError):
            return None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        if not isinstance(call.get("arguments"), dict):
            return None
        names.append(call["name"])
    return names or None


def kept_apart(rows: Sequence[Prediction], apart: Sequence[str]) -> Figures:
    """The families that lie outside what was trained on, and the rest, scored each by itself.

    `less` is how much smaller a share the student keeps apart than of the rest. Where `apart` are questions
    of the same kind that are newer than all that was trained on, that is what test questions in other words
    among the training prompts would have added to the rest.
    """
    sheet = lay_out(rows)
    inside = np.array([of in apart for of in sheet.families], dtype=bool)
    wanted = ("n", "groups", "teacher", "student", "retention")
    both = {"apart": family(sheet, inside), "rest": family(sheet, ~inside)}
    rest, inner = (stats.Interval(*(both[w]["retention"][k] for k in ENDS)) for w in ("rest", "apart"))
    return {
        "families": sorted(apart),
        "less": _plain(stats.independent_difference(rest, inner)),
        **{which: {key: figures[key] for key in wanted} for which, figures in both.items()},
    }


def _refused(row: Prediction) -> bool:
    return row.finish_reason == "content_filter" or declines(row.answer or "")


def _same_keys(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return theirs.keys() == ours.keys()
    return isinstance(theirs, list) and isinstance(ours, list)


def _same_calls(theirs: list[str], ours: list[str]) -> bool:
    return theirs == ours


def _punctuation(texts: Sequence[str]) -> float | None:
    characters = [c for text in texts if is_unicode(text) for c in text if not c.isspace()]
    if not characters:
        return None
    return sum(unicodedata.category(c).startswith("P") for c in characters) / len(characters)


def _codes(pairs: Sequence[Pair]) -> stats.Codes:
    return stats.group_codes([ours.group for _, ours in pairs], [ours.prompt_id for _, ours in pairs])


def _ratio(pairs: Sequence[Pair], size: Callable[[Prediction], float], seed: int, resamples: int) -> Figures:
    span = stats.bootstrap_ratio(
        [size(ours) for _, ours in pairs],
        [size(theirs) for theirs, _ in pairs],
        _codes(pairs),
        np.random.default_rng(seed),
        resamples,
    )
    return {**_plain(span), "n": len(pairs)}


def _shares(has: Sequence[Sequence[float]], pairs: Sequence[Pair]) -> Figures:
    """Teacher's and student's share of answers that have it, and the change with its clustered interval."""
    if not pairs:
        return {"teacher": None, "student": None, "change": _plain(stats.UNDEFINED)}
    teacher, student = np.array(has, dtype=np.float64).T
    change = mean_change(student - teacher, _codes(pairs))
    return {"teacher": float(teacher.mean()), "student": float(student.mean()), "change": _plain(change)}


def mean_change(differences: stats.Floats, codes: stats.Codes) -> stats.Interval:
    """Mean of paired differences with its t interval from groups; without ends with fewer than two, and where
    all are equal, which does not show how sure that is."""
    if len(differences) == 0:
        return stats.UNDEFINED
    value = float(differences.mean())
    error = stats.clustered_error(differences, codes)
    if not error:
        return stats.Interval(value, None, None)
    half = stats.t_quantile(0.95, int(codes.max())) * error
    return stats.Interval(value, value - half, value + half)


def _plain(span: stats.Interval) -> Figures:
    return {"value": span.value, "low": span.low, "high": span.high}
