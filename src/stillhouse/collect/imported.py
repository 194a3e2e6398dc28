"""Answers that were collected elsewhere, brought into the ledger under declared terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from stillhouse.ask import Question, Sampling, Teacher, question_key, request_body
from stillhouse.collect.prompts import parse_prompt
from stillhouse.collect.sources import Broken, read_rows
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger, read_workspace_key
from stillhouse.ledger.permissions import append_answers
from stillhouse.recipe import Declaration, Prompts
from stillhouse.terms import gate
from stillhouse.text import is_unicode


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the rows of a file: rows = imported + known + repeated + broken."""

    imported: int
    known: int  # the ledger had an imported answer of this model to this prompt
    repeated: int  # the file asked this before, with the same answer or another one: the first was taken
    broken: tuple[Broken, ...]
    decision: int


def import_file(
    file: Path,
    model: str,
    declaration: Declaration,
    ledger: Ledger,
    prompt: str = "prompt",
    answer: str = "answer",
) -> Imported:
    """Write one `import` leaf for each row with a prompt and an answer.

    A recipe then uses them with `teacher.imported = true`, the same `teacher.model`, and the same file as
    `prompts.source`. Who gave the answers, and on what terms, is the operator's word; the leaf says so.
    An answer that was erased can be imported again. Raises UsageError when no row is usable, and GateRefused
    when the use is not allowed or a permission does not cover all answers that are new; then none is written.
    """
    decision = gate.admit_import(model, declaration, ledger, datetime.now(UTC))
    secret = read_workspace_key(ledger.workspace)
    settings = Prompts(source=str(file), prompt=prompt)
    teacher = Teacher(model, "import", "", None)
    broken: list[Broken] = []
    rows: dict[str, tuple[dict[str, Any], dict[str, bytes]]] = {}
    seen = 0
    for number, (place, row) in enumerate(read_rows(settings.source)):
        parsed = row if isinstance(row, Broken) else parse_prompt(row, settings, place, number)
        if isinstance(parsed, Broken):
            broken.append(parsed)
            continue
        text = row.get(answer)
        if not isinstance(text, str) or not text.strip():
            broken.append(Broken(place, f"no answer in column `{answer}`"))
            continue
        if not is_unicode(text):
            broken.append(Broken(place, "the answer holds half a character (a lone surrogate)"))
            continue
        seen += 1
        question = Question(parsed.id, parsed.messages)
        key = question_key(secret, question, teacher, _NONE)
        body = {
            "key": key,
            "decision": decision,
            "teacher": {"endpoint": "import", "model": model, "revision": ""},
            "declared": True,
        }
        request = {"model": model, "messages": request_body(question, teacher, _NONE)["messages"]}
        contents = {"request": orjson.dumps(request), "response": response_of(model, text)}
        rows.setdefault(key, (body, contents))
    if not rows:
        raise UsageError(
            f"no usable row in {file}", f"{len(broken)} broken rows", f"columns `{prompt}` and `{answer}`"
        )
    known = {stored.key for stored in ledger.exchanges(rows) if stored.response is not None}
    new = [leaf for key, leaf in rows.items() if key not in known]
    append_answers(ledger, decision, new)
    return Imported(len(new), len(known), seen - len(rows), tuple(broken), decision)


def declare(document: Path, read_on: str, declared_by: str, about: Sequence[str] = ()) -> Declaration:
    """The statement under which answers are imported. Raises UsageError for a bad date or an empty name."""
    try:
        return Declaration.model_validate(
            {
                "document": str(document),
                "read_on": read_on.strip(),
                "declared_by": declared_by.strip(),
                "about": list(about),
            }
        )
    except ValidationError as error:
        fault = error.errors()[0]["loc"][0]
        what, mend = {
            "read_on": (f"{read_on!r} is not a date", "give the day on which you read the terms: YYYY-MM-DD"),
            "declared_by": ("nobody declares the terms", "give the name of whoever says so"),
        }[str(fault)]
        raise UsageError(what, "answers are imported under terms that somebody read on a day", mend) from None


_NONE = Sampling(0.0, 1.0, 1)  # how imported answers were sampled is not known, and enters no key


def response_of(model: str, text: str, finish_reason: str | None = None) -> bytes:
    """An answer in the form in which servers give one."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return orjson.dumps({"object": "chat.completion", "model": model, "choices": [choice]})
