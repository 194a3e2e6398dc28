"""Who is watched, by which questions, and what is left of it in the files of a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from mock_provider import Settings, entries, read_journal, serving
from provider import Provider, answer, echo

from stillhouse import pipeline
from stillhouse.ask.drift import ALPHA
from stillhouse.collect import asked_of, canaries_of
from stillhouse.errors import EndpointError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.recipe import Recipe, parse_recipe, run_digest
from stillhouse.records import Message, Prompt
from stillhouse.report import write_report
from stillhouse.workspace import RunFolder, Workspace

Serve = Callable[..., Provider]
ELSEWHERE = "https://api.example.org/v1"


def recipe(folder: Path, url: str, **canary: object) -> Recipe:
    rows = [{"prompt": f"say {i}", "id": f"p{i}"} for i in range(60)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(folder / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    return parse_recipe(
        {
            "run": {"name": "t", "seed": 3},
            "teacher": {"model": "m", "endpoint": url, "provider": "somewhere", "terms": terms},
            "prompts": {"source": str(folder / "prompts.jsonl")},
            "collect": {"concurrency": 4, "canary": canary},
            "student": {"init": "config"},
            "evaluate": {"held_out": 0.0},
        }
    )


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", (Message("user", f"say {i}"),)) for i in range(count)]


def watched(settings: Recipe, count: int) -> list[int]:
    found = canaries_of(settings, asked_of(settings, prompts(count)))
    return [0 if canary is None else len(canary.questions) for canary in found]


def collect(settings: Recipe, workspace: Workspace) -> RunFolder:
    return pipeline.run(settings, workspace, stages=("collect",)).run


def result(run: RunFolder) -> dict:
    return json.loads(run.marker("collect").read_bytes())["result"]


def test_somebody_elses_server_is_watched_from_a_thousand_answers_on(tmp_path: Path):
    assert watched(recipe(tmp_path, ELSEWHERE), 1000) == [8]
    assert watched(recipe(tmp_path, ELSEWHERE), 999) == [0]
    assert watched(recipe(tmp_path, ELSEWHERE, prompts=0), 1000) == [0]
    assert watched(recipe(tmp_path, "http://10.0.0.7:8000/v1"), 1000) == [0]
    assert watched(recipe(tmp_path, "http://10.0.0.7:8000/v1", prompts=5), 20) == [5]
    assert watched(recipe(tmp_path, ELSEWHERE, prompts=50), 20) == [20]
    there = recipe(tmp_path, ELSEWHERE)
    here = there.teacher.model_copy(update={"endpoint": None})
    assert watched(there.model_copy(update={"teacher": here}), 1000) == [0]
    in_batches = there.collect.model_copy(update={"mode": "batch"})
    assert watched(there.model_copy(update={"collect": in_batches}), 1000) == [8]


def test_several_teachers_share_the_chance_of_a_false_alarm(tmp_path: Path):
    one = recipe(tmp_path, ELSEWHERE)
    both = one.model_copy(update={"teachers": [one.teacher.model_copy(update={"model": "n"})]})
    found = canaries_of(both, asked_of(both, prompts(4000)))
    assert [canary and canary.alpha for canary in found] == [ALPHA / 2, ALPHA / 2]


def test_the_canaries_are_drawn_by_seed_and_stay_when_the_file_grows(tmp_path: Path):
    settings = recipe(tmp_path, ELSEWHERE)

    def drawn(count: int, seed: int = 3) -> list[str]:
        seeded = settings.model_copy(update={"run": settings.run.model_copy(update={"seed": seed})})
        (canary,) = canaries_of(seeded, asked_of(seeded, prompts(count)))
        assert canary is not None
        return [question.prompt_id for question in canary.questions]

    assert drawn(10_000) == drawn(10_000)
    assert drawn(10_000) != drawn(10_000, seed=4)
    assert drawn(10_000) == drawn(20_000)
    assert len(set(drawn(2000))) == 8


def test_how_a_teacher_is_watched_changes_no_run(tmp_path: Path):
    plain = run_digest(recipe(tmp_path, ELSEWHERE))
    assert plain == run_digest(recipe(tmp_path, ELSEWHERE, prompts=4, every=7, action="stop"))


def test_a_wrong_key_names_the_right_one(tmp_path: Path):
    with pytest.raises(UsageError, match=r"collect\.canary\.prompt`") as caught:
        recipe(tmp_path, ELSEWHERE, prompt=4)
    assert "`prompts`" in caught.value.mend


def test_a_run_counts_its_canaries_and_learns_from_none(
    provider: Serve, workspace: Workspace, tmp_path: Path
):
    server = provider(echo)
    settings = recipe(tmp_path, server.url, prompts=6, every=20)
    with Ledger.open(workspace) as ledger:
        planned = pipeline.plan(settings, workspace, ledger)
    run = collect(settings, workspace)
    assert planned.canaries == len(server.bodies) - 60 == 5 * 6
    found = result(run)
    assert (found["exchanges"], found["sent"], found["attempts"]["answered"]) == (60, 90, 90)
    ids = pq.read_table(run.exchanges).column("prompt_id").to_pylist()
    assert ids == [f"p{i}" for i in range(60)]
    (who,) = found["answered_by"]
    assert who["models"] == {"m-1": 60}
    assert {name: who["canary"][name] for name in ("rounds", "questions", "change", "older")} == {
        "rounds": 5,
        "questions": 6,
        "change": None,
        "older": 0,
    }
    page = write_report(run).read_text()
    assert "no change seen in 5 rounds of 6 canary questions" in page
    assert "m-1 (60)" in page
    with Ledger.open(workspace) as ledger:
        assert pipeline.plan(settings, workspace, ledger).canaries == 0
    assert collect(settings, workspace) == run
    assert len(server.bodies) == 90
    assert result(run)["answered_by"] == [who]


def test_in_batches_a_plan_the_run_and_its_page_agree_on_the_canaries(workspace: Workspace, tmp_path: Path):
    with serving(tmp_path / "provider", Settings(latency=0.001, answer_bytes=40, batch_seconds=0.1)) as there:
        settings = recipe(tmp_path, there.url, prompts=6)
        settings = settings.model_copy(
            update={"collect": settings.collect.model_copy(update={"mode": "batch"})}
        )
        with Ledger.open(workspace) as ledger:
            planned = pipeline.plan(settings, workspace, ledger)
        assert (planned.to_send, planned.canaries) == (60, 3 * 6)
        run = collect(settings, workspace)
        asked = entries(read_journal(there.journal)[0])
        assert len(asked) == 60 + planned.canaries
        found = result(run)
        assert (found["exchanges"], found["sent"], found["attempts"]["answered"]) == (60, 78, 78)
        (who,) = found["answered_by"]
        assert (who["canary"]["rounds"], who["canary"]["change"], who["canary"]["older"]) == (3, None, 0)
        assert "no change seen in 3 rounds of 6 canary questions" in write_report(run).read_text()
        with Ledger.open(workspace) as ledger:
            assert pipeline.plan(settings, workspace, ledger).canaries == 0
        collect(settings, workspace)
        assert entries(read_journal(there.journal)[0]) == asked


def test_a_change_is_told_after_the_run_and_on_its_page(
    provider: Serve, workspace: Workspace, tmp_path: Path
):
    async def swapped(body: dict, number: int) -> web.Response:
        text = body["messages"][-1]["content"]
        return answer(f"answer to {text}") if number < 40 else answer(f"no idea about {text}", model="m-2")

    server = provider(swapped)
    stopping = recipe(tmp_path, server.url, prompts=6, every=20, action="stop")
    with pytest.raises(EndpointError, match="changed while it was asked"):
        collect(stopping, workspace)
    done = pipeline.run(recipe(tmp_path, server.url, prompts=6, every=20), workspace, stages=("collect",))
    assert done.notices == ("the teacher m changed while it was asked: answers by m-2 instead of m-1",)
    (who,) = result(done.run)["answered_by"]
    assert set(who["models"]) == {"m-1", "m-2"}
    assert sum(who["models"].values()) == 60
    page = write_report(done.run).read_text()
    assert "teacher changed during the run: answers by m-2 instead of m-1" in page
    with Ledger.open(workspace) as ledger:
        assert [leaf.body["sign"] for leaf in ledger.leaves("correction")] == ["model id"]


def test_answers_from_before_the_watch_are_counted(provider: Serve, workspace: Workspace, tmp_path: Path):
    server = provider(echo)
    collect(recipe(tmp_path, server.url), workspace)
    run = collect(recipe(tmp_path, server.url, prompts=6), workspace)
    (who,) = result(run)["answered_by"]
    assert who["canary"]["rounds"] == 0  # nothing was left to ask, so nothing was asked to watch it
    assert len(server.bodies) == 60
