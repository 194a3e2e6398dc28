"""A run, seen from another process."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from provider import Provider, answer

from stillhouse.cli.live import describe
from stillhouse.cli.watching import SILENT, state_of
from stillhouse.pipeline.recording import recorded
from stillhouse.records import Progress, Traffic, unwatched
from stillhouse.workspace import RunFolder

Serve = Callable[..., Provider]
PROMPTS = 60


class Gate:
    """Answers `free` requests, refusing the third and failing the fifth, and holds the others back."""

    def __init__(self, free: int) -> None:
        self.free = free

    async def __call__(self, body: dict, number: int) -> web.Response:
        while number > self.free:  # noqa: ASYNC110, another thread opens it
            await asyncio.sleep(0.02)
        if number == 3:
            return web.json_response(
                {"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0"}
            )
        if number == 5:
            return web.json_response({"error": {"message": "broken"}}, status=500)
        return answer("yes")


@pytest.fixture
def gate(provider: Serve) -> Iterator[tuple[Gate, str]]:
    """A gate that is shut, and the URL behind it."""
    made = Gate(0)
    yield made, provider(made).url
    made.free = 10**6  # or the server would not end


def write_recipe(folder: Path, url: str, extra: str = "") -> Path:
    rows = [{"prompt": f"say {i}", "id": f"p{i}"} for i in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "terms.txt").write_text("you may")
    path = folder / "recipe.toml"
    path.write_text(
        f"""
[run]
name = "t"
[teacher]
model = "m"
endpoint = "{url}"
terms = {{ document = "terms.txt", read_on = 2026-01-02, declared_by = "a test" }}
price = {{ input = 100.0, output = 200.0 }}
[prompts]
source = "prompts.jsonl"
[student]
init = "config"
[evaluate]
held_out = 0.0
[collect]
concurrency = 4
{extra}
"""
    )
    return path


@contextmanager
def started(folder: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "stillhouse.cli", *map(str, words)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = threading.Timer(60, process.kill)  # a line that never comes must not hang the test
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str], wanted: Callable[[dict], bool]) -> dict:
    """The first object on the process's stdout that is the wanted one."""
    assert process.stdout is not None
    for text in process.stdout:
        line = json.loads(text)
        if wanted(line):
            return line
    raise AssertionError(process.stderr.read() if process.stderr else "")


def wait_for(path: Path, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.05)


def folder_of(tmp_path: Path) -> Path:
    until = time.monotonic() + 60
    while not (found := list((tmp_path / ".stillhouse" / "runs").glob("t-*/progress.json"))):
        assert time.monotonic() < until
        time.sleep(0.05)
    wait_for(found[0].parent / "recipe.json")
    return found[0].parent


def stamps(run: Path) -> dict[str, float]:
    """When each file of a run was changed last; one that is being put in place is none yet."""
    return {p.name: p.stat().st_mtime for p in run.iterdir() if not p.name.startswith(".")}


def test_another_terminal_sees_every_figure_and_the_end(gate: tuple[Gate, str], tmp_path: Path):
    served, url = gate
    served.free = 22
    recipe = write_recipe(tmp_path, url)
    with started(tmp_path, "collect", recipe, "--json") as collecting:
        run = folder_of(tmp_path)
        with started(tmp_path, "collect", "--watch", "t", "--json") as watching:
            line = next_line(
                watching, lambda line: line.get("done") == 20 and line["in_flight"] and line["rate"]
            )
            assert line["run"] == run.name
            assert (line["state"], line["stage"], line["total"], line["unit"]) == (
                "running",
                "collect",
                PROMPTS,
                "answers",
            )
            assert line["counts"] == {"failed": 0, "new": 20, "reused": 0}
            assert line["failures"] == {"rate_limited": 1, "server": 1}
            assert line["limit"] >= line["in_flight"]
            assert line["rate"] > 0
            assert line["seconds_left"] == pytest.approx(40 / line["rate"])
            known = 20 * (10 * 100 + 5 * 200) / 1e6
            assert line["spent"] > known  # the failed attempt may have been billed
            assert line["reserved"] > 0
            assert line["expected"] == pytest.approx(line["spent"] + 40 * known / 20)
            before = stamps(run)
            next_line(watching, lambda line: line["time"] > before["progress.json"] + 2.0)
            assert {**stamps(run), "progress.json": before["progress.json"]} == before
            served.free = 10**6
            end = next_line(watching, lambda line: line["state"] != "running")
            assert (end["state"], end["done"], end["seconds_left"]) == ("done", PROMPTS, None)
            assert watching.wait(20) == 0
        assert collecting.wait(30) == 0


def test_a_killed_process_is_gone(gate: tuple[Gate, str], tmp_path: Path):
    served, url = gate
    served.free = 10
    recipe = write_recipe(tmp_path, url)
    with started(tmp_path, "collect", recipe, "--json") as collecting:
        folder_of(tmp_path)
        with started(tmp_path, "collect", "--watch", "t", "--json") as watching:
            next_line(watching, lambda line: line.get("done", 0) > 0)
            collecting.send_signal(signal.SIGKILL)
            collecting.wait(20)  # reaped, or its number would still be taken
            end = next_line(watching, lambda line: line["state"] != "running")
            assert end["state"] == "gone"
            assert watching.wait(20) == 1
    with started(tmp_path, "collect", "--watch", "t") as watching:
        assert watching.wait(20) == 1
        assert watching.stderr is not None
        said = watching.stderr.read()
    assert re.search(
        r"error: nobody works on t-\w+\ncause: process \d+ is gone, after \d+ answers\nhint: ", said
    )


def test_a_run_that_stopped_says_why(gate: tuple[Gate, str], tmp_path: Path):
    served, url = gate
    served.free = 10**6
    recipe = write_recipe(tmp_path, url, "max_cost = 0.1")
    with started(tmp_path, "collect", recipe) as collecting:
        out, err = collecting.communicate(timeout=60)
        assert collecting.returncode == 4
    with started(tmp_path, "collect", "--watch", "t") as watching:
        out, err = watching.communicate(timeout=20)
        assert watching.returncode == 1
    assert out == ""
    assert "budget reached after" in err
    assert re.search(r"collect   \d+/60 answers .* US\$ 0\.\d+ \+ .* expected", err)  # the last figures


def test_what_was_never_begun_cannot_be_watched(tmp_path: Path):
    for words, code in (
        (("collect", "--watch", "t"), 2),
        (("collect",), 2),
        (("collect", "recipe.toml", "--watch", "t"), 2),
        (("collect", "--watch", "t", "--cancel-batches"), 2),
    ):
        with started(tmp_path, *words) as process:
            assert process.wait(20) == code
            assert process.stderr is not None
            assert "hint:" in process.stderr.read()


def test_a_process_that_says_nothing_for_long_is_silent_and_on_another_machine_never_gone():
    row = {"state": "running", "time": 1000.0}
    assert state_of(row, 1000.0 + SILENT, alive=True) == "running"
    assert state_of(row, 1001.0 + SILENT, alive=True) == "silent"
    assert state_of(row, 1001.0, alive=False) == "gone"
    assert state_of(row, 9999.0, alive=None) == "silent"
    assert state_of({**row, "state": "done"}, 9999.0, alive=False) == "done"
    assert state_of({**row, "state": "stopped"}, 9999.0, alive=True) == "stopped"


def test_the_line_shows_rate_traffic_failures_and_money():
    traffic = Traffic(12, 40, {"server": 2, "rate_limited": 5}, 0.52, 0.031, 1.61)
    progress = Progress("collect", 400, 1000, "answers", {"failed": 1, "new": 300, "reused": 99}, "", traffic)
    assert describe(progress, 10.0) == (
        "1 failed  300 new  99 reused  30.0 answers/s  20 s left  12 of 40 in flight  5 x 429, 2 x server  "
        "US$ 0.5200 + 0.0310 reserved, 1.6100 expected"
    )


def test_the_line_of_batches_shows_money_and_no_rate():
    traffic = Traffic(1200, 1200, {}, 0.5, 0.25, 1.5, batches=2)
    progress = Progress("collect", 400, 1600, "answers", {"failed": 0, "new": 400}, "in progress", traffic)
    assert describe(progress, 10.0) == (
        "0 failed  400 new  1,200 in flight in 2 batches  US$ 0.5000 + 0.2500 reserved, 1.5000 expected  "
        "in progress"
    )


def test_a_full_disk_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunFolder(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with recorded(run, unwatched) as watch:
        watch(Progress("collect", 1, 2))
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_named_in_the_file(tmp_path: Path):
    run = RunFolder(tmp_path)
    seen: list[Progress] = []

    def work() -> None:
        with recorded(run, seen.append) as watch:
            watch(Progress("train", 3, 9, "step", note="loss 1.5"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    row = json.loads(run.progress.read_bytes())
    assert (row["state"], row["why"], row["pid"]) == ("stopped", "ZeroDivisionError", os.getpid())
    assert (row["progress"]["stage"], row["progress"]["note"]) == ("train", "loss 1.5")
    assert [progress.done for progress in seen] == [3]
