"""Four replicas of the gateway over one Redis: does one limit hold for all of them, whatever fails?

    .venv/bin/python benchmarks/gateway_replicas.py [--quick] [--folder FOLDER] [--json FILE]

400 clients ask all four at once, all with the key of one account that may have so many output tokens a
minute, and ask again when they are refused. The upstream writes exactly as many tokens as it may, ten at a
time, and keeps a journal of what it sent, so what counts is what was truly served and not what a gateway says
of itself. The limit holds when in no stretch of a minute more was served than the limit and one reservation,
and it is of use when nearly all of it was served. What was reserved when is known to lie between the moment
at which the client sent its request and the one at which the upstream had it: what lies whole in a minute
counts.

Accounts lie in PostgreSQL, counts in Redis with an append-only file that is synced at every write. One
account each is asked while nothing fails; while replicas are killed (SIGKILL) and started again; while Redis
is; while the clock of a replica is five seconds ahead and that of another five behind; and while half of the
clients leave in the middle of their streams. Each about a thousand times, and some times with `--quick`. The
full run takes more than an hour: what is in --folder is not done again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from gateway_arms import Arm, free_port, until_answers, upstream
from gateway_load import Load, Told
from gateway_stillhouse import ADMIN, customers, settings, toml
from postgres_server import Unavailable
from postgres_server import running as postgres
from rows import Row, arguments, header, show, working_folder

SEED = 7
LOAD = Path(__file__).with_name("gateway_load.py")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
REPLICAS, CLIENTS = 4, 400
RESERVED, LIMIT, MINUTE = 100, 60_000, 60.0  # tokens of a request, tokens a minute
TIMES, QUICK_TIMES = 1_000, 3
PEPPER = "STILLHOUSE_BENCHMARK_PEPPER"


class Redis:
    """A server of its own that syncs its file at every write, and can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        self._folder = folder
        self.start()

    def start(self) -> None:
        words = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        words += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        words += ["--maxmemory-policy", "noeviction"]
        with (self._folder / "said.txt").open("ab") as said:
            self._process = subprocess.Popen(words, stdout=said, stderr=said)

    def wait(self) -> None:
        """Until it has read its file and answers."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as wire:
                wire.sendall(b"PING\r\n")
                if wire.recv(64).startswith(b"+PONG"):
                    return
            time.sleep(0.02)
        raise RuntimeError(f"Redis does not start: {(self._folder / 'said.txt').read_text()[-3000:]}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Replica:
    """A gateway that can be killed and started again at the same port."""

    def __init__(self, folder: Path, told: dict[str, Any]) -> None:
        folder.mkdir()
        (folder / "guard.toml").write_text(toml(told))
        self.port = int(told["server"]["port"])
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str], clock: int = 0) -> None:
        """With a clock that is so many seconds off."""
        if clock:
            environment = environment | {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{clock:+d}s"}
        words = [sys.executable, "-m", "stillhouse.cli", "guard", "serve", "guard.toml"]
        with (self.folder / "said.txt").open("ab") as said:
            self._process = subprocess.Popen(
                words, cwd=self.folder, env=os.environ | environment, stdout=said, stderr=said
            )

    def wait(self) -> None:
        """Until it is ready. Raises RuntimeError."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5):
                return
            time.sleep(0.05)
        raise RuntimeError(f"a replica does not start: {(self.folder / 'said.txt').read_text()[-3000:]}")

    def arm(self, key: str) -> Arm:
        assert self._process is not None
        return Arm("a replica", self.port, key, self._process)

    def stop(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(60)


@dataclass(frozen=True, slots=True)
class Scene:
    """All that runs, made anew for each kind of trouble, and the key of an account."""

    redis: Redis
    replicas: list[Replica]
    environment: dict[str, str]
    journal: Path
    key: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as the upstream saw it: when its client sent it and when it arrived (unix seconds), the
    tokens that it may have had and those that were sent."""

    sent: float
    arrived: float
    most: int
    tokens: int


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """Raises Unavailable where there is no PostgreSQL to be had."""
    journal = folder / "journal.jsonl"
    environment = {ADMIN: secrets.token_urlsafe(32), PEPPER: secrets.token_hex(32)}
    with postgres() as database, upstream(folder / "upstream", journal) as direct:
        redis = Redis(folder / "redis")
        store = {"folder": "guard", "database": database.url, "pepper_env": PEPPER}
        store["redis"] = f"redis://127.0.0.1:{redis.port}/0"
        replicas = []
        try:
            for number in range(REPLICAS):
                told = settings(direct.port, store=store, server={"port": free_port()})
                told["models"].append({"name": "exact-20", "upstreams": told["models"][0]["upstreams"]})
                replicas.append(Replica(folder / f"replica-{number}", told))
            with environ(environment):
                first, key = customers(replicas[0].folder, 2, output_tokens_per_minute=LIMIT)
            for replica in replicas:
                replica.start(environment)
            for replica in replicas:
                replica.wait()
                until_answers(replica.arm(first), replica.folder)
            yield Scene(redis, replicas, environment, journal, key)
        finally:
            for replica in replicas:
                replica.stop(signal.SIGTERM)
            redis.kill()


@contextmanager
def environ(more: dict[str, str]) -> Iterator[None]:
    before = os.environ.copy()
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# ---------------------------------------------------------------- troubles


def calm(found: Scene, times: int) -> None:
    """Over two minutes, so that what was granted in the first has left its window."""
    time.sleep(5 if times < TIMES else 150)


def kill_replicas(found: Scene, times: int) -> None:
    for _, replica in zip(range(times), cycle(found.replicas), strict=False):
        time.sleep(0.2)
        replica.stop(signal.SIGKILL)
        replica.start(found.environment)
        replica.wait()


def kill_redis(found: Scene, times: int) -> None:
    """Each time after it has answered for a second, so that something is granted between two kills."""
    for _ in range(times):
        found.redis.wait()
        time.sleep(1)
        found.redis.kill()
        time.sleep(0.1)
        found.redis.start()
    found.redis.wait()


def skew(found: Scene, times: int) -> None:
    """The clocks of two replicas are wrong, one ahead and one behind."""
    wrong = found.replicas[:2]
    for clocks, seconds in (((5, -5), 5 if times < TIMES else 150), ((0, 0), 0)):
        for replica, clock in zip(wrong, clocks, strict=True):
            replica.stop(signal.SIGTERM)
            replica.start(found.environment, clock)
            replica.wait()
        time.sleep(seconds)


def vanish(found: Scene, times: int) -> None:
    time.sleep(5 if times < TIMES else 300)


Trouble = Callable[[Scene, int], None]


def pressed(found: Scene, trouble: Trouble, times: int) -> tuple[Told, list[Sent]]:
    """Let the clients ask for as long as the trouble lasts; what they were told, and what was served."""
    before = found.journal.stat().st_size if found.journal.exists() else 0
    load = Load(
        ports=[replica.port for replica in found.replicas],
        keys=[found.key],
        seconds=86_400,
        in_flight=CLIENTS,
        stream=True,
        model="exact-20",
        max_tokens=RESERVED,
        warm=0.0,
        vanish=0.5 if trouble is vanish else 0.0,
        pause=1.0,
        stamped=True,
        seed=SEED,
    )
    clients = subprocess.Popen(
        [sys.executable, str(LOAD), json.dumps(asdict(load))], stdout=subprocess.PIPE, text=True
    )
    try:
        trouble(found, times)
    finally:
        clients.terminate()
        said, _ = clients.communicate(timeout=120)
    time.sleep(1)  # for the upstream to see the last clients leave
    with found.journal.open() as file:
        file.seek(before)
        lines = [json.loads(line) for line in file]
    return Told(**json.loads(said)), [Sent(*line) for line in lines]


def most_of_a_minute(sent: list[Sent], reserved: bool) -> int:
    """The most tokens of requests that were both sent by their client and at the upstream within a minute,
    and so were reserved within it."""
    if not sent:
        return 0
    begun = np.array([one.sent for one in sent])
    arrived = np.array([one.arrived for one in sent])
    tokens = np.array([one.most if reserved else one.tokens for one in sent])
    return max(int(tokens[(begun >= start) & (arrived <= start + MINUTE)].sum()) for start in begun)


def rows_of(name: str, trouble: Trouble, told: Told, sent: list[Sent]) -> list[Row]:
    held = f"<= {LIMIT + RESERVED:,}"
    served = most_of_a_minute(sent, reserved=False)
    rows = [
        Row(f"{name}: requests let through", len(sent), ""),
        Row(f"{name}: refused by the limit", told.statuses.get("429", 0), ""),
        Row(f"{name}: refused while a store was down", told.statuses.get("503", 0), ""),
        _within(f"{name}: served in a minute at most", served, held),
    ]
    if trouble is vanish:
        rows.append(Row(f"{name}: clients gone", told.left, ""))
    else:
        rows.append(
            _within(f"{name}: reserved in a minute at most", most_of_a_minute(sent, reserved=True), held)
        )
    if trouble is calm:
        share = 100 * served / LIMIT
        rows.append(Row(f"{name}: of the limit", share, "%", target=">= 95 %", holds=share >= 95))
    else:
        rows.append(Row(f"{name}: answers cut", told.broken, ""))
    return rows


def _within(what: str, value: int, target: str) -> Row:
    return Row(what, value, "tokens", target=target, holds=value <= LIMIT + RESERVED)


def done_before(file: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(file.read_text())] if file.exists() else []


def main() -> None:
    options = arguments(__doc__ or "", resumable=True)
    times = QUICK_TIMES if options.quick else TIMES
    troubles: dict[str, Trouble] = {
        "nothing fails": calm,
        "clocks 5 s off": skew,
        "clients leave": vanish,
        f"{times:,} kills of Redis": kill_redis,
        f"{times:,} kills of a replica": kill_replicas,
    }
    head = header(SEED, ["stillhouse", "hiredis", "psycopg", "uvicorn", "aiohttp"])
    if shutil.which("redis-server") is None:
        show(head, [Row("skipped: there is no redis-server", None, "")], options.json)
        return
    rows = []
    try:
        with working_folder(options.folder) as folder:
            for title, trouble in troubles.items():
                file = folder / f"{trouble.__name__}-{times}.json"
                shown = done_before(file)
                if trouble is skew and not FAKETIME.exists():
                    shown = [Row(f"{title}: skipped, there is no libfaketime", None, "")]
                elif not shown:
                    with tempfile.TemporaryDirectory() as name, scene(Path(name)) as found:
                        shown = rows_of(title, trouble, *pressed(found, trouble, times))
                    file.write_text(json.dumps([asdict(row) for row in shown]))
                print(*(f"{row.what}: {row.value}" for row in shown), sep="\n", file=sys.stderr)
                rows += shown
    except Unavailable as why:
        rows.append(Row(f"skipped: {why}", None, ""))
    show(head, rows, options.json)


if __name__ == "__main__":
    main()
