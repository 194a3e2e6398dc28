"""The memory of the gateway: at its start, for each live account, over many requests, with cold accounts.

    .venv/bin/python benchmarks/gateway_memory.py [--quick] [--json FILE]

One worker and the process in which accounts are watched, before the mock upstream of benchmarks/gateway.py.
An account is live when it has asked of late: its holder, its key and the counts of its limits are in memory,
those of everyone who asked longest ago are in the store alone. Whether such an account still is what it was
is seen by one that may ask four times a day: it asks three times, is then driven out by others, and asks
three times more. The store lies in memory here, since its speed is not in question. `--quick` asks less, and
nobody is driven out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gateway_arms import Arm, resident, until_idle, upstream
from gateway_load import Load, Told
from gateway_stillhouse import customers, serving, settings, toml
from rows import Row, arguments, header, show

LOAD = Path(__file__).with_name("gateway_load.py")
SEED = 7
LIVE, REQUESTS, DRIVING = 10_000, 1_000_000, 60_000
QUICK_LIVE, QUICK_REQUESTS = 500, 10_000
TURNS = 10
SHORT = Path("/dev/shm")
START, EACH = 150.0, 4.0  # MB, and kB for a live account; for one that is watched
WATCHED = 4.0  # kB more


def asked(arm: Arm, keys: Sequence[str], requests: int, folder: Path, in_flight: int = 32) -> Told:
    """Ask so often, by the keys in turn; which are many, so that they go by a file."""
    file = folder / "keys.json"
    settings = Load(ports=[arm.port], keys=[], seconds=3600, requests=requests, in_flight=in_flight, warm=0.0)
    file.write_text(json.dumps(asdict(settings) | {"keys": list(keys)}))
    words = [sys.executable, str(LOAD), f"@{file}"]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    until_idle(arm.process.pid)
    return Told(**json.loads(done.stdout))


def memory(quick: bool) -> list[Row]:
    live, requests = (QUICK_LIVE, QUICK_REQUESTS) if quick else (LIVE, REQUESTS)
    place = SHORT if SHORT.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name, tempfile.TemporaryDirectory(dir=place) as other:
        return [*_memory(Path(name), live, requests, 0 if quick else DRIVING), *_unwatched(Path(other), live)]


def _unwatched(folder: Path, live: int) -> list[Row]:
    """The same accounts where `detection.mode` is off."""
    with upstream(folder / "upstream") as direct:
        (folder / "guard.toml").write_text(toml(settings(direct.port, detection={"mode": "off"})))
        first, *keys = customers(folder, 1 + live)
        with serving(folder, first) as arm:
            asked(arm, [first], 2_000, folder)
            start = resident(arm.process.pid)
            asked(arm, keys, 3 * live, folder)
            held = resident(arm.process.pid)
    return [
        _below("nobody watched: memory after the start", start / 1e6, "MB", START, f"< {START:.0f} MB"),
        _below(
            "nobody watched: memory of a live account",
            (held - start) / 1e3 / live,
            "kB",
            EACH,
            f"<= {EACH:.0f} kB",
        ),
    ]


def _memory(folder: Path, live: int, requests: int, driving: int) -> list[Row]:
    with upstream(folder / "upstream") as direct:
        (folder / "guard.toml").write_text(toml(settings(direct.port)))
        first, *keys = customers(folder, 1 + live)
        (scarce,) = customers(folder, 1, requests_per_day=4)
        others = customers(folder, driving)
        with serving(folder, first) as arm:
            asked(arm, [first], 2_000, folder)
            start = resident(arm.process.pid) / 1e6
            passed = asked(arm, [scarce], 3, folder, 1).good
            asked(arm, keys, 3 * live, folder)
            held = resident(arm.process.pid) / 1e6
            course = []
            for _ in range(TURNS):
                asked(arm, keys, requests // TURNS, folder)
                course.append(resident(arm.process.pid) / 1e6)
            if others:
                asked(arm, others, len(others), folder)
                driven = resident(arm.process.pid) / 1e6
                passed += asked(arm, [scarce], 3, folder, 1).good
    each = 1e3 * (held - start) / live
    most = START + (EACH + WATCHED) * live / 1e3
    growth = course[-1] - course[0]
    rows = [
        _below("memory after the start", start, "MB", START, f"< {START:.0f} MB"),
        _below(f"memory with {live:,} live accounts", held, "MB", most, f"< {most:.0f} MB"),
        _below("memory of a live account", each, "kB", EACH + WATCHED, f"<= {EACH:.0f} + {WATCHED:.0f} kB"),
        _below(
            f"growth over the last {requests - requests // TURNS:,} requests",
            growth,
            "MB",
            0.05 * held,
            "<= 5 %",
        ),
        Row("the least and the most of it meanwhile", course[-1], "MB", min(course), max(course)),
    ]
    if others:
        what = f"memory after {len(others):,} other accounts"
        rows.append(Row(what, driven, "MB"))
        what = "4 a day: granted of 3 before it was cold and 3 after"
        rows.append(Row(what, passed, "", target="4", holds=passed == 4))
    return rows


def _below(what: str, value: float, unit: str, most: float, target: str) -> Row:
    return Row(what, value, unit, target=target, holds=value <= most)


def main() -> None:
    options = arguments(__doc__ or "")
    rows = memory(options.quick)
    show(header(SEED, ["stillhouse", "uvicorn", "uvloop", "aiohttp", "orjson"]), rows, options.json)


if __name__ == "__main__":
    main()
