"""The command as a person meets it: a real process, its two streams and its exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from provider import Provider, answer, echo
from tiny import tiny_model

from stillhouse.models import embedded

Serve = Callable[..., Provider]
Done = subprocess.CompletedProcess[str]


def stillhouse(*arguments: object, cwd: Path, stdin: str = "", **environment: str) -> Done:
    command = [sys.executable, "-m", "stillhouse.cli", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, env=env, check=False)


def refused(done: Done, code: int, *words: str) -> None:
    """Exit code as promised, three lines for a person, no traceback."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "cause:", "hint:"))]
    assert [line.split(":")[0] for line in lines] == ["error", "cause", "hint"], done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def recipe(tmp_path: Path, student: Path) -> Callable[..., Path]:
    rows = [{"prompt": f"say {i}", "reference": str(i), "scorer": "exact"} for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "terms.txt").write_text("you may")

    def write(url: str, extra: str = "", teacher: str = "", init: Path | str = student) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(
            f"""
[run]
name = "t"
[teacher]
model = "m"
endpoint = "{url}"
terms = {{ document = "terms.txt", read_on = 2026-01-02, declared_by = "a test" }}
{teacher}
[prompts]
source = "prompts.jsonl"
[student]
init = "{init}"
[train]
epochs = 1
dtype = "float32"
[evaluate]
held_out = 0.3
resamples = 100
{extra}
"""
        )
        return path

    return write


def test_a_whole_run_from_the_command_line(provider: Serve, recipe: Callable[..., Path], tmp_path: Path):
    server = provider(echo)
    path = recipe(server.url)
    planned = stillhouse("plan", path, "--json", cwd=tmp_path)
    assert json.loads(planned.stdout)["exchanges"] == {
        "needed": 30,
        "in_ledger": 0,
        "to_send": 30,
        "canaries": 0,
        "to_read_at_most": 0,
        "to_judge_at_most": 0,
    }
    assert json.loads(planned.stdout)["cost_usd"] == {"low": None, "expected": None, "high": None}
    assert not server.bodies

    done = stillhouse("run", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "student keeps" in done.stdout
    assert "report" in done.stdout
    assert "collect" in done.stderr
    assert "\x1b" not in done.stderr  # no control codes into a file
    again = stillhouse("run", path, "--json", cwd=tmp_path)
    result = json.loads(again.stdout)
    assert result["evaluation"]["exchanges"]["sent"] == 0
    assert Path(result["report"]).is_file()
    assert len(server.bodies) == 30

    shown = json.loads(stillhouse("ledger", "show", "--json", cwd=tmp_path).stdout)
    assert shown["kinds"]["exchange"] == 30
    verified = stillhouse("ledger", "verify", cwd=tmp_path)
    assert verified.returncode == 0
    assert "unanchored: internally consistent only" in verified.stdout
    kept = Path(result["folder"]) / "release" / "provenance" / "checkpoint"
    anchored = stillhouse("ledger", "verify", "--against", kept, cwd=tmp_path)
    assert "anchored at size" in anchored.stdout
    assert stillhouse("ledger", "export", tmp_path / "out", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out").is_dir()
    assert stillhouse("report", "t", cwd=tmp_path).stdout.strip().endswith("report.html")
    talked = stillhouse("chat", "t", "say 3", "--json", cwd=tmp_path)
    assert json.loads(talked.stdout)["teacher"] == "answer to say 3"


def test_a_round_where_the_student_lost_most_from_the_command_line(
    provider: Serve, recipe: Callable[..., Path], tmp_path: Path
):
    async def right(body: dict, number: int) -> web.Response:
        asked = body["messages"][-1]["content"]
        if "JSON array" not in asked:
            return answer(asked.split()[-1])
        return answer(
            json.dumps([f"tell {place * 17} of {body['seed'] * 31} and no more" for place in range(5)])
        )

    server = provider(right)
    path = recipe(server.url)
    refused(stillhouse("collect", path, "--focus", "t", cwd=tmp_path), 2, "no run named 't'")
    first = stillhouse("run", path, "--json", cwd=tmp_path)
    folder = Path(json.loads(first.stdout)["folder"])
    done = stillhouse("collect", path, "--focus", "t", "--count", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"after {folder.name}" in done.stderr
    assert "4 more of default are not there and can only be grown" in done.stderr
    assert "4 further of default: 0 from the source, 4 grown" in done.stderr
    assert "claim nothing by their scores" in done.stderr
    assert "(evaluate.held_out)" in done.stderr
    asked = len(server.bodies)

    # Both ways on that it names make the same run: its own record, and the table for one's own recipe.
    following = done.stdout.splitlines()[-1].split()[-1]
    assert Path(following).parent.name != folder.name
    planned = json.loads(stillhouse("plan", following, "--json", cwd=tmp_path).stdout)
    assert planned["folder"] == str(Path(following).parent)
    assert planned["prompts"]["grown"] == 4
    table = done.stderr[done.stderr.index("[prompts.focus]") :]
    path.write_text(f"{path.read_text()}\n{table}")
    result = json.loads(stillhouse("run", path, "--json", cwd=tmp_path).stdout)
    assert result["folder"] == planned["folder"]
    assert "collect" in result["unchanged"]
    assert len(server.bodies) == asked
    assert result["evaluation"]["notes"]


def test_a_pilot_is_kept_and_its_interval_holds_the_bill(
    provider: Serve, recipe: Callable[..., Path], tmp_path: Path
):
    async def varied(body: dict, number: int) -> web.Response:
        index = int(body["messages"][-1]["content"].split()[-1])
        return answer("x", prompt_tokens=20, completion_tokens=5 + index * 7 % 11)

    server = provider(varied)
    path = recipe(server.url, "", "price = { input = 10.0, output = 100.0 }")
    first = json.loads(stillhouse("plan", path, "--json", cwd=tmp_path).stdout)
    assert first["cost_usd"]["low"] is None
    planned = json.loads(stillhouse("plan", path, "--pilot", 12, "--json", cwd=tmp_path).stdout)
    assert len(server.bodies) == 12
    assert planned["exchanges"] == {
        "needed": 30,
        "in_ledger": 12,
        "to_send": 18,
        "canaries": 0,
        "to_read_at_most": 0,
        "to_judge_at_most": 0,
    }
    cost = planned["cost_usd"]
    bill = sum(20 * 10 + (5 + i * 7 % 11) * 100 for i in range(30)) / 1e6
    sent = sum(20 * 10 + (5 + int(text.split()[-1]) * 7 % 11) * 100 for text in server.asked[:12]) / 1e6
    assert 0 < cost["low"] <= bill - sent <= cost["high"] < first["cost_usd"]["high"]
    assert cost["low"] < cost["expected"] < cost["high"]
    assert stillhouse("collect", path, cwd=tmp_path).returncode == 0
    asked = server.asked
    assert len(asked) == len(set(asked))


def test_a_plan_names_the_price_its_page_and_its_day(recipe: Callable[..., Path], tmp_path: Path):
    path = recipe("https://api.mistral.ai/v1", "[collect]\nmax_cost = 1.0\nmax_tokens = 100")
    said = path.read_text().replace('model = "m"', 'model = "mistral-medium-3-5"')
    path.write_text(said.replace('declared_by = "a test"', 'declared_by = "a test", about = ["mistral-api"]'))
    planned = json.loads(stillhouse("plan", path, "--json", cwd=tmp_path).stdout)
    price = planned["price"]
    assert (price["input"], price["output"], price["read_on"]) == (1.5, 7.5, "2026-09-07")
    assert price["batch"] == {"input": 0.75, "output": 3.75}
    assert price["days_old"] > 0
    assert 30 * 100 * 7.5e-6 < planned["cost_usd"]["high"] < 0.05
    text = stillhouse("plan", path, cwd=tmp_path).stdout
    assert "price      US$ 1.5 in, 7.5 out, per million tokens\n" in text
    assert "read on 2026-09-07 at https://mistral.ai/pricing/api\n" in text
    path = recipe("https://api.example.com/v1", "", "price = { input = 3.0, output = 5.0 }")
    assert "price      US$ 3 in, 5 out, per million tokens, by the recipe\n" in (
        stillhouse("plan", path, cwd=tmp_path).stdout
    )


def test_a_plan_says_what_margin_its_test_prompts_can_decide(recipe: Callable[..., Path], tmp_path: Path):
    path = recipe("http://127.0.0.1:1/v1")
    text = stillhouse("plan", path, cwd=tmp_path).stdout
    assert "test prompts in " in text
    assert "no margin is declared: set `evaluate.margin`" in text
    path.write_text(path.read_text().replace("[evaluate]", "[evaluate]\nmargin = 0.05"))
    text = stillhouse("plan", path, cwd=tmp_path).stdout
    assert "declared: 5 %, for which 412 prompts are needed" in text
    planned = json.loads(stillhouse("plan", path, "--json", cwd=tmp_path).stdout)["verdict"]
    assert (planned["margin"], planned["prompts_needed"]) == (0.05, 412)
    assert planned["decidable_margin"] > 0.05
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {i}"}) for i in range(30)))
    text = stillhouse("plan", path, cwd=tmp_path).stdout
    assert "verdict    none: 0 test prompts can be scored" in text


def test_a_cap_needs_a_price_that_is_known(recipe: Callable[..., Path], tmp_path: Path):
    path = recipe("https://api.example.com/v1", "[collect]\nmax_cost = 1.0")
    refused(stillhouse("plan", path, cwd=tmp_path), 2, "max_cost", "[teacher.price]")
    path.write_text(path.read_text().replace("max_cost = 1.0", ""))
    assert "price      unknown" in stillhouse("plan", path, cwd=tmp_path).stdout


def test_each_stage_alone_names_the_next(provider: Serve, recipe: Callable[..., Path], tmp_path: Path):
    path = recipe(provider(echo).url)
    for stage, following in (("collect", "curate"), ("curate", "train"), ("train", "evaluate")):
        done = stillhouse(stage, path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"stillhouse {following} {path}" in done.stdout


def test_the_gate_refuses_with_3_and_says_what_would_lift_it(recipe: Callable[..., Path], tmp_path: Path):
    path = recipe("http://127.0.0.1:9/v1")
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("terms")))
    refused(stillhouse("run", path, cwd=tmp_path), 3, "[teacher.terms]")


def test_the_budget_stops_with_4(provider: Serve, recipe: Callable[..., Path], tmp_path: Path):
    server = provider(echo)
    path = recipe(
        server.url, "[collect]\nmax_cost = 0.004\nconcurrency = 2", "price = { input = 10.0, output = 10.0 }"
    )
    refused(stillhouse("collect", path, cwd=tmp_path), 4, "max_cost")
    assert 0 < len(server.bodies) < 30


def test_ctrl_c_stops_with_130_and_says_how_to_go_on(
    provider: Serve, recipe: Callable[..., Path], tmp_path: Path
):
    async def slow(body: dict, number: int) -> web.Response:
        import asyncio

        await asyncio.sleep(0.2)
        return await echo(body, number)

    server = provider(slow)
    path = recipe(server.url, "[collect]\nconcurrency = 1")
    command = [sys.executable, "-m", "stillhouse.cli", "collect", str(path)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not server.bodies and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "run the same command again" in err
    asked = len(server.bodies)
    assert stillhouse("collect", path, cwd=tmp_path).returncode == 0
    assert len(server.bodies) == len(set(server.asked)) > asked  # nothing was asked twice


@pytest.mark.parametrize(
    ("status", "word"), [(401, "auth"), (404, "not_found"), (500, "server"), (200, "malformed")]
)
def test_a_broken_server_gets_a_clear_error(
    provider: Serve, recipe: Callable[..., Path], tmp_path: Path, status: int, word: str
):
    async def broken(body: dict, number: int) -> web.Response:
        return web.Response(status=status, text='{"error": {"message": "no"', content_type="application/json")

    path = recipe(provider(broken).url, "[collect]\nretries = 0")
    refused(stillhouse("run", path, cwd=tmp_path), 1, word)
    assert stillhouse("ledger", "verify", cwd=tmp_path).returncode == 0


def test_an_unreachable_endpoint(recipe: Callable[..., Path], tmp_path: Path):
    path = recipe("http://127.0.0.1:9/v1")
    refused(stillhouse("run", path, cwd=tmp_path), 1, "unreachable", "http://127.0.0.1:9/v1")
    looked = stillhouse("doctor", path, cwd=tmp_path)
    assert looked.returncode == 1
    assert "fail  endpoint" in looked.stdout


def test_a_recipe_with_a_typo(recipe: Callable[..., Path], tmp_path: Path):
    path = recipe("http://127.0.0.1:9/v1", "[curate]\nduplicate = true")
    refused(stillhouse("check", path, cwd=tmp_path), 2, "curate.duplicate", "did you mean `duplicates`?")


def test_prompt_files_that_are_broken_or_empty(provider: Serve, recipe: Callable[..., Path], tmp_path: Path):
    path = recipe(provider(echo).url)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text() + "\n{broken\n")
    done = stillhouse("check", path, cwd=tmp_path)
    assert done.returncode == 0
    assert "prompts.jsonl:31: not a JSON line" in done.stdout
    prompts.write_text("")
    refused(stillhouse("check", path, cwd=tmp_path), 2, "no usable prompt")


def test_a_student_that_is_no_model_is_said_before_anything_is_paid(
    provider: Serve, recipe: Callable[..., Path], tmp_path: Path
):
    (tmp_path / "empty").mkdir()
    server = provider(echo)
    refused(stillhouse("run", recipe(server.url, init=tmp_path / "empty"), cwd=tmp_path), 1, "empty")
    assert not server.bodies


def test_a_key_that_is_not_set(recipe: Callable[..., Path], tmp_path: Path):
    path = recipe("http://127.0.0.1:9/v1", teacher='key_env = "NO_SUCH_KEY"')
    refused(stillhouse("check", path, cwd=tmp_path), 2, "NO_SUCH_KEY")
    several = '[[teachers]]\nmodel = "n"\nendpoint = "http://127.0.0.1:9/v1"\nkey_env = "NOR_THIS_ONE"'
    path = recipe("http://127.0.0.1:9/v1", several)
    refused(stillhouse("check", path, cwd=tmp_path), 2, "NOR_THIS_ONE")
    assert "NOR_THIS_ONE is not set" in stillhouse("doctor", path, cwd=tmp_path).stdout


def test_the_key_is_sent_and_never_stored(provider: Serve, recipe: Callable[..., Path], tmp_path: Path):
    secret = "sk-" + "7f3a9c" * 6
    path = recipe(provider(echo).url, teacher='key_env = "A_KEY"')
    done = stillhouse("run", path, cwd=tmp_path, A_KEY=secret)
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout + done.stderr
    for file in (tmp_path / ".stillhouse").rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file


def test_a_typo_in_a_command_is_never_taken_for_something_else(tmp_path: Path):
    refused(stillhouse("rnu", "x.toml", cwd=tmp_path), 2)
    refused(stillhouse("run", "--dry", "x.toml", cwd=tmp_path), 2)
    refused(stillhouse("run", "missing.toml", cwd=tmp_path), 2, "no recipe")
    refused(stillhouse("chat", "nothing", "hello", cwd=tmp_path), 2, "stillhouse init")


def test_errors_as_json(tmp_path: Path):
    done = stillhouse("plan", "missing.toml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert set(json.loads(done.stdout)["error"]) == {"what", "why", "mend"}


def test_init_makes_private_keys_and_a_recipe_that_checks(tmp_path: Path):
    done = stillhouse("init", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for key in (tmp_path / ".stillhouse" / "keys").iterdir():
        assert key.suffix == ".pub" or key.stat().st_mode & 0o077 == 0
    if (Path(embedded.__file__).parent / "desk" / "config.json").is_file():
        assert stillhouse("check", "recipe.toml", cwd=tmp_path).returncode == 0
    assert stillhouse("doctor", cwd=tmp_path).returncode == 0
    before = (tmp_path / ".stillhouse" / "keys" / "signing.pem").read_bytes()
    assert stillhouse("init", cwd=tmp_path).returncode == 0
    assert (tmp_path / ".stillhouse" / "keys" / "signing.pem").read_bytes() == before


def test_a_full_disk_loses_nothing(provider: Serve, recipe: Callable[..., Path], tmp_path: Path):
    """A small file system fills up while answers come in; what was committed stays, and room mends it."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:

        async def wordy(body: dict, number: int) -> web.Response:
            return answer(os.urandom(60_000).hex())

        path = recipe(provider(wordy).url)
        for name in ("prompts.jsonl", "terms.txt", "recipe.toml"):
            shutil.copy(tmp_path / name, small)
        refused(stillhouse("collect", "recipe.toml", cwd=small), 1, "space")
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        kept = json.loads(stillhouse("ledger", "show", "--json", cwd=small).stdout)["kinds"]["exchange"]
        assert 0 < kept < 30
        planned = json.loads(stillhouse("plan", "recipe.toml", "--json", cwd=small).stdout)
        assert planned["exchanges"]["in_ledger"] == kept
        assert stillhouse("collect", "recipe.toml", cwd=small).returncode == 0
        assert stillhouse("ledger", "verify", cwd=small).returncode == 0
        assert path.exists()
    finally:
        subprocess.run(["umount", "-l", small], check=False)


def test_a_read_only_folder(provider: Serve, recipe: Callable[..., Path], tmp_path: Path):
    locked = tmp_path / "locked"
    locked.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,ro", "tmpfs", locked], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a read-only file system")
    try:
        refused(stillhouse("run", recipe(provider(echo).url), cwd=locked), 1, "read-only")
    finally:
        subprocess.run(["umount", "-l", locked], check=False)


def test_answers_from_elsewhere_are_imported_and_used(recipe: Callable[..., Path], tmp_path: Path):
    rows = [
        {"prompt": f"say {i}", "answer": str(i), "reference": str(i), "scorer": "exact"} for i in range(40)
    ]
    (tmp_path / "have.jsonl").write_text(
        "\n".join(json.dumps(row) for row in rows) + '\n{"prompt": "no answer"}\n'
    )
    path = recipe("http://127.0.0.1:9/v1", teacher="imported = true")
    path.write_text(path.read_text().replace("prompts.jsonl", "have.jsonl"))
    assert stillhouse("init", cwd=tmp_path).returncode == 0
    terms = ["--model", "m", "--terms", "terms.txt", "--read-on", "2026-01-02", "--declared-by", "a test"]
    done = stillhouse("import", "have.jsonl", *terms, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {k: json.loads(done.stdout)[k] for k in ("imported", "known", "broken")} == {
        "imported": 40,
        "known": 0,
        "broken": 1,
    }
    again = json.loads(stillhouse("import", "have.jsonl", *terms, "--json", cwd=tmp_path).stdout)
    assert (again["imported"], again["known"]) == (0, 40)
    path.write_text(path.read_text().replace('endpoint = "http://127.0.0.1:9/v1"\n', ""))
    ran = stillhouse("run", path, "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    scores = json.loads(ran.stdout)["evaluation"]
    assert scores["teacher"]["score"] == 1.0
    assert scores["exchanges"]["sent"] == 0
    assert scores["exchanges"]["failed"] == 1  # the row without an answer
