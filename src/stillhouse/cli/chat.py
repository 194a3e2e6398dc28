"""`stillhouse chat`: one prompt, two answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from stillhouse.ask import Limits, Question, Sampling, answers, ask
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.models.local import LocalModel, Request, generate, load_model, prompt_ids
from stillhouse.pipeline import open_teacher
from stillhouse.pipeline.setup import hear_terms
from stillhouse.recipe import Recipe
from stillhouse.records import Message
from stillhouse.terms import gate
from stillhouse.workspace import RunFolder, Workspace


def converse(workspace: Workspace, run: RunFolder, prompts: Iterable[str], as_json: bool) -> None:
    """Answer each prompt by the run's teacher and its student. The teacher's answers land in the ledger."""
    if not (run.student / "config.json").is_file():
        raise UsageError(
            f"{run.root.name} has no student yet", "its training has not finished", "finish the run first"
        )
    recipe = Recipe.model_validate_json(run.recipe.read_text())
    student = load_model(str(run.student))
    sampling = Sampling(0.0, 1.0, recipe.collect.max_tokens)
    limits = Limits(1, recipe.collect.timeout, recipe.collect.retries)
    with (
        Ledger.open(workspace) as ledger,
        open_teacher(recipe.teacher, run.logs / "chat-teacher.log") as teacher,
    ):
        hear_terms(recipe, ledger)
        decision = gate.admit(recipe, recipe.teacher, "evaluation", ledger, datetime.now(UTC))
        if sys.stdin.isatty() and not as_json:
            print("a prompt a line; end with Ctrl-D", file=sys.stderr)
        for line in prompts:
            if not line.strip():
                continue
            question = Question("chat", (Message("user", line.strip()),))
            if teacher.url is not None:
                ask([question], teacher, sampling, limits, ledger, f"{run.root.name}/chat", decision)
            _, exchange = next(answers([question], teacher, sampling, ledger))
            taught = None if exchange is None else exchange.completion.text
            own = _answer(student, question, sampling.max_tokens)
            if as_json:
                print(
                    json.dumps(
                        {"prompt": line.strip(), "teacher": taught, "student": own}, ensure_ascii=False
                    ),
                    flush=True,
                )
            else:
                print(
                    f"teacher  {taught if taught is not None else 'no answer'}\nstudent  {own}\n", flush=True
                )


def _answer(student: LocalModel, question: Question, max_tokens: int) -> str:
    request = Request(prompt_ids(student, question.messages), max_tokens)
    return generate(student, [request])[0].text
