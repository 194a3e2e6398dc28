"""Grown prompts and student-driven rounds: the whole pipeline, a real server, a tiny student."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from provider import Provider, answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.collect.prompts import load_prompts
from stillhouse.errors import BudgetReached, UsageError
from stillhouse.ledger import Ledger
from stillhouse.pipeline.rounds import scored_families
from stillhouse.recipe import Recipe, load_recipe, parse_recipe
from stillhouse.workspace import RunFolder, Workspace

Serve = Callable[..., Provider]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def recipe(tmp_path: Path, student: Path) -> Callable[..., Recipe]:
    """The tiny student is right about nothing, and the teacher about all but the family `hard`."""
    rows = [
        {
            "prompt": f"say {i} to the {('quick', 'slow', 'hard')[i % 3]} one",
            "id": f"p{i}",
            "family": ("quick", "slow", "hard")[i % 3],
            "reference": "wrong" if i % 3 == 2 else str(i),
            "scorer": "exact",
        }
        for i in range(120)
        if i < 60 or i % 3 != 1  # beyond 60 there is nothing of the family `slow`
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
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
            "prompts": {"source": str(tmp_path / "prompts.jsonl"), "count": 60},
            "collect": {"concurrency": 4, "max_tokens": 8},
            "student": {"init": str(student)},
            "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.3, "resamples": 100},
        }
        for place, value in changes.items():
            table, key = place.split("__")
            tree.setdefault(table, {})[key] = value
        return parse_recipe(tree)

    return make


async def teach(body: dict, number: int) -> web.Response:
    asked = body["messages"][-1]["content"]
    if "JSON array" not in asked:
        return answer(asked.split()[1] if asked.startswith("say") else "yes")
    mark = body["seed"] * 1000 + len(asked)
    listed = [f"tell {mark + 37 * i} {'abcde'[i] * 4} whether item {mark * 7 + i} is his" for i in range(5)]
    return answer(json.dumps([*listed[:4], "say 3 to the quick one"]))


def marker(run: RunFolder, stage: str) -> dict:
    return json.loads(run.marker(stage).read_bytes())["result"]


def learnt(run: RunFolder) -> set[str]:
    return {row["id"] for row in pq.read_table(run.prompts).to_pylist() if row["split"] == "train"}


def prompts_of(run: RunFolder) -> list[dict]:
    return [row for row in pq.read_table(run.prompts).to_pylist() if row["split"] == "train"]


def test_grown_prompts_are_asked_and_recorded_like_any_others(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    server = provider(teach)
    settings = recipe(
        server.url,
        prompts__grow={"method": "self_instruct", "count": 12},
        teacher__price={"input": 1.0, "output": 2.0},
    )
    with Ledger.open(workspace) as ledger:
        before = pipeline.plan(settings, workspace, ledger)
    assert (before.grown, before.to_grow, before.cost.high) == (0, 12, None)
    assert not server.bodies

    run = pipeline.run(settings, workspace, stages=("collect", "curate")).run
    collected, sent = marker(run, "collect"), len(server.bodies)
    growth = collected["grow"]
    requests = sum("JSON array" in asked for asked in server.asked)
    assert growth["grown"] == 12
    assert growth["questions"] == requests
    assert growth["refused"]["repeats a test prompt"] > 0
    assert collected["sent"] == sent == collected["prompts"] + requests
    assert collected["cost"]["low"] == pytest.approx(sent * (10 * 1.0 + 5 * 2.0) / 1e6)

    rows = pq.read_table(run.grown).to_pylist()
    new = {row["id"]: row for row in rows if not row["reason"]}
    assert len(new) == 12
    assert len(rows) == 12 + sum(growth["refused"].values())
    assert new.keys() <= learnt(run)
    samples = {row["id"]: row for row in pq.read_table(run.samples).to_pylist()}
    assert {f"{name}#0" for name in new} <= samples.keys()
    with Ledger.open(workspace) as ledger:
        stages = Counter(leaf.body["stage"] for leaf in ledger.leaves("exchange"))
        assert stages == {"collect": sent - requests, "grow": requests}
        transform = ledger.leaf(growth["transform"])
        assert transform.body["stage"] == "grow"
        assert transform.body["digest"] == growth["digest"]
        named = [leaf for leaf in ledger.leaves("row") if leaf.body["transform"] == growth["transform"]]
        assert [leaf.body["exchanges"] for leaf in named] == [[row["leaf"]] for row in new.values()]
        size = ledger.size()

    after = pipeline.run(settings, workspace, stages=("collect", "curate"))
    assert after.skipped == ("collect", "curate")
    assert marker(after.run, "collect")["grow"] == growth
    assert len(server.bodies) == sent
    with Ledger.open(workspace) as ledger:
        assert ledger.size() == size
        planned = pipeline.plan(settings, workspace, ledger)
    assert (planned.grown, planned.to_grow, planned.cost.high) == (12, 0, pytest.approx(planned.cost.high))
    assert planned.answered == collected["prompts"]


def test_growing_keeps_the_cap(provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]):
    server = provider(teach)
    settings = recipe(
        server.url,
        prompts__grow={"method": "evolve", "count": 500, "max_tokens": 100},
        teacher__price={"input": 1.0, "output": 1000.0},
        collect__max_cost=0.5,
    )
    with pytest.raises(BudgetReached):
        pipeline.run(settings, workspace, stages=("collect",))
    with Ledger.open(workspace) as ledger:
        assert 0 < ledger.spent(next(workspace.runs.iterdir()).name).most <= 0.5


def focus_on(run: RunFolder, settings: Recipe, workspace: Workspace, count: int | None = None) -> Recipe:
    with Ledger.open(workspace) as ledger:
        return pipeline.focused(settings, workspace, ledger, run.root.name, count)


def test_a_round_adds_prompts_where_the_student_lost_and_trains_on_old_and_new(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe], tmp_path: Path
):
    server = provider(teach)
    settings = recipe(server.url)
    first = pipeline.run(settings, workspace)
    old, asked = prompts_of(first.run), len(server.bodies)

    focused = focus_on(first.run, settings, workspace, 18)
    focus = focused.prompts.focus
    assert focus is not None
    assert focus.run == first.run.root.name
    # Where the teacher itself scores nothing, nothing is lost; the other two are alike but for their size.
    assert focus.further.keys() == {"quick", "slow"}
    assert sum(focus.further.values()) == 18
    assert focus_on(first.run, settings, workspace, 18) == focused

    pipeline.run(focused, workspace, stages=("collect",))
    with Ledger.open(workspace) as ledger:  # as after an interruption: the round itself is now the newest run
        assert pipeline.focused(settings, workspace, ledger, "t", 18) == focused
    second = pipeline.run(focused, workspace)
    assert second.run.root != first.run.root
    new = [row for row in prompts_of(second.run) if row["id"] not in {row["id"] for row in old}]
    assert {row["id"] for row in old} <= learnt(second.run)
    assert Counter(row["family"] for row in new) == focus.further
    grown = {row["id"] for row in new if row["id"].startswith("grown-")}
    assert {row["family"] for row in new if row["id"] in grown} == {"slow"}
    assert all(int(row["id"][1:]) >= 60 for row in new if row["family"] == "quick")
    samples = {row["id"] for row in pq.read_table(second.run.samples).to_pylist()}
    assert {f"{row['id']}#0" for row in (*old, *new)} - samples == set()
    growing = sum("JSON array" in text for text in server.asked)
    assert len(server.bodies) == asked + len(new) + growing

    account = marker(second.run, "collect")["focus"]
    assert account["run"] == first.run.root.name
    assert account["decided_on"] == "evaluate.held_out"
    assert account["families"]["slow"] == {
        "further": focus.further["slow"],
        "source": 0,
        "grown": focus.further["slow"],
        "wanting": 0,
    }
    tested = first.evaluation["prompts"]["n"]
    assert account["tested"] == tested
    assert any("no claim about new prompts" in note for note in second.evaluation["notes"])
    with Ledger.open(workspace) as ledger:
        leaves = [leaf for leaf in ledger.leaves("transform") if leaf.body["stage"] == "focus"]
        assert [leaf.index for leaf in leaves] == [account["transform"]]
        body = leaves[0].body
        table = json.loads(ledger.contents(leaves[0].index)["families"] or b"")
        assert {of["family"]: of["further"] for of in table} == {**focus.further, "hard": 0}
        assert body["predictions"] == marker(first.run, "evaluate")["predictions"]

    # The run's own record makes the same run, without anybody being asked.
    asked = len(server.bodies)
    again = pipeline.run(load_recipe(second.run.recipe), workspace)
    assert again.run == second.run
    assert again.skipped == pipeline.STAGES
    assert len(server.bodies) == asked
    assert again.evaluation["notes"] == second.evaluation["notes"]

    # A further round keeps what the one before it added.
    third = pipeline.run(focus_on(second.run, settings, workspace, 5), workspace, stages=("collect",))
    assert learnt(second.run) < learnt(third.run)
    assert len(learnt(third.run)) == len(learnt(second.run)) + 5


def test_a_round_needs_scores_of_the_same_prompts(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    settings = recipe(provider(teach).url)
    run = pipeline.run(settings, workspace, stages=("collect",)).run
    with pytest.raises(UsageError, match="has no scores"):
        focus_on(run, settings, workspace)
    run = pipeline.run(settings, workspace).run
    for changed, name in (({"prompts__count": 50}, "prompts.count"), ({"run__seed": 4}, "run.seed")):
        with pytest.raises(UsageError, match="other prompts") as caught:
            focus_on(run, recipe("http://h/v1", **changed), workspace)
        assert name in caught.value.why
    # Another student, teacher or number of answers is no hindrance.
    assert focus_on(run, recipe("http://h/v1", train__epochs=2, collect__samples=2), workspace).prompts.focus


def test_what_is_not_to_be_had_is_said(provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]):
    async def cannot_invent(body: dict, number: int) -> web.Response:
        if "JSON array" in body["messages"][-1]["content"]:
            return answer("I'm sorry, I can't help with that.")
        return await teach(body, number)

    settings = recipe(
        provider(cannot_invent).url, prompts__focus={"run": "by hand", "further": {"slow": 4, "quick": 50}}
    )
    run = pipeline.run(settings, workspace, stages=("collect",)).run
    collected = marker(run, "collect")
    families = collected["focus"]["families"]
    assert families["slow"] == {"further": 4, "source": 0, "grown": 0, "wanting": 4}
    assert families["quick"]["source"] + families["quick"]["wanting"] == 50
    assert 0 < families["quick"]["source"] < 20  # some of the further ones are held out
    assert collected["grow"]["dry"]
    assert collected["focus"]["tested"] is None
    assert collected["focus"]["transform"] is None


def test_a_round_never_takes_a_test_prompt_and_leaves_the_test_as_it_was(
    provider: Serve, recipe: Callable[..., Recipe]
):
    plain = load_prompts(recipe("http://h/v1"))
    more = load_prompts(
        recipe("http://h/v1", prompts__focus={"run": "r", "further": {"quick": 99, "hard": 3}})
    )
    assert list(more.train) == list(plain.train)
    assert list(more.test) == list(plain.test)
    whole = more.whole([])
    assert list(whole.train) == [*plain.train, *more.further]
    assert list(whole.test) == list(plain.test)
    everything = load_prompts(recipe("http://h/v1", prompts__count=None))
    assert {prompt.id for prompt in more.further}.isdisjoint({prompt.id for prompt in everything.test})
    assert more.short == {"quick": 99 - sum(prompt.family == "quick" for prompt in more.further)}


def test_the_shipped_world_gives_further_prompts_of_a_family_without_end(recipe: Callable[..., Recipe]):
    desk = {"prompts__source": "embedded:desk", "prompts__count": 40, "evaluate__count": 20}
    plain = load_prompts(recipe("http://h/v1", **desk))
    focus = {"run": "r", "further": {"sort": 15, "policy": 2}}
    more = load_prompts(recipe("http://h/v1", **desk, prompts__focus=focus))
    assert list(more.train) == list(plain.train)
    assert Counter(prompt.family for prompt in more.further) == focus["further"]
    assert {prompt.id for prompt in more.further}.isdisjoint({prompt.id for prompt in plain.train})
    longer = load_prompts(
        recipe("http://h/v1", **desk, prompts__focus={"run": "r", "further": {"sort": 20, "policy": 2}})
    )
    assert set(more.further) < set(longer.further)
    unknown = load_prompts(
        recipe("http://h/v1", **desk, prompts__focus={"run": "r", "further": {"cooking": 2}})
    )
    assert unknown.short == {"cooking": 2}


def test_families_are_scored_on_what_both_were_scored_on(
    provider: Serve, workspace: Workspace, recipe: Callable[..., Recipe]
):
    from stillhouse.evaluate import Prediction

    def row(name: str, system: str, score: float | None, family: str = "a", group: str = "") -> Prediction:
        return Prediction(name, family, group, system, "x", score, "", None, None, "stop")

    rows = [
        row("1", "teacher", 1.0, group="g"),
        row("1", "student", 0.0, group="g"),
        row("2", "teacher", 1.0, group="g"),
        row("2", "student", 1.0, group="g"),
        row("3", "teacher", None),
        row("3", "student", 0.0),
        row("4", "teacher", 1.0, "b"),
        row("4", "baseline", 0.0, "b"),
    ]
    (only,) = scored_families(rows)
    assert (only.family, only.prompts, only.groups, only.teacher, only.student) == ("a", 2, 1, 1.0, 0.5)
