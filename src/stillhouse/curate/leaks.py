"""Questions of a test that stand among the rows to learn from, and how much of each test they hold.

Found is what has 8 words in a row in common. A test question that was put in other words passes, and is only
seen by its effect: see docs/curating.md on fresh questions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.curate.duplicates import prompt_of
from stillhouse.curate.funnel import KEEP, Row
from stillhouse.errors import UsageError
from stillhouse.recipe import LeakSet
from stillhouse.records import Verdict
from stillhouse.similar import Coverage, NgramIndex
from stillhouse.text import conversation

_COMMON = 0.01  # an 8-gram in more than this share of a test's questions is its wording, and no leak
_SHOWN = 0.5  # share of 8-grams from which a row is counted where none is dropped, and a question as held


@dataclass(slots=True)
class Exam:
    """One evaluation set. `found` counts the rows that share 8-grams with it, by what was done with them."""

    name: str
    index: NgramIndex
    coverage: Coverage
    asked: frozenset[str]  # its questions, normalised
    found: Counter[str] = field(default_factory=Counter)


def exams(prompts: Path, sets: Sequence[LeakSet]) -> list[Exam]:
    """The run's own test prompts, where it has any, and the further sets."""
    own = (
        [
            (prompt_of(row), question_of(row))
            for batch in pq.ParquetFile(prompts).iter_batches(columns=["messages", "split"])
            for row in batch.to_pylist()
            if row["split"] == "test"
        ]
        if prompts.is_file()
        else []
    )
    named = [("test", own)] if own else []
    named += zip(_names(sets), ([(text, text) for text in questions(one)] for one in sets), strict=True)
    made = []
    for name, asked in named:
        index = NgramIndex([whole for whole, _ in asked], _COMMON)
        plain = frozenset(_plain(text) for both in asked for text in both)
        made.append(Exam(name, index, Coverage(index), plain))
    return made


def _names(sets: Sequence[LeakSet]) -> list[str]:
    """The files' names, with their folders where that tells them apart, and else numbered: rows are counted
    by them."""
    files = [Path(one.file) for one in sets]
    bare = Counter(["test", *(file.name for file in files)])
    names = [file.name if bare[file.name] == 1 else f"{file.parent.name}/{file.name}" for file in files]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def question_of(row: Row) -> str:
    """What the user asked, where that was said in one message, and else the whole prompt: the same question
    under another system prompt is the same question."""
    asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return asked[0] if len(asked) == 1 else prompt_of(row)


def outside(exam: Exam, least: float) -> Any:
    """A judge that drops a row whose prompt is a question of the exam, has at least this share of its 8-grams
    there or holds this share of those of one question; 0 drops none and only counts."""

    def judge(rows: Sequence[Row]) -> list[Verdict]:
        ratios = exam.index.ratios([prompt_of(row) for row in rows])
        verdicts = []
        for row, ratio in zip(rows, ratios, strict=True):
            same = _plain(prompt_of(row)) in exam.asked or _plain(question_of(row)) in exam.asked
            leaks = same or (ratio is not None and ratio >= (least or _SHOWN))
            exam.found["same"] += same
            exam.found["leaks"] += leaks
            exam.found["any"] += same or bool(ratio)
            verdicts.append(Verdict("drop", f"leak: {exam.name}") if leaks and least else KEEP)
        return verdicts

    return judge


def report(exam: Exam, least: float) -> dict[str, Any]:
    """Both directions: the rows that hold questions of the exam, and how much of the exam the kept rows hold.

    `rows.leaks` are those at `threshold` or above it; `test_words` counts the words of the exam, and
    `test_words_held` those in an 8-gram that the kept rows have too.
    """
    held, total = exam.coverage.words()
    shares = exam.coverage.shares()
    return {
        "set": exam.name,
        "questions": len(exam.index),
        "too_short": len(exam.index.too_short),
        "threshold": least or _SHOWN,
        "dropped": bool(least),
        "rows": {name: exam.found[name] for name in ("same", "leaks", "any")},
        "questions_held": sum(share is not None and share >= _SHOWN for share in shares),
        "test_words": total,
        "test_words_held": held,
    }


def _plain(text: str) -> str:
    return conversation([("", text)])


def questions(one: LeakSet) -> list[str]:
    """The column of a JSON Lines or Parquet file. Raises UsageError where it is not there."""
    path = Path(one.file)
    try:
        if path.suffix == ".parquet":
            column = pq.read_table(path, columns=[one.column])[one.column].to_pylist()
        else:
            # A line ends at a line feed alone: what else `splitlines` parts may stand within a string.
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            column = [json.loads(line)[one.column] for line in lines if line.strip()]
        found = [value for value in column if value is not None]
        if not all(isinstance(value, str) for value in found):
            raise TypeError(f"a value of `{one.column}` is no text")
        found = [value for value in found if value.strip()]
        if not found:
            raise ValueError("it holds no question")
        return found
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        raise UsageError(
            f"cannot read the evaluation set {path}",
            f"{type(error).__name__}: {error}",
            f"give a JSON Lines or Parquet file in which each row has text in a column `{one.column}`",
        ) from None
