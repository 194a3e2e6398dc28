"""What benchmarks/gateway.py puts between the load and the upstream, each a process of its own.

Everything is on in stillhouse: keys as keyed hashes, limits of requests, input and output tokens a minute and
a day and of what is in flight, for the key and for its account, a price, a budget, the policy of leaks, every
request reserved before it is sent, settled at its end and recorded as an event on disk, metrics.

LiteLLM's proxy does less. It is set up as its pages on benchmarks and production advise, and for speed: one
worker, uvicorn with uvloop, no database, no callbacks, no retries, errors alone are logged, and a master key
is the only key that it knows. So it limits nobody, records nothing and keeps what a request cost in memory.
(It can limit without a database, by a `custom_auth` that gives a key its limits; that is slower still.) Its
Rust core takes no part: it translates for Anthropic and Bedrock only. The version is of September 2026, well
apart from 1.82.7, 1.82.8 and 1.107.0, whose releases were stolen.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".bench" / "gateway"
LITELLM = "litellm[proxy]==1.101.1"
TICKS = os.sysconf("SC_CLK_TCK")
MODELS = ("think-0", "think-20")
LITELLM_KEY = "sk-only-key-of-the-benchmark"


@dataclass(frozen=True, slots=True)
class Arm:
    """A server to ask, with its key."""

    name: str
    port: int
    key: str
    process: subprocess.Popen[bytes]


# ---------------------------------------------------------------- processes


def family(pid: int) -> list[int]:
    """The process and all below it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        below = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(one for child in below for one in family(child))]


def cpu_seconds(pid: int) -> float:
    """User and system, of the process and its children."""
    ticks = 0
    for one in family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
        if one == pid:
            ticks += int(fields[13]) + int(fields[14])  # of children that have ended
    return ticks / TICKS


def resident(pid: int) -> int:
    """Bytes in memory, of the process and its children; what they share counts once (PSS)."""
    kilobytes = 0
    for one in family(pid):
        try:
            told = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        kilobytes += sum(int(line.split()[1]) for line in told.splitlines() if line.startswith("Pss:"))
    return 1024 * kilobytes


def until_idle(pid: int, most: float = 60.0) -> None:
    """Wait until the process has nothing more to do."""
    deadline = time.monotonic() + most
    while time.monotonic() < deadline:
        before = cpu_seconds(pid)
        time.sleep(0.25)
        if cpu_seconds(pid) - before <= 0.02:
            return


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextmanager
def running(words: Sequence[str | Path], folder: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The process with its output in `folder/said.txt`, ended after the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said.txt").open("ab") as said:
        process = subprocess.Popen(words, cwd=folder, stdout=said, stderr=said, env=os.environ | more)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def until_answers(arm: Arm, folder: Path, most: float = 120.0, model: str = MODELS[0]) -> None:
    """Wait for the first answer to a chat. Raises RuntimeError with what the process said."""
    said: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Authorization": f"Bearer {arm.key}", "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{arm.port}/v1/chat/completions"
    deadline, told = time.monotonic() + most, ""
    while time.monotonic() < deadline and arm.process.poll() is None:
        try:
            with urlopen(Request(url, json.dumps(said | {"max_tokens": 5}).encode(), headers), timeout=20):
                return
        except HTTPError as error:
            told = f"{error.code}: {error.read()[:500]!r}"
        except (URLError, ConnectionError, TimeoutError) as error:
            told = repr(error)
        time.sleep(0.2)
    raise RuntimeError(f"{arm.name} does not answer: {told}\n{(folder / 'said.txt').read_text()[-3000:]}")


# ---------------------------------------------------------------- the upstream


@contextmanager
def upstream(folder: Path, journal: Path | None = None) -> Iterator[Arm]:
    port = free_port()
    words: list[str | Path] = [sys.executable, HERE / "gateway_upstream.py", "--port", str(port)]
    words += [] if journal is None else ["--journal", str(journal)]
    with running(words, folder) as process:
        arm = Arm("direct", port, "sk-none", process)
        until_answers(arm, folder)
        yield arm


def served(port: int) -> dict[str, float]:
    """What the upstream has served so far."""
    with urlopen(f"http://127.0.0.1:{port}/count") as reply:
        return dict(json.loads(reply.read()))


# ---------------------------------------------------------------- LiteLLM


def litellm_python() -> str | None:
    """The Python of LiteLLM's environment, made at the first call; None when pip fails."""
    folder = PEERS / "litellm"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"installing {LITELLM} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "--only-binary=:all:", LITELLM], check=False, env=_alone())
        if done.returncode != 0:
            return None
        ready.write_text(LITELLM)
    return str(python)


def _alone() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


NO_ACCESS_LOG = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {name: {"level": "ERROR"} for name in ("uvicorn", "uvicorn.access", "uvicorn.error")},
}


def litellm_settings(port: int) -> dict[str, Any]:
    """YAML is a superset of JSON."""
    base = f"http://127.0.0.1:{port}/v1"
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": base, "api_key": "sk-none"},
        }
        for name in MODELS
    ]
    quiet = {
        "callbacks": [],
        "num_retries": 0,
        "request_timeout": 60,
        "set_verbose": False,
        "telemetry": False,
    }
    return {
        "model_list": models,
        "litellm_settings": quiet,
        "general_settings": {"master_key": LITELLM_KEY},
    }


@contextmanager
def litellm(folder: Path, upstream_port: int) -> Iterator[Arm | None]:
    """None where it cannot be installed."""
    python = litellm_python()
    if python is None:
        yield None
        return
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(litellm_settings(upstream_port)))
    (folder / "log.json").write_text(json.dumps(NO_ACCESS_LOG))
    port = free_port()
    words: list[str | Path] = [
        Path(python).with_name("litellm"),
        "--config",
        "config.yaml",
        "--host",
        "127.0.0.1",
    ]
    words += ["--port", str(port), "--num_workers", "1", "--log_config", "log.json"]
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running(words, folder, PYTHONPATH="", **quiet) as process:
        arm = Arm("LiteLLM", port, LITELLM_KEY, process)
        until_answers(arm, folder)
        yield arm


# ---------------------------------------------------------------- all of them


@contextmanager
def arms(folder: Path) -> Iterator[list[Arm]]:
    """Direct first."""
    from gateway_stillhouse import stillhouse

    with ExitStack() as stack:
        direct = stack.enter_context(upstream(folder / "upstream"))
        found = [direct, stack.enter_context(stillhouse(folder / "stillhouse", direct.port))]
        other = stack.enter_context(litellm(folder / "litellm", direct.port))
        yield found if other is None else [*found, other]
