"""Checkpoints of a training: whole or ignored, never half."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from stillhouse.errors import StorageError, storage
from stillhouse.workspace import write_json

KEPT = 2


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """`errors.storage` for writers that hide the system's error in one of their own.

    safetensors raises SafetensorError with the error's number in its text, torch's archive writer a
    RuntimeError with the system's error as its context.
    """
    with storage(what, path):
        try:
            yield
        except (SafetensorError, RuntimeError) as error:
            cause, number = error.__context__, re.search(r"\b(?:os error|code:) (\d+)", str(error))
            if isinstance(cause, OSError):
                raise cause from error
            if number:
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            raise StorageError(
                f"could not {what} {path}",
                str(error).splitlines()[0][:300],
                "see whether the disk is full and the folder can be written, then run the same command again",
            ) from error


def save(folder: Path, key: str, step: int, state: dict[str, Any], kept: int = KEPT) -> None:
    """Write `state` for `step` under `folder`; all older checkpoints but the newest `kept` go afterwards.

    The state is written into a temporary folder with its SHA-256, flushed, and renamed into place.
    """
    final, partial = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"
    with writing("write a checkpoint in", folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with (partial / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        write_json(
            partial / "checkpoint.json", {"key": key, "step": step, "sha256": _digest(partial / "state.pt")}
        )
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        for old in sorted(folder.glob("step-*"))[:-kept]:
            shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path, key: str) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint of this very training; None when there is none.

    A torn or damaged checkpoint is passed over, and so is one of other settings, samples or students
    (another `key`).
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            facts = json.loads((path / "checkpoint.json").read_bytes())
            if facts["key"] != key or facts["sha256"] != _digest(path / "state.pt"):
                continue
            state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            continue
        return state
    return None


def folder_of(root: Path, key: str) -> Path:
    """The folder under `root` for the training that `key` names; those of other trainings are removed."""
    mine = root / key[:16]
    for other in root.iterdir() if root.is_dir() else ():
        if other != mine:
            shutil.rmtree(other, ignore_errors=True)
    return mine


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
