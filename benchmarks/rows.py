"""The shape of every benchmark's output: one header, one row for each figure, printed and as JSON."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@dataclass(frozen=True, slots=True)
class Row:
    """`ratio` is value / peer_value; `target` in words, `holds` None where there is none."""

    what: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    target: str | None = None
    holds: bool | None = None


def arguments(description: str, resumable: bool = False, portions: int = 0) -> argparse.Namespace:
    """With `resumable` also `folder`, None where a folder of its own will do that is deleted afterwards; of a
    benchmark in `portions` also how many of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under a minute: smaller, but honest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write header and rows there")
    if resumable:
        parser.add_argument("--folder", type=Path, help="work there, and go on with what is there")
    if portions:
        parser.add_argument("--portions", type=int, default=portions, metavar="N", help="end after so many")
    return parser.parse_args()


@contextmanager
def working_folder(given: Path | None) -> Iterator[Path]:
    """The folder of `--folder`, made where it is missing; without one a new one, deleted afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = (given or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def part(file: Path, make: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows of a part of a benchmark: from its file where an earlier process made them, else made now, and
    written there; on stderr either way."""
    if file.exists():
        rows = [Row(**row) for row in json.loads(file.read_text())]
    else:
        begun = time.process_time()
        rows = list(make())
        print(f"{file.stem}: {time.process_time() - begun:.0f} s of a core", file=sys.stderr)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps([asdict(row) for row in rows]))
        unfinished.replace(file)
    for row in rows:
        print(f"  {row.what}: {row.value}", file=sys.stderr, flush=True)
    return rows


def interval(what: str, values: Sequence[float], unit: str) -> Row:
    """The mean over seeds; its 95 % interval where there are two."""
    from stillhouse.stats import t_quantile  # here, as peers' environments import this module without it

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Row(what, mean, unit)
    half = t_quantile(0.95, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Row(what, mean, unit, mean - half, mean + half)


def need(path: Path) -> Path:
    if not path.exists():
        print(f"skipped: {path.name} is absent (data sets are not part of the project)")
        sys.exit(0)
    return path


def header(seed: int, packages: Sequence[str]) -> dict[str, Any]:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return {
        "machine": f"{_processor()}, {_cores()} cores",
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in packages},
        "seed": seed,
    }


def show(head: dict[str, Any], rows: Sequence[Row], file: Path | None) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    print(f"{head['machine']}; Python {head['python']}; {versions}; seed {head['seed']}")
    for row in rows:
        interval = "" if row.low is None or row.high is None else f" ({row.low:.4g} to {row.high:.4g})"
        value = "unknown" if row.value is None else f"{row.value:.4g}"
        peer = "" if row.peer is None else f"   {row.peer}: {row.peer_value:.4g}"
        peer += "" if row.ratio is None else f", ratio {row.ratio:.3g}"
        target = "" if row.target is None else f"   target {row.target}: {'holds' if row.holds else 'MISSED'}"
        print(f"{row.what:<58} {value} {row.unit}{interval}{peer}{target}")
    if file is not None:
        file.write_text(json.dumps({"header": head, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def peak_memory() -> int:
    """Bytes that this process has held at most. On Linux not by `getrusage`, which counts what the process
    held that started this one."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cores() -> int:
    import os

    return os.cpu_count() or 1
