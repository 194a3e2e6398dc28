"""Prompt sources: the shipped world, files (JSONL, CSV, Parquet) and Hugging Face data sets."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from stillhouse.errors import UsageError
from stillhouse.recipe import Prompts, Recipe
from stillhouse.records import Message, Prompt, Role
from stillhouse.text import normalise

ROLES = ("system", "user", "assistant", "tool")
NAMED = 20  # broken rows that are named one by one; all are counted


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that is no prompt: where it stands and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class PromptSet:
    train: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    broken: tuple[Broken, ...] = ()
    leaked: int = 0  # training prompts left out because the test slice asks the same


def load_prompts(recipe: Recipe) -> PromptSet:
    """The prompts to collect and the prompts to test on, kept apart.

    Raises UsageError when the source is missing or holds no usable prompt. A broken row is no error: it
    is left out, named (the first few) and counted.
    """
    settings, testing = recipe.prompts, recipe.evaluate
    if settings.source.startswith("embedded:"):
        train = _embedded(settings.source, "train", settings.count or 3000, settings.seed)
        broken: list[Broken] = []
    else:
        train, broken = _read(settings, settings.count)
    if not train:
        first = f"; the first: {broken[0].place}: {broken[0].reason}" if broken else ""
        raise UsageError(
            f"no usable prompt in {settings.source}",
            f"{len(broken)} broken rows{first}" if broken else "the source is empty",
            f"each row needs `{settings.prompt}`: a text, or a list of messages with role and content",
        )
    test_source = testing.source or (settings.source if settings.source.startswith("embedded:") else None)
    if test_source is None:
        train, test = _held_out(train, testing.held_out, recipe.run.seed)
    elif test_source.startswith("embedded:"):
        test = _embedded(test_source, testing.split, testing.count or 1000, testing.seed)
    else:
        test, more = _read(settings.model_copy(update={"source": test_source}), testing.count)
        test = [replace(p, id=f"test-{p.id}") for p in test]
        broken += more
    asked = {_question(p) for p in test}
    kept = [p for p in train if _question(p) not in asked]
    return PromptSet(tuple(kept), tuple(test), tuple(broken), len(train) - len(kept))


def _question(prompt: Prompt) -> str:
    return "\x1e".join(f"{m.role}\x1f{normalise(m.content)}" for m in prompt.messages)


def _embedded(source: str, split: str, count: int, seed: int) -> list[Prompt]:
    if source != "embedded:desk":
        raise UsageError(f"no prompts named {source}", "stillhouse ships one world", "use `embedded:desk`")
    from stillhouse.models.embedded import world

    return list(world.prompts(cast(Any, split), count, seed))


def _held_out(prompts: list[Prompt], share: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Split by group (a prompt without one is its own), by a seeded hash: a longer file keeps its split."""
    train: list[Prompt] = []
    test: list[Prompt] = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}:{prompt.group or prompt.id}".encode()).digest()
        (test if int.from_bytes(digest[:8]) < share * 2**64 else train).append(prompt)
    return train, test


def _read(settings: Prompts, count: int | None) -> tuple[list[Prompt], list[Broken]]:
    prompts: list[Prompt] = []
    broken: list[Broken] = []
    seen: set[str] = set()
    for number, (place, row) in enumerate(read_rows(settings.source)):
        prompt = row if isinstance(row, Broken) else parse_prompt(row, settings, place, number)
        if isinstance(prompt, Broken):
            broken.append(prompt)
            continue
        if prompt.id in seen:
            broken.append(Broken(place, f"the id {prompt.id!r} was used before"))
            continue
        seen.add(prompt.id)
        prompts.append(prompt)
        if count is not None and len(prompts) == count:
            break
    return prompts, broken


def parse_prompt(row: Any, settings: Prompts, place: str, number: int) -> Prompt | Broken:
    if not isinstance(row, dict):
        return Broken(place, f"a row must be an object, this is a {type(row).__name__}")
    value = row.get(settings.prompt, row.get("messages"))
    if isinstance(value, str) and value.strip():
        messages: tuple[Message, ...] = (Message("user", value),)
    elif isinstance(value, list) and value:
        parsed = [_message(part) for part in value]
        if any(part is None for part in parsed):
            return Broken(place, "a message needs a known role and a text as content")
        messages = tuple(part for part in parsed if part is not None)
        if messages[-1].role == "assistant":
            return Broken(place, "the last message is the assistant's: there is nothing to answer")
    elif value is None:
        return Broken(place, f"no column `{settings.prompt}` (columns: {', '.join(map(str, row))[:200]})")
    else:
        return Broken(place, "the prompt is empty")
    reference = row.get(settings.reference)
    if reference is not None and not isinstance(reference, str):
        reference = json.dumps(reference, ensure_ascii=False)
    text = "\x1e".join(m.content for m in messages)
    return Prompt(
        id=str(row.get("id") or f"{number:07d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"),
        messages=messages,
        family=str(row.get(settings.family) or "default"),
        group=str(row.get(settings.group) or ""),
        reference=reference,
        scorer=row.get("scorer") or settings.scorer,
    )


def _message(part: Any) -> Message | None:
    if (
        not isinstance(part, dict)
        or part.get("role") not in ROLES
        or not isinstance(part.get("content"), str)
    ):
        return None
    return Message(cast(Role, part["role"]), part["content"])


def read_rows(source: str) -> Iterator[tuple[str, Any]]:
    """(place, row) for each row; a row that cannot be read is a Broken."""
    if source.startswith("hf:"):
        yield from _hub(source.removeprefix("hf:"))
        return
    path = Path(source)
    if not path.is_file():
        raise UsageError(
            f"no prompt file at {source}",
            "the file does not exist",
            "correct `prompts.source`; it is relative to the recipe",
        )
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path)
    elif suffix == ".json":
        yield from _json(path)
    elif suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                yield f"{path.name}:{number}", {k: v for k, v in row.items() if k is not None and v != ""}
    elif suffix == ".parquet":
        yield from _parquet(path)
    else:
        raise UsageError(
            f"cannot read {path.name}",
            f"unknown kind of file: {suffix or 'no suffix'}",
            "use .jsonl, .json, .csv or .parquet",
        )


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                yield place, json.loads(line.decode("utf-8"))
            except ValueError as error:
                yield place, Broken(place, f"not a JSON line: {error}")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"cannot read {path.name}", f"not JSON: {error}", "mend the file") from None
    if not isinstance(rows, list):
        raise UsageError(f"cannot read {path.name}", "the file holds no list of rows", "use JSONL, or a list")
    for number, row in enumerate(rows):
        yield f"{path.name}[{number}]", row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"cannot read {path.name}", str(error), "give a Parquet file") from None
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            yield f"{path.name} row {number}", row
            number += 1


def _hub(name: str) -> Iterable[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UsageError(
            "cannot read a Hugging Face data set",
            "`datasets` is not installed",
            "pip install 'stillhouse[train]'",
        ) from None
    dataset, _, split = name.partition(":")
    try:
        rows = load_dataset(dataset, split=split or "train", streaming=True)
    except Exception as error:  # the hub raises a dozen kinds; each means that the rows are not to be had
        raise UsageError(
            f"cannot load hf:{name}", f"{type(error).__name__}: {error}", "check name and network"
        ) from None
    return ((f"hf:{name} row {number}", row) for number, row in enumerate(rows))


def name_broken(broken: tuple[Broken, ...]) -> list[str]:
    """One line for each of the first broken rows, and one that counts the rest."""
    lines = [f"{b.place}: {b.reason}" for b in islice(broken, NAMED)]
    if len(broken) > NAMED:
        lines.append(f"and {len(broken) - NAMED} more")
    return lines
