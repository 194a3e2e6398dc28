"""Where a training's figures are shown as it goes: TensorBoard, trackio or Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError

Track = Callable[[dict[str, Any]], None]


def untracked(row: dict[str, Any]) -> None:
    pass


@contextmanager
def tracked(name: str | None, run: str, folder: Path) -> Iterator[Track]:
    """Tells the tracker of this `name` one row of `losses.jsonl` after the other, by accelerate's trackers.

    TensorBoard's files lie in `folder`; the others send what they are told to wherever their own settings
    say, as the run of the project "stillhouse". None tracks nothing. Raises UsageError where the tracker is
    not installed.
    """
    if name is None:
        yield untracked
        return
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker

    PartialState()  # the trackers ask it which process is the first
    kind = LOGGER_TYPE_TO_CLASS[name]
    in_files = kind is TensorBoardTracker
    tracker = kind(folder.name, folder.parent) if in_files else kind("stillhouse", name=run)
    try:
        tracker.start()
    except ImportError as error:
        raise UsageError(
            f"training cannot be tracked with {name}",
            str(error)[:200],
            f"pip install {name}, or leave `train.track` out: losses.jsonl has the same figures",
        ) from error
    try:
        yield lambda row: tracker.log(_flat(row), step=row["step"])
    finally:
        tracker.finish()


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """The figures of a row by one name each, those of a table within by `table/name`."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{name}": each for name, each in value.items()}
        elif key != "step":
            flat[key] = value
    return flat
