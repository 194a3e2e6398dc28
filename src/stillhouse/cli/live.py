"""One live line for each stage: it rewrites itself on a terminal, elsewhere it is a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stillhouse.records import Progress, Watch

EVERY_SECONDS = 30.0
EVERY_SHARE = 0.05


@contextmanager
def live(quiet: bool) -> Iterator[Watch]:
    """A watcher that draws on stderr for as long as the block lasts."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _terminal() as watch:
            yield watch
    else:
        yield _plain(time.monotonic, lambda line: print(line, file=sys.stderr, flush=True))


@contextmanager
def _terminal() -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=5) as bars:
        tasks: dict[str, TaskID] = {}
        began: dict[str, float] = {}

        def watch(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total, figures="")
                began[progress.stage] = time.monotonic()
            figures = describe(progress, time.monotonic() - began[progress.stage])
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total, figures=figures)

        yield watch


@dataclass(slots=True)
class _Shown:
    began: float
    at: float
    done: int


def _plain(clock: Callable[[], float], write: Callable[[str], None]) -> Watch:
    """A line when a stage starts and ends, and in between every 5 % (but not within 5 s) or 30 s."""
    shown: dict[str, _Shown] = {}

    def watch(progress: Progress) -> None:
        now = clock()
        last = shown.get(progress.stage)
        if last is None:
            shown[progress.stage] = last = _Shown(now, now, -1)
        step = EVERY_SHARE * (progress.total or 0)
        finished = progress.total is not None and progress.done >= progress.total > last.done
        due = progress.done - last.done >= step and now - last.at >= 5.0
        if last.done < 0 or finished or due or now - last.at >= EVERY_SECONDS:
            last.at, last.done = now, progress.done
            total = "" if progress.total is None else f"/{progress.total:,}"
            write(
                f"{progress.stage:<9} {progress.done:,}{total} {progress.unit}  "
                f"{describe(progress, now - last.began)}".rstrip()
            )

    return watch


def describe(progress: Progress, seconds: float) -> str:
    """Counts, rate and note of a stage, as one short text."""
    parts = [f"{count:,} {name}" for name, count in progress.counts.items() if count or name == "failed"]
    worked = progress.counts.get("new", progress.done)  # what was reused took no time
    if seconds > 1 and worked and progress.unit:
        rate = worked / seconds
        parts.append(f"{rate:,.1f} {progress.unit}/s")
        if progress.total is not None and progress.done < progress.total:
            parts.append(f"{(progress.total - progress.done) / rate:,.0f} s left")
    if progress.note:
        parts.append(progress.note)
    return "  ".join(parts)
