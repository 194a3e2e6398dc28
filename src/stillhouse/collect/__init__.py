"""collect: put every prompt to the teacher once, and write what came back in the order of the prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import rfc8785

from stillhouse.ask import Limits, Question, Sampling, Tally, Teacher, answers, ask
from stillhouse.collect.prompts import PromptSet, load_prompts, name_broken
from stillhouse.errors import EndpointError, storage
from stillhouse.ledger import Ledger
from stillhouse.recipe import Recipe
from stillhouse.records import Prompt, Watch, unwatched
from stillhouse.workspace import RunFolder

__all__ = [
    "Collected",
    "PromptSet",
    "collect",
    "load_prompts",
    "name_broken",
    "plan_questions",
    "sampling_of",
]

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PROMPTS = pa.schema(
    [
        ("id", pa.string()),
        ("messages", MESSAGES),
        ("family", pa.string()),
        ("group", pa.string()),
        ("reference", pa.string()),
        ("scorer", pa.string()),
        ("split", pa.string()),
    ]
)
EXCHANGES = pa.schema(
    [
        ("key", pa.string()),
        ("leaf", pa.int64()),
        ("decision", pa.int64()),
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("messages", MESSAGES),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("refusal", pa.string()),
        ("reasoning", pa.string()),
        ("family", pa.string()),
        ("group", pa.string()),
        ("teacher", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)
ROWS = 4096  # rows written at once


@dataclass(frozen=True, slots=True)
class Collected:
    """`digest` is over the rows of the exchanges, in order: what the next stage depends on."""

    tally: Tally
    digest: str
    exchanges: int


def plan_questions(prompts: Sequence[Prompt], samples: int) -> list[Question]:
    return [Question(p.id, p.messages, index) for p in prompts for index in range(samples)]


def sampling_of(recipe: Recipe) -> Sampling:
    settings = recipe.collect
    return Sampling(settings.temperature, settings.top_p, settings.max_tokens, settings.top_logprobs)


def limits_of(recipe: Recipe) -> Limits:
    settings = recipe.collect
    return Limits(
        settings.concurrency,
        settings.timeout,
        settings.retries,
        settings.max_cost,
        settings.max_failures,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
    )


def collect(
    run: RunFolder,
    recipe: Recipe,
    prompts: PromptSet,
    teacher: Teacher,
    ledger: Ledger,
    decision: int,
    watch: Watch = unwatched,
) -> Collected:
    """Ask what is not yet in the ledger, then write `prompts.parquet` and `exchanges.parquet`.

    A prompt that failed after all retries has no exchange; it is counted in the tally by its last
    reason. Raises what `ask` raises, and EndpointError when not one prompt was answered.
    """
    questions = plan_questions(prompts.train, recipe.collect.samples)
    _write_prompts(run, prompts)
    tally = ask(
        questions, teacher, sampling_of(recipe), limits_of(recipe), ledger, run.root.name, decision, watch
    )
    digest, rows = _write_exchanges(run, recipe, prompts, teacher, ledger, questions)
    if rows == 0:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.failures.items()))
        raise EndpointError("not one prompt was answered", f"failed attempts: {kinds}", "see to the server")
    return Collected(tally, digest, rows)


def _write_prompts(run: RunFolder, prompts: PromptSet) -> None:
    rows = [(p, "train") for p in prompts.train] + [(p, "test") for p in prompts.test]
    table = pa.Table.from_pylist(
        [
            {
                "id": p.id,
                "messages": _plain(p.messages),
                "family": p.family,
                "group": p.group,
                "reference": p.reference,
                "scorer": p.scorer,
                "split": split,
            }
            for p, split in rows
        ],
        schema=PROMPTS,
    )
    with storage("write", run.prompts):
        pq.write_table(table, run.prompts)


def _write_exchanges(
    run: RunFolder,
    recipe: Recipe,
    prompts: PromptSet,
    teacher: Teacher,
    ledger: Ledger,
    questions: Sequence[Question],
) -> tuple[str, int]:
    by_id = {p.id: p for p in prompts.train}
    digest, count = hashlib.sha256(), 0

    def rows() -> Iterator[dict[str, Any]]:
        for question, exchange in answers(questions, teacher, sampling_of(recipe), ledger):
            if exchange is None:
                continue
            prompt, completion = by_id[question.prompt_id], exchange.completion
            row: Any = {
                "key": exchange.key,
                "leaf": exchange.leaf,
                "decision": exchange.decision,
                "prompt_id": question.prompt_id,
                "sample_index": question.sample_index,
                "messages": _plain(question.messages),
                "answer": completion.text,
                "finish_reason": completion.finish_reason,
                "refusal": completion.refusal,
                "reasoning": completion.reasoning,
                "family": prompt.family,
                "group": prompt.group,
                "teacher": exchange.teacher,
                "prompt_tokens": completion.usage.prompt_tokens,
                "completion_tokens": completion.usage.completion_tokens,
            }
            digest.update(rfc8785.dumps(row))
            yield row

    with storage("write", run.exchanges), pq.ParquetWriter(run.exchanges, EXCHANGES) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows():
            batch.append(row)
            count += 1
            if len(batch) == ROWS:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=EXCHANGES))
                batch = []
        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=EXCHANGES))
    return digest.hexdigest(), count


def _plain(messages: Sequence[Any]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]
