"""Rows of prompt files (JSONL, JSON, CSV, Parquet) and of Hugging Face data sets, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.text import is_unicode

LONGEST_CELL = 2**31 - 1  # of a CSV file, in characters; the csv module's own limit is 131,072


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that is no prompt: where it stands and why."""

    place: str
    reason: str


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
