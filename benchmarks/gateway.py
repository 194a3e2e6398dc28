"""The gateway beside LiteLLM's proxy and beside no gateway at all, before one and the same upstream.

    .venv/bin/python benchmarks/gateway.py [--quick] [--json FILE]

A mock upstream (gateway_upstream.py) and a load (gateway_load.py), processes of their own that cost some 15
us of CPU for a whole answer, share the machine with the one that is measured; gateway_arms.py says what is on
in stillhouse and what in LiteLLM. Everyone gets every load in turn, for some rounds: one request in flight;
50 and 300 requests a second on a fixed schedule, each timed from the moment at which it was due, to an
upstream that thinks for 20 ms; and 32 in flight. Whole answers are some 600 bytes, streams 21 events of a
write each.

What a gateway adds is the difference of the medians (p50) or of the 99th percentiles (p99), in the same
round, to asking the upstream directly. Values are medians of the rounds, in brackets the least and the most
of them. CPU is user and system of the gateway and its children, that is the detector's too; memory counts
what they share once (PSS). A gateway that cannot keep up with a schedule is slow without bound: there the
share that was answered within ten seconds says more than its latency.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from gateway_arms import Arm, arms, cpu_seconds, resident, until_idle
from gateway_load import Load, Told
from rows import Row, arguments, header, show

SEED = 7
LOAD = Path(__file__).with_name("gateway_load.py")


@dataclass(frozen=True, slots=True)
class Cell:
    """A kind of load; `scored` where a target is set for it."""

    name: str
    model: str
    in_flight: int = 1
    rate: float = 0.0
    scored: bool = False
    temperature: float = 0.7


CELLS = (
    Cell("1 in flight", "think-0", in_flight=1, scored=True),
    Cell("50/s", "think-20", rate=50.0),
    Cell("300/s", "think-20", rate=300.0, scored=True),
    Cell("32 in flight", "think-0", in_flight=32),
)
SATURATED, TIMES = "32 in flight", 15
COMPARED = ("stillhouse", "LiteLLM")


@dataclass(frozen=True, slots=True)
class Found:
    """`cpu` is microseconds of the measured process for a request, `rate` good answers a second, `share` the
    good ones of all that were asked."""

    told: Told
    cpu: float
    rate: float
    share: float


Pick = Callable[[Found], float]
Table = dict[tuple[str, bool, str], list[Found]]  # by cell, streamed, arm: one for each round


def load(settings: Load) -> Told:
    """Run the load as a process of its own. Raises CalledProcessError."""
    words = [sys.executable, str(LOAD), json.dumps(asdict(settings))]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return Told(**json.loads(done.stdout))


def measured(arm: Arm, cell: Cell, streamed: bool, seconds: float) -> Found:
    """Raises RuntimeError where nothing was answered."""
    settings = Load(
        ports=[arm.port],
        keys=[arm.key],
        seconds=seconds,
        rate=cell.rate,
        in_flight=cell.in_flight,
        stream=streamed,
        model=cell.model,
        temperature=cell.temperature,
        patience=10.0,
        seed=SEED,
    )
    before = cpu_seconds(arm.process.pid)
    told = load(settings)
    until_idle(arm.process.pid)
    asked = sum(told.statuses.values())
    if told.good == 0:
        raise RuntimeError(f"{arm.name} answered nothing under {cell.name}: {told}")
    whole = asked * (seconds + settings.warm) / seconds  # the warm-up is not counted
    cpu = 1e6 * (cpu_seconds(arm.process.pid) - before) / whole
    return Found(told, cpu, told.good / told.seconds, told.good / max(asked, round(cell.rate * seconds)))


def rounds(found: list[Arm], count: int, seconds: float) -> Table:
    table: Table = defaultdict(list)
    for number in range(count):
        for streamed in (False, True):
            for cell in CELLS:
                for arm in found:
                    told = measured(arm, cell, streamed, seconds)
                    table[cell.name, streamed, arm.name].append(told)
        print(f"round {number + 1} of {count}", file=sys.stderr)
    return table


# ---------------------------------------------------------------- rows


def p50(found: Found) -> float:
    return found.told.spread[0]


def p99(found: Found) -> float:
    return found.told.spread[2]


def first_byte(found: Found) -> float:
    return found.told.first[0]


def values(table: Table, cell: str, streamed: bool, arm: str, pick: Pick) -> list[float] | None:
    """One for each round; None where the arm is absent."""
    found = table.get((cell, streamed, arm))
    return None if found is None else [pick(one) for one in found]


def added(table: Table, cell: str, streamed: bool, arm: str, pick: Pick) -> list[float] | None:
    """Milliseconds more than the direct answer of the same round took."""
    mine = values(table, cell, streamed, arm, pick)
    plain = values(table, cell, streamed, "direct", pick) or []
    return None if mine is None else [own - other for own, other in zip(mine, plain, strict=True)]


def compared(what: str, unit: str, ours: list[float] | None, theirs: list[float] | None) -> Row:
    """The medians of both, and of their ratios round by round."""
    assert ours is not None
    row = Row(what, median(ours), unit, min(ours), max(ours))
    if theirs is None:
        return row
    ratio = median(own / other for own, other in zip(ours, theirs, strict=True))
    return replace(row, peer="LiteLLM", peer_value=median(theirs), ratio=ratio)


def at_most(row: Row, most: float) -> Row:
    assert row.value is not None
    return replace(row, target=f"<= {most} {row.unit}", holds=row.value <= most)


def latency(table: Table) -> list[Row]:
    rows = []
    for streamed, kind in ((False, "whole"), (True, "streamed")):
        for cell in CELLS:
            if cell.name == SATURATED:
                continue
            for pick, name, most in ((p50, "p50", 1.5), (p99, "p99", 10.0), (first_byte, "first byte", 0.0)):
                if pick is first_byte and not streamed:
                    continue
                ours, theirs = (added(table, cell.name, streamed, arm, pick) for arm in COMPARED)
                row = compared(f"{cell.name}, {kind}: added {name}", "ms", ours, theirs)
                rows.append(at_most(row, most) if cell.scored and most else row)
            if cell.rate:
                shares = (values(table, cell.name, streamed, arm, answered) for arm in COMPARED)
                rows.append(compared(f"{cell.name}, {kind}: answered", "%", *shares))
    return rows


def answered(found: Found) -> float:
    return 100 * found.share


def saturated(table: Table) -> list[Row]:
    rows = []
    for streamed, kind in ((False, "whole"), (True, "streamed")):
        name = f"{SATURATED}, {kind}"

        def row(what: str, unit: str, pick: Pick, streamed: bool = streamed, name: str = name) -> Row:
            found = (values(table, SATURATED, streamed, arm, pick) for arm in COMPARED)
            return compared(f"{name}: {what}", unit, *found)

        rate = row("requests a second", "1/s", lambda found: found.rate)
        if rate.ratio is not None:
            rate = replace(rate, target=f">= {TIMES} x LiteLLM", holds=rate.ratio >= TIMES)
        plain = values(table, SATURATED, streamed, "direct", lambda found: found.rate)
        rows += [rate, compared(f"{name}: requests a second, direct", "1/s", plain, None)]
        rows += [row("p50", "ms", p50), row("p99", "ms", p99)]
        rows.append(row("CPU of a request", "us", lambda found: found.cpu))
    return rows


def faults(table: Table) -> list[Row]:
    """Answers that were none; a slow gateway's late ones are not among them."""
    mine = [one.told for key, found in table.items() if key[2] == "stillhouse" for one in found]
    broken = sum(one.broken for one in mine)
    refused = sum(count for one in mine for status, count in one.statuses.items() if status != "200")
    good = sum(one.good for one in mine)
    what = f"stillhouse: answers cut or refused of {good:,}"
    return [Row(what, broken + refused, "", target="0", holds=broken + refused == 0)]


def compare(folder: Path, quick: bool) -> list[Row]:
    with arms(folder) as found:
        table = rounds(found, 1 if quick else 5, 1.0 if quick else 5.0)
        held = {arm.name: resident(arm.process.pid) / 1e6 for arm in found}
    rows = latency(table) + saturated(table) + faults(table)
    after = Row("memory after it", held["stillhouse"], "MB")
    if "LiteLLM" not in held:
        return [*rows, after, Row("LiteLLM could not be installed", None, "")]
    other = held["LiteLLM"]
    return [*rows, replace(after, peer="LiteLLM", peer_value=other, ratio=held["stillhouse"] / other)]


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        rows = compare(Path(name), options.quick)
    packages = ["stillhouse", "uvicorn", "uvloop", "httptools", "aiohttp", "orjson"]
    show(header(SEED, packages), rows, options.json)


if __name__ == "__main__":
    main()
