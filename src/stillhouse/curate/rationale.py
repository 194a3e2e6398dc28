"""The rationale of an answer: what the teacher thought before it, kept beside the answer and not in it.

Some servers give it apart; others leave it in the text, between marks such as `<think>` and `</think>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stillhouse.curate.funnel import Edit, Row
from stillhouse.errors import UsageError


def splitting(pattern: str) -> Edit:
    """Takes what the regular expression finds first out of an answer: its group 1, or all of it where it has
    none, joins the rationale. What follows is the answer, without the space around it.

    Raises UsageError for what is no regular expression.
    """
    try:
        wanted = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UsageError(
            f"`curate.rationale` is no regular expression: {pattern}",
            str(error),
            "see https://docs.python.org/3/library/re.html",
        ) from None

    def split(row: Row) -> tuple[Row, Sequence[str]]:
        found = wanted.search(row["answer"])
        if found is None:
            return row, ("given apart" if row["reasoning"] else "none",)
        said = found[1 if wanted.groups else 0] or ""
        reasoning = "\n".join(part for part in (row["reasoning"], said.strip()) if part)
        answer = row["answer"][: found.start()] + row["answer"][found.end() :]
        return {**row, "answer": answer.strip(), "reasoning": reasoning or None}, ("in the answer",)

    return split
