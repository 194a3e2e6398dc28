"""collect: put every prompt to its teachers once, and write what came back in the order of the prompts."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.ask import (
    Cluster,
    Limits,
    Part,
    Question,
    Sampling,
    Tally,
    Teacher,
    Watched,
    answers,
    ask_all,
    ask_in_batches,
    conclude,
    recover,
)
from stillhouse.collect.canaries import account, canaries_of
from stillhouse.collect.prompts import PromptSet, load_prompts, name_broken
from stillhouse.collect.spool import MESSAGES, Prompts, plain_messages, write_prompts
from stillhouse.errors import EndpointError, storage
from stillhouse.ledger import Ledger
from stillhouse.recipe import Recipe
from stillhouse.recipe import Teacher as TeacherSettings
from stillhouse.records import Completion, Prompt, Watch, unwatched
from stillhouse.workspace import RunFolder

__all__ = [
    "Asked",
    "Collected",
    "PromptSet",
    "asked_of",
    "canaries_of",
    "collect",
    "limits_of",
    "load_prompts",
    "name_broken",
    "sampling_of",
]

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
        ("tools", pa.string()),
        ("tool_calls", pa.string()),
        ("family", pa.string()),
        ("group", pa.string()),
        ("teacher", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)
ROWS = 1024  # rows written at once


@dataclass(frozen=True, slots=True)
class Collected:
    """`digest` is over the rows of the exchanges, in order: what the next stage depends on. `answered_by`
    says of each teacher which model ids and fingerprints its rows have, and what its canaries say."""

    tally: Tally
    digest: str
    exchanges: int
    answered_by: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions of prompts, `samples` for each, in order. `chosen` tells which prompts are meant."""

    prompts: Prompts
    samples: int = 1
    chosen: Callable[[Prompt], bool] | None = None

    def pairs(self) -> Iterator[tuple[Prompt, Question]]:
        for prompt in self.prompts:
            if self.chosen is None or self.chosen(prompt):
                for index in range(self.samples):
                    yield prompt, Question(prompt.id, prompt.messages, index, prompt.tools)

    def __iter__(self) -> Iterator[Question]:
        return (question for _, question in self.pairs())

    def __len__(self) -> int:
        chosen = len(self.prompts) if self.chosen is None else sum(map(self.chosen, self.prompts))
        return self.samples * chosen


def asked_of(recipe: Recipe, prompts: Prompts) -> list[Asked]:
    """What each teacher is asked, in the order of [teacher] and [[teachers]]."""
    teachers = (recipe.teacher, *recipe.teachers)
    samples, seed = recipe.collect.samples, recipe.run.seed
    if len(teachers) == 1 or recipe.collect.teachers == "all":
        return [Asked(prompts, samples) for _ in teachers]

    def goes_to(index: int) -> Callable[[Prompt], bool]:
        return lambda prompt: choose(prompt, teachers, seed) == index

    return [Asked(prompts, samples, goes_to(index)) for index in range(len(teachers))]


def choose(prompt: Prompt, teachers: Sequence[TeacherSettings], seed: int) -> int:
    """The index of the teacher that a prompt goes to: of those that name its family, else of those that name
    none, else of all, one drawn by weight from a hash of seed and prompt."""
    named = [i for i, teacher in enumerate(teachers) if prompt.family in (teacher.families or ())]
    open_to_all = [i for i, teacher in enumerate(teachers) if teacher.families is None]
    candidates = named or open_to_all or list(range(len(teachers)))
    digest = hashlib.sha256(f"teacher:{seed}:{prompt.id}".encode()).digest()
    left = int.from_bytes(digest[:8]) / 2**64 * sum(teachers[i].weight for i in candidates)
    for i in candidates:
        left -= teachers[i].weight
        if left < 0:
            return i
    return candidates[-1]


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
        unknown=settings.unknown,
    )


def collect(
    run: RunFolder,
    recipe: Recipe,
    prompts: PromptSet,
    teachers: Sequence[tuple[Teacher, int]],
    ledger: Ledger,
    watch: Watch = unwatched,
    cluster: Cluster | None = None,
) -> Collected:
    """Ask what is not yet in the ledger, then write `prompts.parquet` and `exchanges.parquet`.

    `teachers` are those of the recipe in its order, each with the leaf of the decision that allows it. A
    prompt that failed after all retries has no exchange; it is counted in the tally by its last reason.
    Raises what `ask` raises, and EndpointError when not one prompt was answered.
    """
    asked = asked_of(recipe, prompts.train)
    write_prompts(run.prompts, prompts.train, prompts.test)
    online = recipe.collect.mode == "online"
    canaries = canaries_of(recipe, asked)
    parts = [
        Part(who, leaf, what, canary)
        for (who, leaf), what, canary in zip(teachers, asked, canaries, strict=True)
    ]
    if cluster is None:
        recover(run.shards, ledger, run.root.name)
    order = parts, sampling_of(recipe), limits_of(recipe), ledger, run.root.name, watch
    tally = ask_all(*order, cluster=cluster) if online else ask_in_batches(*order)
    watched = [conclude(part, sampling_of(recipe), ledger, tally) for part in parts]
    digest, rows, answered_by = _write_exchanges(run, sampling_of(recipe), parts, asked, watched, ledger)
    if rows == 0:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.failures.items()))
        raise EndpointError("not one prompt was answered", f"failed attempts: {kinds}", "see to the server")
    return Collected(tally, digest, rows, answered_by)


def _write_exchanges(
    run: RunFolder,
    sampling: Sampling,
    parts: Sequence[Part],
    asked: Sequence[Asked],
    watched: Sequence[Watched | None],
    ledger: Ledger,
) -> tuple[str, int, list[dict[str, Any]]]:
    """Write the answers, teacher by teacher, in the order of the prompts; digest and number of the rows, and
    who answered."""
    digest, count, answered_by = hashlib.sha256(), 0, []
    with storage("write", run.exchanges), pq.ParquetWriter(run.exchanges, EXCHANGES) as writer:
        batch: list[dict[str, Any]] = []
        for part, what, seen in zip(parts, asked, watched, strict=True):
            models, fingerprints, older = Counter[str](), Counter[str](), 0
            since = seen.since if seen and seen.since is not None else math.inf
            for row, completion in _rows(part.teacher, sampling, what, ledger):
                models[completion.model] += 1
                fingerprints[completion.fingerprint or ""] += 1
                older += row["leaf"] < since
                digest.update(orjson.dumps(row))
                batch.append(row)
                count += 1
                if len(batch) == ROWS:
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=EXCHANGES))
                    batch = []
            answered_by.append(account(part.teacher.model, models, fingerprints, seen, older))
        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=EXCHANGES))
    return digest.hexdigest(), count, answered_by


def _rows(
    teacher: Teacher, sampling: Sampling, asked: Asked, ledger: Ledger
) -> Iterator[tuple[dict[str, Any], Completion]]:
    pairs, again = tee(asked.pairs())
    found = answers((question for _, question in again), teacher, sampling, ledger)
    for (prompt, question), (_, exchange) in zip(pairs, found, strict=True):
        if exchange is None:
            continue
        completion = exchange.completion
        row = {
            "key": exchange.key,
            "leaf": exchange.leaf,
            "decision": exchange.decision,
            "prompt_id": question.prompt_id,
            "sample_index": question.sample_index,
            "messages": plain_messages(question.messages),
            "answer": completion.text,
            "finish_reason": completion.finish_reason,
            "refusal": completion.refusal,
            "reasoning": completion.reasoning,
            "tools": question.tools or None,
            "tool_calls": completion.tool_calls,
            "family": prompt.family,
            "group": prompt.group,
            "teacher": exchange.teacher,
            "prompt_tokens": completion.usage.prompt_tokens,
            "completion_tokens": completion.usage.completion_tokens,
        }
        yield row, completion
