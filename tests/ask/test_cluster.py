"""A collection over a Ray cluster of two workers; one is killed, or else the process that directs them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, cast

import orjson
import pyarrow.parquet as pq
import pytest
from collecting import HOST, Attempt, read_attempts, said, write_prompts, write_workspace
from mock_provider import Entry, Served, Settings, entries, read_journal, serving

from stillhouse.ask.cluster import Cluster, Elsewhere
from stillhouse.ask.lane import Here
from stillhouse.ask.settling import Begun
from stillhouse.ask.shard import read_shard
from stillhouse.ask.worker import Errand
from stillhouse.cli import main
from stillhouse.models.endpoint import Endpoint, Failure, Reply

PROMPTS = 1000
PRICE = (1.0, 4.0)  # US dollars per million tokens
MAX_TOKENS = 600
CONCURRENCY = 48
KEY = "sk-key-of-the-tests-0123456789"
SETTINGS = Settings(latency=0.08, answer_bytes=1200, price_input=PRICE[0], price_output=PRICE[1])

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.lock"
)


class Killed(NamedTuple):
    """What was on disk when a process was killed and the director stopped: the ledger's attempts, ids of
    those that shards of the dead hold an outcome of, and how many requests the provider had seen."""

    attempts: list[Attempt]
    kept: set[int]
    seen: int


def workplace(folder: Path, provider: Served, keys: Path | None = None, **collect: float) -> Path:
    """A workspace with the keys of another one, so that both give a question the same key."""
    folder.mkdir()
    write_prompts(folder / "prompts.jsonl", PROMPTS)
    settings = {"concurrency": CONCURRENCY, "max_tokens": MAX_TOKENS} | collect
    write_workspace(folder, provider.port, PRICE, **settings)
    recipe = (folder / "recipe.toml").read_text()
    recipe = recipe.replace(HOST, "127.0.0.1").replace('model = "m"', 'model = "m"\nkey_env = "TESTS_KEY"')
    (folder / "recipe.toml").write_text(recipe)
    subprocess.run([*stillhouse(), "init"], cwd=folder, check=True, capture_output=True)
    if keys is not None:
        shutil.copytree(keys, folder / ".stillhouse" / "keys", dirs_exist_ok=True)
    return folder


def stillhouse() -> list[str]:
    return [sys.executable, "-m", "stillhouse.cli"]


@contextmanager
def collecting(folder: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`stillhouse collect` in a process group of its own, its output in `out.json` and `err.txt`."""
    with (folder / "out.json").open("wb") as out, (folder / "err.txt").open("wb") as err:
        process = subprocess.Popen(
            [*stillhouse(), "collect", "recipe.toml", "--json", *words],
            cwd=folder,
            stdout=out,
            stderr=err,
            env={**os.environ, "TESTS_KEY": KEY, **environment},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def collect(folder: Path, *words: str, **environment: str) -> int:
    with collecting(folder, *words, **environment) as process:
        return process.wait(240)


@contextmanager
def two_machines(**environment: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A Ray cluster of two nodes, both on this machine, with an environment of its own; its address, and what
    makes the second node die."""
    code = (
        "import sys\n"
        "from ray.cluster_utils import Cluster\n"
        "made = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False})\n"
        "second = made.add_node(num_cpus=1)\n"
        "print('at', made.address, flush=True)\n"
        "if sys.stdin.readline():\n"
        "    made.remove_node(second, allow_graceful=False)\n"
        "    sys.stdin.readline()\n"
        "made.shutdown()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def lose_one() -> None:
        print("now", file=process.stdin, flush=True)

    try:
        yield next(line.split()[1] for line in process.stdout if line.startswith("at ")), lose_one
    finally:
        process.communicate(timeout=60)


def journal(provider: Served) -> list[Entry]:
    return entries(read_journal(provider.journal)[0]) if provider.journal.exists() else []


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the collection ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob(".stillhouse/runs/*/shards/*.shard"))


def pid_of(shard: Path) -> int:
    return int(shard.stem.split("-")[1])


def kill_worker(folder: Path, provider: Served, director: subprocess.Popen[bytes]) -> Killed:
    """Kill the worker that first writes down something that the director, which is stopped, will not hear."""
    director.send_signal(signal.SIGSTOP)
    time.sleep(0.02)
    sizes = {path: path.stat().st_size for path in shards_of(folder)}
    assert len(sizes) == 2
    deadline = time.monotonic() + 10
    while not (grown := [path for path, size in sizes.items() if path.stat().st_size > size]):
        assert time.monotonic() < deadline
    os.kill(pid_of(grown[0]), signal.SIGKILL)
    time.sleep(0.5)  # what it had sent arrives
    seen = on_disk(folder, provider, grown[:1])
    director.send_signal(signal.SIGCONT)
    return seen


def kill_director(folder: Path, provider: Served, director: subprocess.Popen[bytes]) -> Killed:
    director.send_signal(signal.SIGSTOP)
    time.sleep(1.0)  # the workers go on, and write down what nobody will hear
    director.kill()
    director.wait()
    return on_disk(folder, provider, shards_of(folder))


def on_disk(folder: Path, provider: Served, dead: list[Path]) -> Killed:
    attempts, _ = read_attempts(folder)
    kept = {ended.begun.attempt for path in dead for ended in read_shard(path, range(10**9))}
    told = {attempt.id for attempt in attempts if attempt.state == "answered"}
    assert kept - told, "the dead wrote nothing that the ledger did not have"
    return Killed(attempts, kept, len(journal(provider)))


def rows_of(folder: Path) -> list[dict]:
    (file,) = folder.glob(".stillhouse/runs/*/exchanges.parquet")
    return pq.read_table(file).drop_columns(["leaf"]).to_pylist()


def marker(folder: Path) -> dict:
    (file,) = folder.glob(".stillhouse/runs/*/collect.done.json")
    return json.loads(file.read_bytes())["result"]


def check_books(folder: Path, provider: Served, killed: Killed) -> None:
    """Everything is answered, nothing that was kept was asked again, and what was is known."""
    now, leaves = read_attempts(folder)
    states = Counter(attempt.state for attempt in now)
    assert states.keys() <= {"answered", "unknown"}
    assert states["answered"] == leaves == PROMPTS
    assert len(now) == states["answered"] + states["unknown"]
    seen = Counter(entry.prompt[:8] for entry in journal(provider))
    assert len(seen) == PROMPTS
    again = sum(seen.values()) - PROMPTS
    was_open = [a for a in killed.attempts if a.state == "open"]
    assert 0 < len(was_open) <= CONCURRENCY
    assert again <= states["unknown"] <= len(was_open)
    durable = {a.asked[0] for a in killed.attempts if a.state == "answered" or a.id in killed.kept}
    assert not durable & {entry.prompt[:8] for entry in journal(provider)[killed.seen :]}
    asked_once = {a.asked[0] for a in killed.attempts if a.id in killed.kept}
    assert all(seen[prompt] == 1 for prompt in asked_once)
    assert not shards_of(folder)
    assert all(check["ok"] for check in said(folder, "ledger", "verify")["checks"])


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("alone"), SETTINGS) as served:
        yield served


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, provider: Served) -> Path:
    """The same collection by a single process."""
    folder = workplace(tmp_path_factory.mktemp("single") / "work", provider)
    assert collect(folder) == 0
    return folder


@needs_ray
@pytest.mark.slow
def test_with_a_worker_killed_a_collection_equals_that_of_a_single_process(tmp_path: Path, alone: Path):
    with serving(tmp_path / "provider", SETTINGS) as provider:
        folder = workplace(tmp_path / "work", provider, alone / ".stillhouse" / "keys")
        with collecting(folder, "--on", "ray", "--workers", "2") as process:
            wait_for(lambda: len(journal(provider)) > PROMPTS // 3, process)
            text = b"".join(path.read_bytes() for path in shards_of(folder))
            assert KEY.encode() not in text
            assert (folder / ".stillhouse" / "keys" / "workspace.key").read_bytes().strip() not in text
            killed = kill_worker(folder, provider, process)
            assert process.wait(240) == 0, (folder / "err.txt").read_text()
        check_books(folder, provider, killed)
        assert rows_of(folder) == rows_of(alone)
        digest, asked = marker(folder)["digest"], len(journal(provider))
        assert collect(folder) == 0  # without a cluster
        assert marker(folder)["digest"] == digest
        assert len(journal(provider)) == asked


@needs_ray
@pytest.mark.slow
def test_what_workers_kept_when_the_director_died_is_merged_by_the_next_call(tmp_path: Path, alone: Path):
    with serving(tmp_path / "provider", SETTINGS) as provider:
        folder = workplace(tmp_path / "work", provider, alone / ".stillhouse" / "keys")
        with collecting(folder, "--on", "ray") as process:
            wait_for(lambda: len(journal(provider)) > PROMPTS // 3, process)
            killed = kill_director(folder, provider, process)
        assert collect(folder) == 0, (folder / "err.txt").read_text()
        check_books(folder, provider, killed)
        assert rows_of(folder) == rows_of(alone)


@needs_ray
@pytest.mark.slow
def test_the_cap_holds_over_two_machines_when_a_worker_dies(tmp_path: Path):
    """And the cluster that RAY_ADDRESS names is left running, for the same command with a higher cap."""
    cap = 0.6
    with (
        serving(tmp_path / "provider", SETTINGS) as provider,
        two_machines(TESTS_KEY=KEY) as (address, _),
    ):
        folder = workplace(tmp_path / "work", provider, max_cost=cap)
        with collecting(folder, "--on", "ray", RAY_ADDRESS=address) as process:
            wait_for(lambda: len(journal(provider)) > 100, process)
            killed = kill_worker(folder, provider, process)
            assert process.wait(240) == 4, (folder / "err.txt").read_text()
        attempts, _ = read_attempts(folder)
        states = Counter(attempt.state for attempt in attempts)
        assert states["unknown"] > 0
        assert states["open"] == 0
        assert sum(entry.dollars for entry in journal(provider)) <= cap
        worst = (300 + 2 * 16 + 16 + MAX_TOKENS * PRICE[1]) / 1e6
        kept = sum(attempt.microdollars or 0 for attempt in attempts) / 1e6
        assert cap - 2 * worst < kept + states["unknown"] * worst <= cap + 1e-9
        recipe = (folder / "recipe.toml").read_text()
        (folder / "recipe.toml").write_text(recipe.replace(f"max_cost = {cap}", "max_cost = 9.0"))
        assert collect(folder, "--on", "ray", RAY_ADDRESS=address) == 0, (folder / "err.txt").read_text()
        check_books(folder, provider, killed)


@needs_ray
@pytest.mark.slow
def test_a_machine_that_dies_takes_only_its_open_requests_along(tmp_path: Path, alone: Path):
    with (
        serving(tmp_path / "provider", SETTINGS) as provider,
        two_machines(TESTS_KEY=KEY) as (address, lose_one),
    ):
        folder = workplace(tmp_path / "work", provider, alone / ".stillhouse" / "keys")
        with collecting(folder, "--on", "ray", RAY_ADDRESS=address) as process:
            wait_for(lambda: len(journal(provider)) > PROMPTS // 3, process)
            lose_one()
            assert process.wait(240) == 0, (folder / "err.txt").read_text()
        assert rows_of(folder) == rows_of(alone)
        attempts, _ = read_attempts(folder)
        assert {attempt.state for attempt in attempts} <= {"answered", "unknown"}
        assert PROMPTS <= len(attempts) <= PROMPTS + CONCURRENCY


@needs_ray
@pytest.mark.slow
def test_machines_without_the_key_send_nothing(tmp_path: Path):
    with serving(tmp_path / "provider", SETTINGS) as provider, two_machines() as (address, _):
        folder = workplace(tmp_path / "work", provider)
        assert collect(folder, "--on", "ray", RAY_ADDRESS=address) == 2
        error = json.loads((folder / "out.json").read_bytes())["error"]
        assert "TESTS_KEY is not set on " in error["what"]
        assert "ray start" in error["mend"]
        assert not journal(provider)
        assert read_attempts(folder) == ([], 0)
        assert not shards_of(folder)


@needs_ray
@pytest.mark.slow
def test_one_rate_holds_for_all_workers_and_ctrl_c_stops_them_in_order(tmp_path: Path):
    with serving(tmp_path / "provider", SETTINGS) as provider:
        folder = workplace(tmp_path / "work", provider, requests_per_minute=600)
        with collecting(folder, "--on", "ray", "--workers", "2") as process:
            wait_for(lambda: len(journal(provider)) > 80, process)
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: Ray's processes get it too
            assert process.wait(240) == 130, (folder / "err.txt").read_text()
        arrived = [entry.at for entry in journal(provider)]
        most = max(sum(at <= other < at + 3 for other in arrived) for at in arrived)
        assert most <= 10 * 3 + 10 + 1  # three seconds' worth and one burst
        attempts, _ = read_attempts(folder)
        assert {attempt.state for attempt in attempts} == {"answered"}
        assert len(attempts) == len(arrived)
        assert not shards_of(folder)


@needs_ray
@pytest.mark.slow
def test_over_a_cluster_a_plan_and_the_run_agree_and_another_terminal_sees_the_end(tmp_path: Path):
    with serving(tmp_path / "provider", SETTINGS) as provider:
        folder = workplace(tmp_path / "work", provider)
        recipe = folder / "recipe.toml"
        recipe.write_text(recipe.read_text() + "\n[collect.canary]\nprompts = 5\nevery = 400\n")
        canaries = said(folder, "plan", "recipe.toml")["exchanges"]["canaries"]
        assert canaries == (2 + 2 + 1) * 5
        assert collect(folder, "--on", "ray", "--workers", "2") == 0
        assert len(journal(provider)) == PROMPTS + canaries
        (who,) = marker(folder)["answered_by"]
        assert (who["canary"]["rounds"], who["canary"]["questions"], who["canary"]["change"]) == (5, 5, None)
        assert said(folder, "plan", "recipe.toml")["exchanges"]["canaries"] == 0
        assert said(folder, "collect", "--watch", "bench")["state"] == "done"


def test_canaries_leave_from_the_process_that_directs(provider: Served):
    """From one place, so that it makes no difference to a round which machine was free."""

    class Workers:
        async def send(self, errand: Errand) -> tuple[Failure, float]:
            return Failure("lost", "sent by a worker"), 0.0

    async def sent(leaf: dict) -> bool:
        async with Endpoint(provider.url, None) as endpoint:
            sender = Elsewhere(cast(Cluster, Workers()), provider.url, None, Here(endpoint))
            asked = {"model": "m", "messages": [{"role": "user", "content": "yes?"}], "max_tokens": 9}
            body = orjson.dumps(asked)
            ended = await sender.send(Begun(1, "key", leaf, None, 0.0), body, 5.0)
        return isinstance(ended.outcome, Reply)

    assert asyncio.run(sent({"epoch": 7}))
    assert not asyncio.run(sent({}))


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, provider: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = workplace(tmp_path / "work", provider)
    asked = len(journal(provider))
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["stillhouse", "collect", "recipe.toml", "--on", "ray"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "error: Ray is not installed" in said
    assert "pip install 'stillhouse[ray]'" in said
    assert len(journal(provider)) == asked


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--workers", "2"], "--workers goes with --on"),
        (["--on", "ray"], "embedded:desk cannot be asked from other machines"),
        (["--on", "spark"], "ray"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    error: str,
):
    monkeypatch.chdir(tmp_path)
    subprocess.run([*stillhouse(), "init"], check=True, capture_output=True)
    monkeypatch.setattr(sys, "argv", ["stillhouse", "collect", "recipe.toml", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert error in capsys.readouterr().err
