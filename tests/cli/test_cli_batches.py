"""Batches as a person meets them: the recipe, the command, Ctrl-C, and going on."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mock_provider import Served, Settings, serving

from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe, load_recipe, run_digest

SLOW = Settings(answer_bytes=200, batch_seconds=1.0)
PROMPTS = 30


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    rows = [{"id": f"p{i}", "prompt": f"say {i}"} for i in range(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "terms.txt").write_text("you may")

    def write(teacher: str, mode: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(f"""
[run]
name = "t"
[teacher]
{teacher}
terms = {{ document = "terms.txt", read_on = 2026-01-02, declared_by = "a test" }}
price = {{ input = 1.0, output = 4.0, batch = 0.5 }}
[prompts]
source = "prompts.jsonl"
[collect]
mode = "{mode}"
max_tokens = 60
max_cost = 1.0
[student]
init = "config"
[evaluate]
held_out = 0.0
""")
        return path

    return write


def at(provider: Served) -> str:
    return f'model = "m"\nendpoint = "{provider.url}"\nprovider = "somewhere"'


def stillhouse(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillhouse.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def status(provider: Served) -> str:
    (path,) = (provider.journal.parent / "batches").glob("*.json")
    return str(json.loads(path.read_bytes())["status"])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupted(path: Path, provider: Served) -> str:
    """Collect until the batch is there, then Ctrl-C; what was said."""
    command = [sys.executable, "-m", "stillhouse.cli", "collect", str(path)]
    with subprocess.Popen(command, cwd=path.parent, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: provider.journal.stat().st_size > 0)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130, said
    return said


def test_a_batch_is_left_with_ctrl_c_and_fetched_by_the_same_command(
    recipe: Callable[..., Path], tmp_path: Path
):
    with serving(tmp_path / "provider", SLOW) as provider:
        path = recipe(at(provider), "batch")
        planned = stillhouse("plan", path, cwd=tmp_path)
        assert "in batches 0.5 in, 2 out" in planned.stdout
        assert "24 hours" in planned.stdout
        said = interrupted(path, provider)
        assert "1 batch goes on" in said
        assert "run the same command again" in said
        refused = stillhouse("collect", recipe(at(provider), "online"), cwd=tmp_path)
        assert refused.returncode == 2
        assert "--cancel-batches" in refused.stderr
        recipe(at(provider), "batch")
        wait_for(lambda: status(provider) == "completed")
        done = stillhouse("collect", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing new to ask" not in done.stderr
    (exchanges,) = (tmp_path / ".stillhouse" / "runs").glob("*/exchanges.parquet")
    assert pq.read_table(exchanges).num_rows == PROMPTS
    marker = json.loads((exchanges.parent / "collect.done.json").read_bytes())["result"]
    assert marker["attempts"] == {"answered": PROMPTS, "failed": 0, "unknown": 0}
    assert 0 < marker["cost"]["low"] == pytest.approx(marker["cost"]["high"], abs=1e-4)


def test_with_canaries_ctrl_c_leaves_the_batch_and_another_terminal_sees_its_money(
    recipe: Callable[..., Path], tmp_path: Path
):
    with serving(tmp_path / "provider", SLOW) as provider:
        path = recipe(at(provider), "batch")
        path.write_text(path.read_text() + "[collect.canary]\nprompts = 5\n")
        planned = json.loads(stillhouse("plan", path, "--json", cwd=tmp_path).stdout)
        assert planned["exchanges"]["canaries"] == 3 * 5
        command = [sys.executable, "-m", "stillhouse.cli", "collect", str(path)]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            progress = tmp_path / ".stillhouse" / "runs"
            wait_for(
                lambda: '"batches":1' in "".join(p.read_text() for p in progress.glob("*/progress.json"))
            )
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=30)[1]
        assert process.returncode == 130, said
        assert "1 batch goes on" in said
        seen = stillhouse("collect", "--watch", "t", cwd=tmp_path)
        assert re.search(r"30 in flight in 1 batch  US\$ 0\.\d+ \+ 0\.\d+ reserved", seen.stderr), seen.stderr
        assert "answers/s" not in seen.stderr
        wait_for(lambda: status(provider) == "completed")
        done = stillhouse("collect", path, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["collected"]
    assert (told["exchanges"], told["failed"], told["unknown"]) == (PROMPTS, 0, 0)
    assert 0 < told["cost"]["low"] == pytest.approx(told["cost"]["high"])
    assert told["answered_by"][0]["canary"]["rounds"] == 2 + 1 + 1  # each call begins with one


def test_cancelling_keeps_what_is_ready(recipe: Callable[..., Path], tmp_path: Path):
    with serving(tmp_path / "provider", SLOW) as provider:
        path = recipe(at(provider), "batch")
        interrupted(path, provider)
        wait_for(lambda: status(provider) == "completed")  # too late to cancel, early enough to keep
        done = stillhouse("collect", path, "--cancel-batches", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{PROMPTS} answers were ready" in done.stdout
        online = stillhouse("collect", recipe(at(provider), "online"), cwd=tmp_path)
    assert online.returncode == 0
    assert "nothing new to ask" in online.stderr


@pytest.mark.parametrize(
    ("teacher", "why"),
    [('model = "embedded:desk"', "served here"), ('model = "gpt-x"\nimported = true', "imported")],
)
def test_a_teacher_without_batches_is_refused_at_once(
    recipe: Callable[..., Path], tmp_path: Path, teacher: str, why: str
):
    done = stillhouse("plan", recipe(teacher, "batch"), cwd=tmp_path)
    assert done.returncode == 2
    assert why in done.stderr
    assert "online" in done.stderr


def test_the_way_of_asking_names_no_other_run(recipe: Callable[..., Path]):
    def loaded(mode: str) -> Recipe:
        return load_recipe(recipe('model = "m"\nendpoint = "http://127.0.0.1:9/v1"', mode))

    assert run_digest(loaded("online")) == run_digest(loaded("batch"))
    with pytest.raises(UsageError, match="mode"):
        loaded("slowly")


def test_the_server_without_a_batch_api_is_named(recipe: Callable[..., Path], tmp_path: Path, provider):
    server = provider()
    done = stillhouse("collect", recipe(f'model = "m"\nendpoint = "{server.url}"', "batch"), cwd=tmp_path)
    assert done.returncode == 2
    assert f"{server.url} has no batches" in done.stderr
    assert 'collect.mode = "online"' in done.stderr
    assert server.bodies == []
