"""Rows through filters, one after the other, so that every row's end and its reason are counted.

A row is a dict with the columns of `exchanges.parquet`, and `reference` and `scorer` of its prompt. A filter
is a function from a row to a verdict; the first that does not keep a row decides about it. Whatever a filter
does wrong (raises, returns something else) leaves the row `unscored` with that as its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillhouse.records import Verdict
from stillhouse.text import is_unicode

Row = dict[str, Any]
Filter = Callable[[Row], Verdict]
Judge = Callable[[Sequence[Row]], Sequence[Verdict]]
"""Verdicts on rows in their order; it may remember the rows of earlier calls."""
Edit = Callable[[Row], tuple[Row, Sequence[str]]]
"""The row, changed or as it was, and what there is to count about it."""

KEEP = Verdict("keep")
_RULINGS = ("keep", "drop", "unscored")


@dataclass(frozen=True, slots=True)
class Step:
    """One filter, or one edit, which drops no row."""

    name: str
    judge: Judge | None = None
    edit: Edit | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A row's end: the verdict, and the step that gave it, or "" where all kept it. `marks` are what edits
    said on the way, each with its step."""

    row: Row
    verdict: Verdict = KEEP
    step: str = ""
    marks: tuple[tuple[str, str], ...] = ()


def filtering(name: str, judge: Filter) -> Step:
    """A step that asks a function about each row by itself."""
    return Step(name, lambda rows: [_one(name, judge, row) for row in rows])


def on_a_copy(judge: Filter) -> Filter:
    """The filter, shown a copy of each row: what somebody else's function does to it must not reach a
    sample."""
    return lambda row: judge({**row, "messages": [dict(message) for message in row["messages"]]})


def put_through(rows: Iterable[Judged], steps: Sequence[Step]) -> list[Judged]:
    """The rows after these steps, in order. Never raises because of a row or of a step's function."""
    judged = list(rows)
    for step in steps:
        alive = [place for place, one in enumerate(judged) if one.verdict.ruling == "keep"]
        if not alive:
            break
        if step.edit is not None:
            for place in alive:
                judged[place] = _edited(step.name, step.edit, judged[place])
            continue
        verdicts = _verdicts(step, [judged[place].row for place in alive])
        for place, verdict in zip(alive, verdicts, strict=True):
            if verdict.ruling != "keep":
                judged[place] = replace(judged[place], verdict=verdict, step=step.name)
    return judged


def _one(name: str, judge: Filter, row: Row) -> Verdict:
    try:
        verdict = judge(row)
    except Exception as error:  # a filter's fault is counted; its message may hold a part of the row
        return Verdict("unscored", f"{name} raised {type(error).__name__}")
    return _checked(name, verdict)


def _checked(name: str, verdict: Any) -> Verdict:
    if not isinstance(verdict, Verdict) or verdict.ruling not in _RULINGS:
        return Verdict("unscored", f"{name} returned no verdict")
    if verdict.reason and not (isinstance(verdict.reason, str) and is_unicode(verdict.reason)):
        return Verdict("unscored", f"{name} returned a reason that is no text")
    return verdict if verdict.reason or verdict.ruling == "keep" else Verdict(verdict.ruling, name)


def _verdicts(step: Step, rows: list[Row]) -> list[Verdict]:
    assert step.judge is not None
    try:
        verdicts = list(step.judge(rows))
    except Exception as error:
        return [Verdict("unscored", f"{step.name} raised {type(error).__name__}")] * len(rows)
    if len(verdicts) != len(rows):
        return [Verdict("unscored", f"{step.name} returned no verdict")] * len(rows)
    return [_checked(step.name, verdict) for verdict in verdicts]


def _edited(name: str, edit: Edit, one: Judged) -> Judged:
    try:
        row, said = edit(one.row)
    except Exception as error:
        verdict = Verdict("unscored", f"{name} raised {type(error).__name__}")
        return replace(one, verdict=verdict, step=name)
    return replace(one, row=row, marks=(*one.marks, *((name, mark) for mark in said)))


# ---------------------------------------------------------------- counting

_Ending = tuple[str, str, str, str, str]  # step, ruling, reason, family, teacher


class Tally:
    """How many rows ended where and why, and what edits said of how many."""

    def __init__(self) -> None:
        self._ends: Counter[_Ending] = Counter()
        self._marks: Counter[tuple[str, str]] = Counter()

    def add(self, judged: Iterable[Judged]) -> None:
        for one in judged:
            verdict = one.verdict
            self._ends[one.step, verdict.ruling, verdict.reason, one.row["family"], one.row["teacher"]] += 1
            self._marks.update(one.marks)

    @property
    def rows(self) -> int:
        return self._ends.total()

    def reasons(self, ruling: str) -> dict[str, int]:
        """Rows with this ruling by reason; all of them under "" for "keep"."""
        return self._by(2, ruling)

    def families(self, ruling: str = "keep") -> dict[str, int]:
        return self._by(3, ruling)

    def balance(self, place: int) -> dict[str, dict[str, int]]:
        """For each family (place 3) or teacher (place 4): rows = kept + dropped + unscored."""
        kept, dropped, unscored = (self._by(place, ruling) for ruling in _RULINGS)
        return {
            name: {
                "rows": kept.get(name, 0) + dropped.get(name, 0) + unscored.get(name, 0),
                "kept": kept.get(name, 0),
                "dropped": dropped.get(name, 0),
                "unscored": unscored.get(name, 0),
            }
            for name in sorted({end[place] for end in self._ends})
        }

    def funnel(self, steps: Sequence[str]) -> list[dict[str, Any]]:
        """One entry for each step in order: in = dropped + unscored + out, and `in` is the `out` before it.

        `families` and `teachers` hold what the step took out of each; those that lost nothing are left out.
        """
        entries, remaining = [], self.rows
        for step in steps:
            ends = {end: n for end, n in self._ends.items() if end[0] == step}
            dropped = sum(n for end, n in ends.items() if end[1] == "drop")
            unscored = sum(ends.values()) - dropped
            entries.append(
                {
                    "filter": step,
                    "in": remaining,
                    "dropped": dropped,
                    "unscored": unscored,
                    "marks": {mark: n for (name, mark), n in sorted(self._marks.items()) if name == step},
                    "out": remaining - dropped - unscored,
                    "families": _summed(ends, 3),
                    "teachers": _summed(ends, 4),
                }
            )
            remaining -= dropped + unscored
        return entries

    def _by(self, place: int, ruling: str) -> dict[str, int]:
        return _summed({end: n for end, n in self._ends.items() if end[1] == ruling}, place)


def _summed(ends: dict[_Ending, int], place: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for end, n in ends.items():
        found[end[place]] += n
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))
