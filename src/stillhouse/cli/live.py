"""One live line for each stage: it rewrites itself on a terminal, elsewhere it is a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stillhouse.records import Progress, Traffic, Watch

EVERY_SECONDS = 30.0
EVERY_SHARE = 0.05
NAMES = {"rate_limited": "429"}  # kinds of failure that people know by another name


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
            now = bars.get_time()
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total, figures="")
                began[progress.stage] = now - (progress.seconds or 0.0)
                bars.tasks[-1].start_time = began[progress.stage]
            figures = f"{_done(progress)}  {describe(progress, now - began[progress.stage])}"
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
            shown[progress.stage] = last = _Shown(now - (progress.seconds or 0.0), now, -1)
        step = EVERY_SHARE * (progress.total or 0)
        finished = progress.total is not None and progress.done >= progress.total > last.done
        due = progress.done - last.done >= step and now - last.at >= 5.0
        if last.done < 0 or finished or due or now - last.at >= EVERY_SECONDS:
            last.at, last.done = now, progress.done
            figures = f"{_done(progress)} {progress.unit}  {describe(progress, now - last.began)}"
            write(f"{progress.stage:<9} {figures}".rstrip())

    return watch


def _done(progress: Progress) -> str:
    return f"{progress.done:,}" + ("" if progress.total is None else f"/{progress.total:,}")


def describe(progress: Progress, seconds: float) -> str:
    """Counts, rate, traffic, money and note of a stage, as one short text."""
    parts = [f"{count:,} {name}" for name, count in progress.counts.items() if count or name == "failed"]
    rate, left = speed(progress, seconds)
    if rate is not None and progress.unit:
        parts.append(f"{rate:,.1f} {progress.unit}/s")
    if left is not None:
        parts.append(f"{left:,.0f} s left")
    if progress.traffic is not None:
        parts += _traffic(progress.traffic)
    if progress.note:
        parts.append(progress.note)
    return "  ".join(parts)


def speed(progress: Progress, seconds: float) -> tuple[float | None, float | None]:
    """Units a second, and the seconds that are left at that rate; None where they cannot be told: not yet, or
    because what is in a batch comes all at once."""
    worked = progress.counts.get("new", progress.done)  # what was reused took no time
    if seconds <= 1 or not worked or (progress.traffic is not None and progress.traffic.batches):
        return None, None
    rate = worked / seconds
    if progress.total is None or progress.done >= progress.total:
        return rate, None
    return rate, (progress.total - progress.done) / rate


def _traffic(traffic: Traffic) -> list[str]:
    parts = []
    if traffic.batches:
        batches = "1 batch" if traffic.batches == 1 else f"{traffic.batches} batches"
        parts.append(f"{traffic.in_flight:,} in flight in {batches}")
    elif traffic.in_flight:
        parts.append(f"{traffic.in_flight} of {traffic.limit} in flight")
    if traffic.failures:
        kinds = sorted(traffic.failures.items(), key=lambda item: -item[1])
        parts.append(", ".join(f"{count:,} x {NAMES.get(kind, kind)}" for kind, count in kinds))
    if traffic.spent or traffic.reserved:
        money = f"US$ {traffic.spent or 0:.4f} + {traffic.reserved or 0:.4f} reserved"
        parts.append(money if traffic.expected is None else f"{money}, {traffic.expected:.4f} expected")
    return parts
