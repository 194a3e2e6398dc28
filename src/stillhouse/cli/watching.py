"""`stillhouse collect --watch RUN`: how far a run is, from another process, which does not touch it."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import replace
from typing import Any, Literal

from stillhouse.cli.live import live, speed
from stillhouse.errors import StillhouseError, UsageError
from stillhouse.records import Progress, Traffic
from stillhouse.workspace import RunFolder

EVERY = 1.0  # seconds between two looks
SILENT = 15.0  # seconds without a sign of life after which that is said

State = Literal["running", "silent", "gone", "done", "stopped"]


def follow(run: RunFolder, as_json: bool) -> None:
    """Show how far the process that works on the run is, until it ends; as JSON one object a line on stdout.

    Raises UsageError when no process ever worked on the run, and StillhouseError when the last one stopped
    before it was done, or is gone.
    """
    with live(as_json) as watch:
        last = None
        while True:
            row = _read(run)
            state = state_of(row, time.time(), _alive(row))
            progress = _progress(row, state)
            if not as_json and progress is not None:
                watch(progress)
            if as_json and (row["time"], state) != last:
                print(json.dumps(_line(run, row, state, progress), ensure_ascii=False), flush=True)
            if state not in ("running", "silent"):
                break
            last = row["time"], state
            time.sleep(EVERY)
    reached = "before its first figures" if progress is None else f"after {progress.done:,} {progress.unit}"
    again = "run the same command again to go on; what is recorded is kept"
    if state == "gone":
        pid = row["pid"]
        raise StillhouseError(f"nobody works on {run.root.name}", f"process {pid} is gone, {reached}", again)
    if state == "stopped":
        raise StillhouseError(f"{run.root.name} stopped {reached}", row["why"], again)
    if not as_json:
        print(f"done       {run.root.name}")


def state_of(row: dict[str, Any], now: float, alive: bool | None) -> State:
    """`now` in Unix seconds; `alive` None: it cannot be told, for the process runs on another machine."""
    if row["state"] != "running":
        return "done" if row["state"] == "done" else "stopped"
    if alive is False:
        return "gone"
    return "silent" if now - row["time"] > SILENT else "running"


def _read(run: RunFolder) -> dict[str, Any]:
    try:
        return dict(json.loads(run.progress.read_bytes()))
    except FileNotFoundError:
        raise UsageError(
            f"there is nothing to watch in {run.root.name}",
            "no process has worked on it yet",
            "start one with `stillhouse collect RECIPE`",
        ) from None
    except ValueError as error:
        raise StillhouseError(f"cannot read {run.progress}", str(error), "remove it") from None


def _alive(row: dict[str, Any]) -> bool | None:
    if row["host"] != socket.gethostname():
        return None
    try:
        os.kill(row["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True


def _progress(row: dict[str, Any], state: State) -> Progress | None:
    shown = row["progress"]
    if shown is None:
        return None
    traffic = shown.pop("traffic", None)
    progress = Progress(**shown, traffic=None if traffic is None else Traffic(**traffic))
    if state != "silent":
        return progress
    silence = f"no sign of life for {time.time() - row['time']:.0f} s"
    return replace(progress, note=f"{progress.note}  {silence}".strip())


def _line(run: RunFolder, row: dict[str, Any], state: State, progress: Progress | None) -> dict[str, Any]:
    line: dict[str, Any] = {"run": run.root.name, "state": state, "why": row["why"], "time": row["time"]}
    if progress is None:
        return line
    rate, left = speed(progress, progress.seconds or 0.0)
    line |= {name: getattr(progress, name) for name in ("stage", "done", "total", "unit", "note", "seconds")}
    line |= {"counts": dict(progress.counts), "rate": rate, "seconds_left": left}
    if progress.traffic is not None:
        line |= {name: getattr(progress.traffic, name) for name in Traffic.__slots__}
    return line
