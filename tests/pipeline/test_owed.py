"""What a teacher's terms ask of the student: told by the plan, met in files, checked by a stranger."""

import json
import shutil

import pytest
from maker import row_toml
from provider import answer
from resealing import seal_again
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.audit import verify
from stillhouse.cli.show import plan_text
from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

OWED = """
[[row.obligation]]
kind = "{kind}"
{texts}
"""


async def digit(body, number):
    return answer(body["messages"][-1]["content"].split()[1])


@pytest.fixture
def make(tmp_path, workspace, provider):
    """A recipe whose teachers' rows ask for (kind, text) each."""
    rows = [{"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
            for i in range(40)]  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    student = tiny_model(tmp_path / "student")
    url = provider(digit).url

    def made(owed, second=(), **release):
        workspace.terms.mkdir(exist_ok=True)
        text = ""
        for model, asks in (("m", owed), ("n", second)):
            text += row_toml(
                key=f"maker-{model}",
                models=[model],
                hosts=["127.0.0.1"],
                verdict="allow_with_obligations",
                clause="One may train, and says so.",
            )
            for kind, words in asks:
                text += OWED.format(kind=kind, texts=f"texts = {json.dumps(words)}" if words else "")
        (workspace.terms / "maker.toml").write_text(text)
        tree = {
            "run": {"name": "t", "seed": 3},
            "teacher": {"model": "m", "endpoint": url, "provider": "somewhere"},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"concurrency": 4, "max_tokens": 8},
            "student": {"init": str(student)},
            "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.2, "resamples": 50},
            "release": release,
        }
        if second:
            tree["teachers"] = [{"model": "n", "endpoint": url, "provider": "elsewhere"}]
        return parse_recipe(tree)

    return made


def test_what_is_owed_is_planned_met_and_verified(make, workspace):
    owed = [("name_prefix", ["Maker"]), ("credit", ["Built with Maker"]), ("notice", ["Maker (c)"]),
            ("label_ai", []), ("notify", ["Maker Inc."])]  # fmt: skip
    recipe = make(owed)
    with Ledger.open(workspace) as ledger:
        plan = pipeline.plan(recipe, workspace, ledger)
    (unknown,) = plan.unknown
    assert "the base student" in unknown
    assert f"unknown    {unknown}" in plan_text(recipe, plan)
    unmet = plan.unmet
    assert len(unmet) == 2
    assert any("'Maker-t'" in line for line in unmet)
    with pytest.raises(GateRefused, match="does not meet what it owes") as caught:
        pipeline.run(recipe, workspace)
    assert "release.confirmed" in caught.value.why
    done = pipeline.run(make(owed, name="Maker-t", licence="MIT", confirmed=["notify"]), workspace)
    assert done.skipped == pipeline.STAGES[:-1]  # what was trained is not trained again
    release = done.run.release
    assert "Built with Maker" in (release / "ATTRIBUTION.md").read_text()
    assert "Built with Maker" in (release / "README.md").read_text()
    assert (release / "NOTICE").read_text() == "Maker (c)\n"
    assert "MIT" in (release / "LICENSE").read_text()
    found = verify(release)
    assert found.ok, [check for check in found.checks if not check.ok]
    assert {c.name: c.detail for c in found.checks}["obligations"].startswith("5 are owed")


def test_a_copy_of_the_licence_goes_along_and_its_loss_is_seen(make, workspace, tmp_path):
    (tmp_path / "licence.txt").write_text("Maker Terms, whole")
    recipe = make([("licence_copy", ["Maker Terms"])])
    teacher = recipe.teacher.model_copy(update={"licence": str(tmp_path / "licence.txt")})
    done = pipeline.run(recipe.model_copy(update={"teacher": teacher}), workspace)
    (copy,) = (done.run.release / "LICENSES").iterdir()
    assert copy.read_text() == "Maker Terms, whole"
    assert verify(done.run.release).ok
    copy.unlink()
    found = {check.name: check for check in verify(done.run.release).checks}
    assert "asks for a copy" in found["obligations"].detail


def test_a_notice_that_the_maker_takes_out_again_is_missed(make, workspace, tmp_path):
    done = pipeline.run(make([("notice", ["Maker (c)"])]), workspace)
    folder = shutil.copytree(done.run.release, tmp_path / "copy")
    (folder / "NOTICE").unlink()
    seal_again(folder, workspace, "t")
    found = {check.name: check for check in verify(folder).checks}
    assert "NOTICE lacks 'Maker (c)'" in found["obligations"].detail
    assert not found["release"].ok


def test_two_teachers_that_no_release_can_serve_are_refused_before_anybody_is_asked(make, workspace):
    recipe = make([("name_prefix", ["Maker"])], [("no_mark", ["maker"])])
    with Ledger.open(workspace) as ledger, pytest.raises(GateRefused, match="cannot be joined"):
        pipeline.plan(recipe, workspace, ledger)
    with pytest.raises(GateRefused, match="cannot be joined"):
        pipeline.run(recipe, workspace)
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts().total == 0
