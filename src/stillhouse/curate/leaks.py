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
            prompt_of(row)
            for batch in pq.ParquetFile(prompts).iter_batches(columns=["messages", "split"])
            for row in batch.to_pylist()
            if row["split"] == "test"
        ]
        if prompts.is_file()
        else []
    )
    named = [("test", own)] if own else []
    named += [(Path(one.file).name, questions(one)) for one in sets]
    made = []
    for name, texts in named:
        index = NgramIndex(texts, _COMMON)
        made.append(Exam(name, index, Coverage(index), frozenset(_plain(text) for text in texts)))
    return made


def outside(exam: Exam, least: float) -> Any:
    """A judge that drops a row whose prompt is a question of the exam, has at least this share of its 8-grams
    there or holds this share of those of one question; 0 drops none and only counts."""

    def judge(rows: Sequence[Row]) -> list[Verdict]:
        prompts = [prompt_of(row) for row in rows]
        verdicts = []
        for prompt, ratio in zip(prompts, exam.index.ratios(prompts), strict=True):
            same = _plain(prompt) in exam.asked
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
            return [str(value) for value in column if value is not None]
        lines = path.read_text(encoding="utf-8").splitlines()
        return [str(json.loads(line)[one.column]) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        raise UsageError(
            f"cannot read the evaluation set {path}",
            f"{type(error).__name__}: {error}",
            f"give a JSON Lines or Parquet file in which each row has a column `{one.column}`",
        ) from None
