"""What a test of lineage is given: files of answers and folders of checkpoints, each with its SHA-256."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from stillhouse.errors import UsageError
from stillhouse.models import weights_digest
from stillhouse.stats import Codes, group_codes

_PROMPT = ("prompt", "instruction")
_ANSWER = ("answer", "output", "completion")
_FILES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, slots=True)
class Material:
    """One thing that a test looks at. `role` is suspect, teacher, control, base, rows, held-out, key, served
    or tokenizer; `sha256` of a file's bytes, or of a checkpoint as `models.weights_digest` counts it."""

    role: str
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        name = self.path.name
        return name if self.path.is_dir() else name.removesuffix(".gz").rpartition(".")[0] or name


@dataclass(frozen=True, slots=True)
class Said:
    """One row of a file of answers; `group` "" where the row stands alone, `expected` the right answer."""

    prompt: str
    answer: str
    group: str = ""
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """Answers of M models to N prompts that all of them answered: suspect, teacher, then controls.

    `alone` counts, for each model, its rows that another did not answer, that repeat a prompt or are broken.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]  # N of M
    groups: Codes
    expected: tuple[str | None, ...]
    alone: tuple[int, ...]


def material(role: str, path: Path) -> Material:
    """Raises UsageError for a path that is neither a folder nor a file that can be read."""
    if path.is_dir():
        return Material(role, path, weights_digest(path))
    return Material(role, path, hashlib.sha256(_bytes(path)).hexdigest())


def answer_files(path: Path) -> list[Path]:
    """The file itself, or the files of answers in a folder, in order of name."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.name.endswith(_FILES))


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a .jsonl or .json file, gzipped or not, and how many of them are broken.

    Raises UsageError where the file as a whole cannot be read.
    """
    data = _bytes(path)
    try:
        if path.name.endswith(".gz"):
            data = gzip.decompress(data)
        if ".jsonl" in path.name:
            rows: list[Any] = [_line(line) for line in data.splitlines() if line.strip()]
        else:
            rows = orjson.loads(data)
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"cannot read {path}", str(error), "give a .jsonl or .json file of rows") from None
    if not isinstance(rows, list):
        raise UsageError(f"cannot read {path}", "it holds no list of rows", "give JSON lines, or a list")
    good = [row for row in rows if isinstance(row, dict)]
    return good, len(rows) - len(good)


def read_answers(path: Path) -> tuple[list[Said], int]:
    """Rows with a prompt (`prompt` or `instruction`) and an answer (`answer`, `output` or `completion`), and
    how many are broken; of rows with the same prompt the first counts, the others are broken.

    `group` says which prompts are alike (one template, one source text), `expected` what would be right.
    """
    rows, broken = read_rows(path)
    said: dict[str, Said] = {}
    for row in rows:
        prompt, answer = _first(row, _PROMPT), _first(row, _ANSWER)
        if not prompt or answer is None or prompt in said:
            broken += 1
            continue
        expected = row.get("expected")
        group = row.get("group")
        said[prompt] = Said(
            prompt,
            answer,
            group if isinstance(group, str) else "",
            expected if isinstance(expected, str) else None,
        )
    return list(said.values()), broken


def align(models: Sequence[tuple[str, Sequence[Said], int]]) -> Panel:
    """The prompts that all models answered, in the order of the first; groups and right answers are the
    first's. Raises UsageError where no prompt is left."""
    tables = [{row.prompt: row.answer for row in rows} for _, rows, _ in models]
    shared = [row for row in models[0][1] if all(row.prompt in table for table in tables)]
    if not shared:
        names = ", ".join(name for name, _, _ in models[:4])
        raise UsageError(
            "no prompt was answered by all",
            f"the files of {names} share none, character by character",
            "put the same prompts to suspect, teacher and controls",
        )
    return Panel(
        tuple(name for name, _, _ in models),
        tuple(row.prompt for row in shared),
        tuple(tuple(table[row.prompt] for table in tables) for row in shared),
        group_codes([row.group for row in shared], [str(number) for number in range(len(shared))]),
        tuple(row.expected for row in shared),
        tuple(len(rows) - len(shared) + broken for _, rows, broken in models),
    )


def subset(panel: Panel, prompts: Sequence[int]) -> Panel:
    """The panel on some of its prompts."""
    kept = list(prompts)
    return Panel(
        panel.names,
        tuple(panel.prompts[at] for at in kept),
        tuple(panel.texts[at] for at in kept),
        np.unique(panel.groups[kept], return_inverse=True)[1].astype(np.intp),
        tuple(panel.expected[at] for at in kept),
        panel.alone,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}", error.strerror or str(error), "give a file of answers, or a checkpoint"
        ) from None


def _line(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:
        return None


def _first(row: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((row[name] for name in names if isinstance(row.get(name), str)), None)
