"""Prompt sources: the shipped world, files (JSONL, CSV, Parquet) and Hugging Face data sets."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from stillhouse.errors import UsageError
from stillhouse.recipe import Prompts, Recipe
from stillhouse.records import Message, Prompt, Role
from stillhouse.text import conversation, is_unicode

ROLES = ("system", "user", "assistant", "tool")
NAMED = 20  # broken rows that are named one by one; all are counted
LONGEST_CELL = 2**31 - 1  # of a CSV file, in characters; the csv module's own limit is 131,072


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
        raise _no_prompt(settings.source, settings.prompt, broken)
    test_source = testing.source or (settings.source if settings.source.startswith("embedded:") else None)
    if test_source is None:
        train, test = _held_out(train, testing.held_out, recipe.run.seed)
    elif test_source.startswith("embedded:"):
        test = _embedded(test_source, testing.split, testing.count or 1000, testing.seed)
    else:
        test, more = _read(settings.model_copy(update={"source": test_source}), testing.count)
        if not test:
            raise _no_prompt(test_source, settings.prompt, more)
        test = [replace(p, id=f"test-{p.id}") for p in test]
        broken += more
    asked = {_question(p) for p in test}
    kept = [p for p in train if _question(p) not in asked]
    if not kept:
        raise UsageError(
            f"no training prompt is left of {settings.source}",
            f"all {len(train)} are also test prompts, and what is tested is never learned from"
            if train
            else "every prompt was kept back for the test",
            "give `evaluate.source` other prompts than `prompts.source`, or leave it out"
            if testing.source
            else "lower `evaluate.held_out`, or give more prompts or groups",
        )
    return PromptSet(tuple(kept), tuple(test), tuple(broken), len(train) - len(kept))


def _question(prompt: Prompt) -> str:
    return conversation((m.role, m.content) for m in prompt.messages)


def _no_prompt(source: str, column: str, broken: list[Broken]) -> UsageError:
    first = f"; the first: {broken[0].place}: {broken[0].reason}" if broken else ""
    return UsageError(
        f"no usable prompt in {source}",
        f"{len(broken)} broken rows{first}" if broken else "the source is empty",
        f"each row needs `{column}`: a text, or a list of messages with role and content",
    )


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
    """The row as a prompt, or why it is none. 0 and false are values; null and the empty text are absence."""
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
        columns = ", ".join(map(str, row))[:200].encode(errors="replace").decode()
        return Broken(place, f"no column `{settings.prompt}` (columns: {columns})")
    elif isinstance(value, str | list):
        return Broken(place, "the prompt is empty")
    else:
        return Broken(place, f"a prompt is a text or a list of messages, this is a {type(value).__name__}")
    scorer = _present(row.get("scorer"))
    if scorer is not None and not isinstance(scorer, str):
        return Broken(place, f"a scorer is given by its name, this is a {type(scorer).__name__}")
    try:
        reference = _as_text(row.get(settings.reference))
        family, group, name = (_as_text(row.get(key)) for key in (settings.family, settings.group, "id"))
    except (TypeError, ValueError, RecursionError) as error:
        return Broken(place, f"a column cannot be written as a text: {error}")
    text = "\x1e".join(m.content for m in messages)
    if not all(map(is_unicode, (text, reference or "", family or "", group or "", name or "", scorer or ""))):
        return Broken(place, "it holds bytes that are not UTF-8, or half a character (a lone surrogate)")
    return Prompt(
        id=name or f"{number:07d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        messages=messages,
        family=family or "default",
        group=group or "",
        reference=reference,
        scorer=scorer or settings.scorer,
    )


def _present(value: Any) -> Any:
    return None if value == "" else value


def _as_text(value: Any) -> str | None:
    """A column's value as text: JSON for what JSON has, else (dates, decimals) as `str` writes it."""
    value = _present(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


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
    try:
        if path.is_dir():
            raise UsageError(
                f"cannot read {source}", "it is a folder", "give one file: .jsonl, .json, .csv or .parquet"
            )
        if not path.is_file():
            raise UsageError(
                f"no prompt file at {source}",
                "the file does not exist",
                "correct the path; in a recipe it is relative to the recipe's folder",
            )
        yield from _file(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read {source}", why, "give a file that can be read to its end") from None


def _file(path: Path) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path)
    elif suffix == ".json":
        yield from _json(path)
    elif suffix == ".csv":
        yield from _csv(path)
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
            except (ValueError, RecursionError) as error:
                yield place, Broken(place, f"not a JSON line: {error}")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path.name}", f"not JSON: {error}", "mend the file") from None
    if not isinstance(rows, list):
        raise UsageError(f"cannot read {path.name}", "the file holds no list of rows", "use JSONL, or a list")
    for number, row in enumerate(rows):
        yield f"{path.name}[{number}]", row


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    # Bytes that are not UTF-8 become lone surrogates, by which their row is known.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows, number = csv.DictReader(file), 1
        while True:
            number += 1
            place = f"{path.name}:{number}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield place, Broken(place, f"not a CSV row: {error}")
                continue
            if row is None:
                return
            if None in row:
                yield place, Broken(place, "more cells than the first line has names")
            elif not all(is_unicode(value) for value in row.values() if value):
                yield place, Broken(place, "it holds bytes that are not UTF-8")
            else:
                yield place, {name: value for name, value in row.items() if value != ""}


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in _rows_of(batch, path.name, number):
                    yield f"{path.name} row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"cannot read {path.name}",
            f"after {number} rows: {error}" if number else str(error),
            "give a whole Parquet file",
        ) from None


def _rows_of(batch: Any, name: str, start: int) -> list[Any]:
    """The batch as objects; when a value in it has no Python form, only that value's row is broken."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):
        pass
    rows: list[Any] = []
    for index in range(batch.num_rows):
        try:
            rows.extend(batch.slice(index, 1).to_pylist())
        except (ValueError, OverflowError) as error:
            rows.append(Broken(f"{name} row {start + index}", f"it cannot be read: {error}"))
    return rows


def _hub(name: str) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UsageError(
            "cannot read a Hugging Face data set",
            "`datasets` is not installed",
            "pip install 'stillhouse[train]'",
        ) from None
    dataset, _, split = name.partition(":")
    number = -1
    try:
        for number, row in enumerate(load_dataset(dataset, split=split or "train", streaming=True)):
            yield f"hf:{name} row {number}", row
    except Exception as error:  # the hub raises a dozen kinds; each means that the rows are not to be had
        after = f"after {number + 1} rows: " if number >= 0 else ""
        raise UsageError(
            f"cannot load hf:{name}", f"{after}{type(error).__name__}: {error}", "check name and network"
        ) from None


def name_broken(broken: tuple[Broken, ...]) -> list[str]:
    """One line for each of the first broken rows, and one that counts the rest."""
    lines = [f"{b.place}: {b.reason}" for b in islice(broken, NAMED)]
    if len(broken) > NAMED:
        lines.append(f"and {len(broken) - NAMED} more")
    return lines
