"""What the stages of one run share, and the markers by which it is known what is done."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rfc8785

from stillhouse import ask as asking
from stillhouse.collect import PromptSet
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.recipe import FOR_THE_GATE, Recipe
from stillhouse.records import Prompt, Watch
from stillhouse.scoring import Scorer
from stillhouse.workspace import RunFolder, Workspace, read_marker, write_json


@dataclass(frozen=True, slots=True)
class Work:
    workspace: Workspace
    folder: RunFolder
    recipe: Recipe
    ledger: Ledger
    teachers: Sequence[asking.Teacher]  # the first is the one that the student is measured against
    prompts: PromptSet
    scorers: Mapping[str, Scorer]
    watch: Watch
    ray_workers: int | None


def mark(work: Work, stage: str, inputs: str, seconds: float, result: Mapping[str, Any]) -> None:
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    marker = {"inputs": inputs, "finished": finished, "seconds": seconds, "result": dict(result)}
    write_json(work.folder.marker(stage), marker)


def is_done(work: Work, stage: str, inputs: str, *outputs: Path) -> bool:
    """Whether the stage finished on these inputs and its files are there. If not, its marker is taken away
    before the work begins, so that it never vouches for files that are being written."""
    marker = read_marker(work.folder, stage)
    if marker is not None and marker.get("inputs") == inputs and all(path.exists() for path in outputs):
        return True
    work.folder.marker(stage).unlink(missing_ok=True)
    return False


def result_of(folder: RunFolder, stage: str) -> dict[str, Any] | None:
    marker = read_marker(folder, stage)
    return None if marker is None else {"seconds": marker["seconds"], **marker["result"]}


def need(work: Work, stage: str) -> dict[str, Any]:
    result = result_of(work.folder, stage)
    if result is None:
        raise UsageError(
            f"the stage {stage} of {work.folder.root.name} has not been run",
            "this stage works on its result",
            f"run `stillhouse {stage} RECIPE` first, or `stillhouse run RECIPE` for all stages",
        )
    return result


def digest(*parts: Any) -> str:
    return hashlib.sha256(rfc8785.dumps(list(parts))).hexdigest()


def facts(prompt: Prompt) -> list[Any]:
    messages = [[m.role, m.content, m.extra] for m in prompt.messages]
    return [prompt.id, messages, prompt.tools, prompt.family, prompt.group, prompt.reference, prompt.scorer]


# Of [evaluate] what is reckoned with anew in every run, or is no part of what a judge is asked.
_REREAD: Any = {
    "machine_price": True,
    "judge": {"key_env", "price", "terms", *FOR_THE_GATE},
    "students": {"__all__": {"task"}},
}


def asked_of_the_test(recipe: Recipe) -> dict[str, Any]:
    """The settings of [evaluate] that change what is scored, or asked of a judge."""
    settings = recipe.evaluate.model_dump(mode="json", exclude=_REREAD)
    if settings["judge"] is not None and settings["judge"]["upstream"] is None:
        del settings["judge"]["upstream"]  # as before there was such a key
    return settings


def counts(work: Work, *tallies: asking.Tally, others: Sequence[asking.Teacher] = ()) -> dict[str, Any]:
    """`sent`, `answered`, `reused`, `failed` and `failures` are of this call, attempts of the run. Tokens and
    `cost.low` (US dollars) are of the answers to these questions that the run bought; `cost.high` is what
    the run has spent so far at most, requests counted that may have been billed without an answer."""
    attempts = work.ledger.attempts(work.folder.root.name)
    priced = all(teacher.price is not None for teacher in (*work.teachers, *others))
    failures = sum((Counter(tally.failures) for tally in tallies), Counter[str]())
    return {
        "sent": sum(tally.sent for tally in tallies),
        "answered": sum(tally.answered for tally in tallies),
        "reused": sum(tally.reused for tally in tallies),
        "failed": sum(len(tally.failed) for tally in tallies),
        "failures": dict(failures),
        "attempts": {"answered": attempts.answered, "failed": attempts.failed, "unknown": attempts.unknown},
        "unknown": attempts.unknown,
        "prompt_tokens": sum(tally.prompt_tokens for tally in tallies),
        "completion_tokens": sum(tally.completion_tokens for tally in tallies),
        "cost": {
            "low": sum(tally.billed for tally in tallies) if priced else None,
            "expected": None,
            "high": max(tally.budget.spent for tally in tallies) if priced else None,
        },
    }
