"""The whole path with a real server, a real ledger and a real (tiny) student."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from aiohttp import web
from provider import Provider, answer, echo
from tiny import tiny_model

from stillhouse import pipeline, prices
from stillhouse.errors import EndpointError, GateRefused, UsageError
from stillhouse.ledger import Ledger, read_checkpoint
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.report import write_report
from stillhouse.workspace import Workspace

Serve = Callable[..., Provider]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def recipe(tmp_path: Path, student: Path) -> Callable[..., Recipe]:
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {
            "prompt": f"say {i % 7}",
            "id": f"p{i}",
            "family": f"f{i % 2}",
            "reference": str(i % 7),
            "scorer": "exact",
        }
        for i in range(60)
    ]
    unique = [{**row, "prompt": f"{row['prompt']} {i}"} for i, row in enumerate(rows)]
    prompts.write_text("\n".join(json.dumps(row) for row in unique) + "\n{broken\n")
    (tmp_path / "terms.txt").write_text("you may train on the answers")

    def make(url: str, **changes: object) -> Recipe:
        tree: dict = {
            "run": {"name": "t", "seed": 3},
            "teacher": {
                "model": "m",
                "endpoint": url,
                "provider": "somewhere",
                "terms": {
                    "document": str(tmp_path / "terms.txt"),
                    "read_on": "2026-01-02",
                    "declared_by": "a test",
                },
            },
            "prompts": {"source": str(prompts)},
            "collect": {"concurrency": 4, "max_tokens": 8},
            "student": {"init": str(student)},
            "train": {"epochs": 2, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.2, "resamples": 200},
        }
        for place, value in changes.items():
            table, key = place.split("__")
            tree.setdefault(table, {})[key] = value
        return parse_recipe(tree)

    return make


async def digit(body: dict, number: int) -> web.Response:
    return answer(body["messages"][-1]["content"].split()[1])


def weights(workspace: Workspace, finished: pipeline.Finished) -> bytes:
    return (finished.run.student / "model.safetensors").read_bytes()


def test_a_run_leaves_everything_it_promises_and_a_second_one_asks_nothing(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    server = provider(digit)
    first = pipeline.run(recipe(server.url), workspace)
    scores = first.evaluation
    assert scores is not None
    assert scores["teacher"]["score"] == 1.0
    assert scores["exchanges"]["sent"] == len(server.bodies) == 60
    for key in (
        "student_before",
        "student",
        "baseline",
        "retention",
        "flops_ratio",
        "parameters",
        "families",
    ):
        assert key in scores
    assert set(scores["seconds"]) == {"collect", "curate", "train", "evaluate", "total"}
    run = first.run
    released = {p.name for p in run.release.iterdir()}
    assert {
        "README.md",
        "LICENSE",
        "MANIFEST",
        "model.safetensors",
        "config.json",
    } <= released
    checkpoint = read_checkpoint((run.release / "provenance" / "checkpoint").read_bytes())
    before = weights(workspace, first)

    second = pipeline.run(recipe(server.url), workspace)
    assert len(server.bodies) == 60
    assert second.skipped == pipeline.STAGES
    assert second.evaluation["exchanges"]["sent"] == 0
    assert second.evaluation["exchanges"]["reused"] == 60
    assert weights(workspace, second) == before

    with Ledger.open(workspace) as ledger:
        done = ledger.verify((run.release / "provenance" / "checkpoint").read_bytes())
        assert done.ok
        assert done.anchored == checkpoint.size
        kinds = {leaf.kind for leaf in ledger.leaves()}
        assert kinds >= {
            "terms_snapshot",
            "authorisation",
            "decision",
            "exchange",
            "transform",
            "row",
            "train_run",
            "evaluation",
            "release",
        }
        decisions = {leaf.index for leaf in ledger.leaves("decision")}
        assert {leaf.body["decision"] for leaf in ledger.leaves("exchange")} <= decisions


def test_every_kept_row_leads_back_to_its_answer(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    finished = pipeline.run(recipe(provider(digit).url), workspace, stages=("collect", "curate"))
    samples = pq.read_table(finished.run.samples).to_pylist()
    with Ledger.open(workspace) as ledger:
        for sample in samples:
            contents = ledger.contents(sample["leaves"][0])
            reply = json.loads(contents["response"] or b"")
            assert reply["choices"][0]["message"]["content"] == sample["completion"]
            asked = json.loads(contents["request"] or b"")
            assert [m | {"extra": ""} for m in asked["messages"]] == sample["messages"]


def test_an_undeclared_teacher_is_refused_before_anything_is_sent(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    server = provider(digit)
    with pytest.raises(GateRefused) as caught:
        pipeline.run(recipe(server.url, teacher__terms=None), workspace)
    assert caught.value.exit_code == 3
    assert "[teacher.terms]" in caught.value.mend
    assert not server.bodies
    with Ledger.open(workspace) as ledger:
        assert [leaf.body["verdict"] for leaf in ledger.leaves("decision")] == ["refuse"]


def test_changed_settings_make_another_run_and_buy_nothing_twice(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    server = provider(digit)
    first = pipeline.run(recipe(server.url), workspace, stages=("collect",))
    second = pipeline.run(recipe(server.url, train__epochs=1), workspace, stages=("collect",))
    assert first.run.root != second.run.root
    patient = pipeline.run(recipe(server.url, collect__timeout=9.0), workspace, stages=("collect",))
    assert patient.run.root == first.run.root  # what changes no result changes no run
    asked = len(server.bodies)
    warmer = pipeline.run(recipe(server.url, collect__temperature=0.7), workspace, stages=("collect",))
    assert len(server.bodies) == 2 * asked
    assert warmer.run.root not in (first.run.root, second.run.root)


def test_a_stage_without_its_forerunner_says_which_is_missing(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    with pytest.raises(UsageError, match="the stage collect"):
        pipeline.run(recipe(provider(digit).url), workspace, stages=("curate",))


def test_prompts_that_fail_for_good_are_counted_not_hidden(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    async def some_bad(body: dict, number: int) -> web.Response:
        if body["messages"][-1]["content"].startswith("say 6"):
            return web.json_response({"error": {"message": "no"}}, status=400)
        return await digit(body, number)

    finished = pipeline.run(recipe(provider(some_bad).url, collect__max_failures=0.5), workspace)
    scores = finished.evaluation
    failed = sum(i % 7 == 6 for i in range(60))
    assert scores["exchanges"]["failed"] == failed
    marker = json.loads(finished.run.marker("collect").read_bytes())["result"]
    assert marker["exchanges"] + marker["failed"] == marker["prompts"]
    assert marker["broken_lines"] == 1


def test_prompts_that_failed_for_good_do_not_block_the_next_run(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    async def some_bad(body: dict, number: int) -> web.Response:
        if body["messages"][-1]["content"].startswith("say 6"):
            return web.json_response({"error": {"message": "no"}}, status=400)
        return await digit(body, number)

    settings = recipe(provider(some_bad).url)
    first = pipeline.run(settings, workspace, stages=("collect",))
    again = pipeline.run(settings, workspace)
    assert first.run == again.run
    marker = json.loads(again.run.marker("collect").read_bytes())["result"]
    answered = 60 - sum(i % 7 == 6 for i in range(60))
    assert again.evaluation["teacher"]["n"] + marker["exchanges"] == answered
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts(None).answered == answered


def test_a_rerun_still_knows_what_was_spent(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    settings = recipe(provider(digit).url, teacher__price={"input": 1.0, "output": 2.0})
    pipeline.run(settings, workspace, stages=("collect",))
    run = pipeline.run(settings, workspace, stages=("collect",)).run
    result = json.loads(run.marker("collect").read_bytes())["result"]
    bought = result["reused"]
    assert result["sent"] == 0
    assert result["prompt_tokens"] == 10 * bought
    assert result["cost"]["low"] == pytest.approx(bought * (10 * 1.0 + 5 * 2.0) / 1e6)


@pytest.fixture
def recorded_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A price list that knows the test's own server."""
    data = tmp_path / "prices.toml"
    data.write_text(
        """
[[page]]
hosts = ["127.0.0.1"]
source = "https://provider.example/pricing"
read_on = 2026-11-01
models = [{ ids = ["m"], input = 3.0, output = 4.0, up_to = 500, note = "of peak hours" }]
"""
    )
    monkeypatch.setattr(prices, "DATA", data)
    prices.recorded.cache_clear()
    yield
    prices.recorded.cache_clear()


@pytest.mark.usefixtures("recorded_here")
def test_answers_are_reckoned_by_the_recorded_price(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    settings = recipe(provider(digit).url, collect__max_cost=1.0)
    run = pipeline.run(settings, workspace, stages=("collect",)).run
    result = json.loads(run.marker("collect").read_bytes())["result"]
    assert result["cost"]["low"] == pytest.approx(result["answered"] * (10 * 3.0 + 5 * 4.0) / 1e6)
    assert result["price"]["source"] == "https://provider.example/pricing"
    assert result["price"]["read_on"] == "2026-11-01"
    shown = write_report(run).read_text()
    assert "US$ 3.0 in, 4.0 out, per million tokens (of peak hours), read on 2026-11-01 at https://" in shown
    own = recipe(provider(digit).url, teacher__price={"input": 1.0, "output": 1.0})
    marker = pipeline.run(own, workspace, stages=("collect",)).run.marker("collect")
    assert json.loads(marker.read_bytes())["result"]["price"]["source"] == "[teacher.price]"


@pytest.mark.usefixtures("recorded_here")
def test_a_prompt_too_long_for_the_known_price_is_refused_before_anybody_is_asked(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    server = provider(digit)
    for system, price in (("x" * 600, None), ("", None), ("x" * 600, {"input": 6.0, "output": 8.0})):
        settings = recipe(server.url, teacher__system=system, teacher__price=price, collect__max_cost=9.0)
        with Ledger.open(workspace) as ledger:
            if system and price is None:
                with pytest.raises(UsageError, match="the known price is for 500"):
                    pipeline.plan(settings, workspace, ledger)
            else:
                assert pipeline.plan(settings, workspace, ledger).prices[0][1] is not None
    assert not server.bodies


def test_nothing_answered_is_an_error_not_an_empty_run(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    async def nonsense(body: dict, number: int) -> web.Response:
        return web.Response(body=b"<html>", content_type="text/html")

    with pytest.raises(EndpointError):
        pipeline.run(recipe(provider(nonsense).url, collect__retries=0), workspace)


def test_two_processes_never_share_a_run(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    from stillhouse.recipe import run_digest
    from stillhouse.workspace import StorageError, locked

    settings = recipe(provider(echo).url)
    with (
        locked(workspace.run("t", run_digest(settings))),
        pytest.raises(StorageError, match="in use"),
    ):
        pipeline.run(settings, workspace)


RUNNER = """
import sys
import torch
torch.set_num_threads(int(sys.argv[5]))
from pathlib import Path
from stillhouse import pipeline
from stillhouse.recipe import Recipe
from stillhouse.workspace import Workspace

def watch(progress):
    if progress.stage == sys.argv[3] and progress.done >= int(sys.argv[4]):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

pipeline.run(Recipe.model_validate_json(Path(sys.argv[1]).read_text()), Workspace(Path(sys.argv[2])), watch)
"""


@pytest.mark.parametrize(("stage", "done"), [("collect", 20), ("train", 3), ("evaluate", 5)])
def test_killed_anywhere_and_run_again_equals_an_unbroken_run(
    provider: Serve,
    workspace: Workspace,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    stage: str,
    done: int,
):
    from stillhouse.workspace import init_workspace

    server = provider(digit)
    settings = recipe(server.url, train__checkpoint_seconds=0.001, train__epochs=60)
    unbroken = pipeline.run(settings, init_workspace(tmp_path / "other"))
    whole = len(server.bodies)

    (tmp_path / "recipe.json").write_text(settings.model_dump_json())
    (tmp_path / "runner.py").write_text(RUNNER)
    command = [
        sys.executable,
        tmp_path / "runner.py",
        tmp_path / "recipe.json",
        workspace.root,
        stage,
        str(done),
        str(torch.get_num_threads()),
    ]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = pipeline.run(settings, workspace)
    assert weights(workspace, resumed) == (unbroken.run.student / "model.safetensors").read_bytes()
    for part in ("teacher", "student", "student_before", "retention", "families", "agreement"):
        assert resumed.evaluation[part] == unbroken.evaluation[part]
    repeated = len(server.bodies) - 2 * whole
    with Ledger.open(workspace) as ledger:
        unknown = ledger.attempts(None).unknown
    assert 0 <= repeated <= unknown <= (0 if stage == "train" else 4)
