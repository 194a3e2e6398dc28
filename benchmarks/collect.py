"""Collecting beside other ways to ask: requests a second, CPU and memory for each, and use of a given rate.

    .venv/bin/python benchmarks/collect.py [--quick] [--json FILE]

All ask the same mock provider (a process of its own, answers of some 2 KB, a few milliseconds) the same
prompts: `stillhouse collect` with everything on (a cap, a seed for each answer, every attempt and answer
synced to disk), a bare aiohttp loop, a loop over the `openai` package, and distilabel and NeMo Data Designer
in environments of their own. CPU is that of the client's process and its children, user and system; what a
request costs is the slope between two numbers of prompts, the rest is the start. Last, a provider that allows
600 requests and 90,000 tokens a minute, a second's worth of them at once, and says so only in its headers;
`--quick` asks ten times as much of it for a short time, and leaves Data Designer out.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collecting import start, write_prompts, write_workspace
from mock_provider import Served, Settings, entries, read_journal, serving
from rows import Row, arguments, header, show

SEED = 7
CONCURRENCY = 64
MAX_TOKENS = 800
ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".stillhouse-build" / "peers"
INSTALLED = {  # distilabel imports `requests` and does not ask for it
    "distilabel": ("distilabel[openai]==1.5.3", "requests"),
    "data-designer": ("data-designer==0.9.7",),
}
TITLES = {
    "stillhouse": "stillhouse",
    "bare": "bare aiohttp loop",
    "openai": "openai package",
    "distilabel": "distilabel 1.5.3",
    "data-designer": "Data Designer 0.9.7",
}
REQUESTS, TOKENS = 600, 90_000  # a minute


@dataclass(frozen=True, slots=True)
class Use:
    """What one run of a client took; `server` is the mock provider's CPU."""

    prompts: int
    seconds: float
    cpu: float
    peak_mb: float
    server: float


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    small: Use
    large: Use

    @property
    def cpu_each(self) -> float:
        """Microseconds of CPU for a further prompt."""
        return 1e6 * (self.large.cpu - self.small.cpu) / (self.large.prompts - self.small.prompts)

    @property
    def rate(self) -> float:
        """Requests a second, start-up included."""
        return self.large.prompts / self.large.seconds

    @property
    def start(self) -> float:
        """CPU seconds that do not depend on the number of prompts."""
        return self.small.cpu - self.cpu_each * self.small.prompts / 1e6


Launch = Callable[[Path, Served], subprocess.Popen[bytes]]


def measured(launch: Launch, folder: Path, provider: Served, prompts: int) -> Use:
    """Run a client over so many prompts. Raises RuntimeError when it fails or leaves a prompt unasked."""
    folder.mkdir(parents=True)
    write_prompts(folder / "prompts.jsonl", prompts)
    before = provider.journal.stat().st_size
    server, begun = provider.cpu_seconds(), time.monotonic()
    process = launch(folder, provider)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    answered = _answers(provider.journal, before)
    if process.returncode != 0 or answered < prompts:
        said = [file.read_text()[-2000:] for file in folder.glob("*.txt")]
        raise RuntimeError(f"{folder.name}: exit {process.returncode}, {answered} of {prompts} asked: {said}")
    server = provider.cpu_seconds() - server
    return Use(prompts, seconds, used.ru_utime + used.ru_stime, _megabytes(used.ru_maxrss), server)


def _answers(journal: Path, start: int) -> int:
    """Whole answers from byte `start` on, line by line: a process inherits the peak memory of its parent."""
    with journal.open("rb") as file:
        file.seek(start)
        return sum(b'"sent":"whole"' in line for line in file)


def _megabytes(maxrss: int) -> float:
    return maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def stillhouse(folder: Path, provider: Served) -> subprocess.Popen[bytes]:
    write_workspace(
        folder,
        provider.port,
        (1.0, 4.0),
        concurrency=CONCURRENCY,
        temperature=0.7,
        max_tokens=MAX_TOKENS,
        max_cost=10_000.0,
    )
    return start(folder)


def other(name: str, python: str = sys.executable) -> Launch:
    """One of collect_clients.py, by the Python that has its packages."""

    def launch(folder: Path, provider: Served) -> subprocess.Popen[bytes]:
        script = str(Path(__file__).with_name("collect_clients.py"))
        places = [str(folder / "prompts.jsonl"), str(folder / "out")]
        words = [python, script, name, provider.url, *places, str(CONCURRENCY), str(MAX_TOKENS)]
        environment = os.environ if python == sys.executable else _alone()
        with (folder / "said.txt").open("wb") as said:
            return subprocess.Popen(words, cwd=folder, stdout=said, stderr=said, env=environment)

    return launch


def _alone() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def peer_python(name: str, packages: tuple[str, ...]) -> str | None:
    """The Python of an environment that holds the packages, made at the first call; None when pip fails."""
    folder = PEERS / name
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"installing {' '.join(packages)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        if subprocess.run(pip, check=False, env=_alone()).returncode != 0:
            return None
        ready.write_text("\n".join(packages))
    return str(python)


def compare(folder: Path, quick: bool) -> list[Row]:
    sizes = {
        "stillhouse": (2_000, 8_000) if quick else (10_000, 100_000),
        "bare": (2_000, 8_000) if quick else (10_000, 100_000),
        "openai": (200, 1_000) if quick else (1_000, 10_000),
        "distilabel": (64, 512) if quick else (640, 6_400),
        "data-designer": (640, 6_400),
    }
    launches = {"stillhouse": stillhouse, "bare": other("bare"), "openai": other("openai")}
    absent = []
    for name, packages in INSTALLED.items():
        if quick and name == "data-designer":
            continue
        python = peer_python(name, packages)
        if python is None:
            absent.append(Row(f"{packages[0]} could not be installed", None, ""))
        else:
            launches[name] = other(name, python)
    found: dict[str, Client] = {}
    with serving(folder / "provider", Settings(seed=SEED, latency=0.005, answer_bytes=2000)) as provider:
        for name, launch in launches.items():
            uses = [measured(launch, folder / f"{name}-{n}", provider, n) for n in sizes[name]]
            found[name] = Client(name, *uses)
    return _comparison(found) + absent


def _comparison(found: dict[str, Client]) -> list[Row]:
    ours = found["stillhouse"]
    rows = [
        Row(
            "CPU of an exchange, stillhouse, durable",
            ours.cpu_each,
            "us",
            target="<= 300 us",
            holds=ours.cpu_each <= 300,
        )
    ]
    limits = {"bare": (2.5, "stillhouse <= 2.5 x"), "openai": (0.2, "stillhouse 5 x better")}
    for name, client in found.items():
        if name == "stillhouse":
            continue
        ratio = ours.cpu_each / client.cpu_each
        most, target = limits.get(name, (None, None))
        holds = None if most is None else ratio <= most
        what = f"CPU of a request, {TITLES[name]}"
        rows.append(
            Row(
                "stillhouse's CPU beside it",
                ours.cpu_each,
                "us",
                None,
                None,
                what,
                client.cpu_each,
                ratio,
                target,
                holds,
            )
        )
    for client in found.values():
        rows.append(Row(f"requests a second, {TITLES[client.name]}", client.rate, "1/s"))
    for client in found.values():
        rows.append(Row(f"CPU to start and end, {TITLES[client.name]}", client.start, "s"))
    for client in found.values():
        growth = client.large.peak_mb / client.small.peak_mb
        own = client.name == "stillhouse"
        rows.append(
            Row(
                f"peak memory, {TITLES[client.name]}, {client.large.prompts:,} prompts",
                client.large.peak_mb,
                "MB",
                peer=f"{client.small.prompts:,} prompts",
                peer_value=client.small.peak_mb,
                ratio=growth,
                target="within 20 %" if own else None,
                holds=growth <= 1.2 if own else None,
            )
        )
    for client in found.values():
        share = client.large.server / client.large.seconds
        rows.append(
            Row(f"mock provider's CPU share meanwhile, {TITLES[client.name]}", 100 * share, "% of a core")
        )
    return rows


def throughput(folder: Path, quick: bool) -> list[Row]:
    """How much of an allowed rate is used, by the provider's journal, from its first request to its last."""
    times = 10 if quick else 1
    requests, tokens = times * REQUESTS, times * TOKENS
    prompts = int(requests * (0.33 if quick else 4))
    burst = 1.0  # seconds
    settings = Settings(
        seed=SEED, latency=1.0 / times, answer_bytes=368, limits=f"0:{requests}:{tokens}", burst_seconds=burst
    )
    with serving(folder / "limited", settings) as provider:
        work = folder / "paced"
        work.mkdir()
        write_prompts(work / "prompts.jsonl", prompts, size=200)
        write_workspace(work, provider.port, (1.0, 4.0), max_tokens=160)
        if start(work).wait() != 0:
            raise RuntimeError((work / "out.json").read_text())
        seen = entries(read_journal(provider.journal)[0])
    admitted = [e for e in seen if e.does != "limited"]
    minutes = (admitted[-1].at - admitted[0].at) / 60
    allowed = minutes + burst / 60
    used = sum(sum(e.tokens) for e in admitted)
    shares = {"requests": len(admitted) / allowed / requests, "tokens": used / allowed / tokens}
    binding = max(shares, key=lambda name: shares[name])
    refused = (len(seen) - len(admitted)) / len(seen)
    rate = f"{requests:,} requests and {tokens:,} tokens a minute, {60 * minutes:.0f} s"
    return [
        Row(
            f"share of the allowed {binding} used ({rate})",
            100 * shares[binding],
            "%",
            target=">= 95 %",
            holds=shares[binding] >= 0.95,
        ),
        *(Row(f"share of the allowed {n} used", 100 * s, "%") for n, s in shares.items() if n != binding),
        Row("requests refused with 429", 100 * refused, "%", target="< 1 %", holds=refused < 0.01),
        Row("tokens of a request, mean", statistics.fmean(sum(e.tokens) for e in admitted), "tokens"),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), options.quick)
        rows += throughput(Path(folder), options.quick)
    show(header(SEED, ["stillhouse", "aiohttp", "orjson", "openai"]), rows, options.json)


if __name__ == "__main__":
    main()
