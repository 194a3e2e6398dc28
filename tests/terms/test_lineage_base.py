"""A student that begins as a release: who taught that is weighed, and what they ask goes with the student."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from taught import NOW, decided, declared, entry, recipe, released, upstream

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.quarantine import recall
from stillhouse.pipeline.setup import admit_all, admit_learning
from stillhouse.recipe import parse_recipe
from stillhouse.terms import admit, admit_base, admit_release, consider, consider_base
from stillhouse.terms.asking import licence_texts
from stillhouse.terms.obligations import file_name, settled
from stillhouse.workspace import init_workspace

LLAMA = {"model": "meta-llama/Llama-3.1-8B", "also": ["t"]}
ABOUT = ("llama3.1", "llama3.1/licence_text")


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path / "ours"), clock=lambda: datetime.now(UTC)) as ledger:
        ledger.workspace.operator.write_text("monthly_users = 5\n")
        yield ledger


def begun_from(folder, *about, teacher="embedded:desk", **tables):
    terms = declared(folder, *about)[1:]
    tree = {
        "run": {"name": "smaller"},
        "teacher": {"model": teacher, **({"terms": terms} if terms else {})},
        "prompts": {"source": "embedded:desk", "count": 8},
        "student": {"init": str(folder)},
        **tables,
    }
    return parse_recipe(tree)


def test_who_may_not_be_learned_from_may_not_have_taught_the_base_either(ledger, tmp_path):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("gpt-4o", host="api.openai.com"))
    what = begun_from(folder)
    for admits in (admit_all, admit_learning):
        with pytest.raises(GateRefused, match="may not begin with") as caught:
            admits(what, ledger)
        assert "OpenAI Services Agreement (gpt-4o, which taught small" in caught.value.why
        assert "a written permission of OpenAI" in caught.value.mend
    with pytest.raises(GateRefused, match="may not begin with"):
        admit_release(what, [], ledger, NOW)
    refused = [leaf.body for leaf in ledger.leaves("decision") if leaf.body["use"] == "base"]
    assert {body["verdict"] for body in refused} == {"refuse"}
    assert {body["teacher"]["model"] for body in refused} == {"small"}
    assert consider_base(what, ledger, NOW).verdict == "refuse"


def test_what_the_teachers_of_the_base_ask_goes_with_the_student(ledger, tmp_path):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("t", "weights", None, known=LLAMA))
    with pytest.raises(GateRefused, match="may not begin with") as caught:
        admit_all(begun_from(folder), ledger)
    assert "about = [" in caught.value.mend
    admitted = admit_all(begun_from(folder, *ABOUT), ledger)
    assert admitted.owed.prefix == "Llama"
    assert ("llama3.1", "the base small") in admitted.owed.copies
    leaf = ledger.leaf(admitted.every[-1])
    assert leaf.body["use"] == "base"
    assert leaf.index not in admitted.learned
    (again,) = set(admit_release(begun_from(folder, *ABOUT), [], ledger, NOW)) & {
        each.index for each in ledger.leaves("decision") if each.body["use"] == "base"
    }
    assert ledger.leaf(again).body["at"] == "release"


def _take_away(folder):
    shutil.rmtree(folder / "provenance")
    (folder / "MANIFEST").unlink()


def _put_others_weights(folder):
    (folder / "model.safetensors").write_bytes(b"others")


@pytest.mark.parametrize("loses", [_take_away, _put_others_weights])
def test_a_base_whose_record_is_lost_before_the_release_owes_what_it_owed(ledger, tmp_path, loses):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("t", "weights", None, known=LLAMA))
    admit_base(begun_from(folder, *ABOUT), ledger, NOW)
    loses(folder)
    admit_base(begun_from(folder, *ABOUT), ledger, NOW)  # as before training
    with pytest.raises(GateRefused, match="was there when this run began, and is lost") as caught:
        admit_release(begun_from(folder, *ABOUT), [], ledger, NOW)
    assert "signed_off_by" in caught.value.mend
    signed = begun_from(folder, *ABOUT, release={"signed_off_by": "R. Ames, counsel"})
    bodies = [ledger.leaf(index).body for index in admit_release(signed, [], ledger, NOW)]
    owed = settled(signed, bodies, {})
    assert owed.prefix == "Llama"
    assert any("who taught the base small is not known" in line for line in owed.unknown)
    assert bodies[-1]["stricter"]
    another = begun_from(folder, *ABOUT, run={"name": "another"})
    assert not any(
        ledger.leaf(index).body["obligations"] for index in admit_release(another, [], ledger, NOW)[1:]
    )


@pytest.mark.parametrize("signs", ["ours", "theirs"])
@pytest.mark.parametrize("further", [False, True], ids=["its teacher's base", "one step more"])
def test_who_taught_a_teachers_base_is_weighed(ledger, tmp_path, signs, further):
    folder = tmp_path / "small"
    of_base = upstream("first", entry("gpt-4o", host="api.openai.com"))
    base = entry("first", "weights", None, use="base", upstream=of_base)
    desk = entry("embedded:desk", "shipped", None)
    with Ledger.open(init_workspace(tmp_path / "theirs")) as other:
        maker = ledger.workspace if signs == "ours" else other.workspace
        of_teacher = upstream("second", desk, base)
        taught = [entry("second", "weights", None, upstream=of_teacher)] if further else [desk]
        released(folder, maker, *taught, base=None if further else base)
    found = decided(ledger, folder, "second")
    assert found.verdict == "refuse"
    assert "gpt-4o, which taught small" in found.reason
    assert consider_base(begun_from(folder), ledger, NOW).verdict == "refuse"


def test_what_was_owed_for_passing_on_weights_is_owed_as_they_are_in_the_student(ledger, tmp_path):
    owed = {"row": "gone", "kind": "notice", "texts": ["N"], "modes": ["weights"], "redistributes": True}
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("embedded:desk", "shipped", None, obligations=[owed]))
    assert admit_all(begun_from(folder), ledger).owed.notices == ("N",)


def test_who_taught_a_base_may_be_unknown_and_that_is_said(ledger, tmp_path):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("gpt-4o", host="api.openai.com"))
    (folder / "model.safetensors").write_bytes(b"others")
    admitted = admit_all(begun_from(folder), ledger)
    (line,) = [each for each in admitted.owed.unknown if each.startswith("who taught the base small")]
    assert "model.safetensors was changed" in line
    body = ledger.leaf(admitted.every[-1]).body
    assert (body["verdict"], body["upstream"]["teachers"]) == ("allow", [])
    assert "is unknown: model.safetensors was changed" in body["reason"]


@pytest.mark.parametrize(("count", "lift"), [(90, "permission of OpenAI"), (900, 'about = ["lineage"]')])
def test_a_record_that_is_too_long_hides_nobody(ledger, tmp_path, count, lift):
    several = [entry(f"gpt-4o-{number}", host="api.openai.com", decisions=[]) for number in range(count)]
    released(tmp_path / "small", ledger.workspace, *several)
    with pytest.raises(GateRefused, match="may not begin with") as caught:
        admit_base(begun_from(tmp_path / "small"), ledger, NOW)
    assert lift in caught.value.mend


def test_how_many_taught_the_base_lifts_no_refusal(ledger, tmp_path):
    several = [entry(f"gpt-4o-{number}", host="api.openai.com", decisions=[]) for number in range(90)]
    released(tmp_path / "small", ledger.workspace, *several)
    assert consider_base(begun_from(tmp_path / "small", "lineage"), ledger, NOW).verdict == "refuse"


@pytest.mark.parametrize("init", ["embedded:base", "config", "from_teacher"])
def test_a_base_that_is_nobody_elses_is_no_decision(ledger, tmp_path, init):
    what = begun_from(tmp_path / "x", student={"init": init})
    assert admit_base(what, ledger, NOW) is None
    assert not list(ledger.leaves("decision"))


def test_the_licences_that_a_release_passes_on_are_at_hand_and_its_own_is_none(ledger, tmp_path):
    folder = tmp_path / "small"
    (folder / "LICENSES").mkdir(parents=True)
    (folder / "LICENSES" / f"{file_name(('llama3.1', 't'))}.txt").write_text("Llama, as it came")
    (folder / "LICENSE").write_text("The weights in this folder are under MIT.\n")
    released(folder, ledger.workspace, entry("t", "weights", None, known=LLAMA))
    texts = licence_texts(begun_from(folder, *ABOUT), ledger.workspace)
    assert {whose: texts[whose] for whose in texts if whose[1] == "the base small"} == {
        ("llama3.1", "the base small"): b"Llama, as it came"
    }
    owed = admit_all(begun_from(folder, *ABOUT, release={"name": "Llama-smaller"}), ledger).owed
    assert owed.unmet == ()


def test_a_local_teachers_own_licence_is_the_copy_that_is_owed(ledger, tmp_path):
    """Owed by the name that the gate records: the folder's own, not where it lies."""
    folder = tmp_path / "Llama-3.1-8B"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "LICENSE").write_text("Llama 3.1 Community License, as it came")
    what = begun_from(tmp_path / "b", *ABOUT, teacher=str(folder), release={"name": "Llama-x"})
    texts = licence_texts(what, ledger.workspace)
    assert ("llama3.1", "Llama-3.1-8B") in texts


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("recalled_as", ["teacher", "base"])
def test_a_declaration_that_was_recalled_counts_neither_of_a_teacher_nor_of_a_base(
    ledger, tmp_path, monkeypatch, recalled_as, earlier
):
    """However the folder is written. Earlier leaves had the base as the recipe wrote it."""
    monkeypatch.chdir(tmp_path)
    folder = Path("rel/small")
    released(folder, ledger.workspace, entry("big-1", decisions=[]))
    teaches = recipe(folder, "big-1")
    begins = begun_from(folder, "big-1")
    assert consider_base(begins, ledger, NOW).verdict == "allow"
    assert consider(teaches, teaches.teacher, "train_target", ledger, NOW).verdict == "allow"
    if recalled_as == "teacher":
        leaf = admit(teaches, teaches.teacher, "train_target", ledger, NOW)
    else:
        leaf = admit_base(begins, ledger, NOW)
    body = ledger.leaf(leaf).body
    declaration = body["declarations"][-1]
    if earlier:
        said = dict(ledger.leaf(declaration).body)
        said["teacher"] = said["teacher"] | {"model": "rel/small"}
        declaration = ledger.append("authorisation", said)
        leaf = ledger.append(
            "decision", {**body, "declarations": [declaration], "authorisation": declaration}
        )
    recall(ledger, [leaf], "a letter came", authorisation=declaration)
    assert consider(teaches, teaches.teacher, "train_target", ledger, NOW).verdict == "refuse"
    for where in (folder, folder.absolute()):
        assert consider_base(begun_from(where, "big-1"), ledger, NOW).verdict == "refuse"


@pytest.mark.parametrize("passed_on", [True, False])
def test_a_copy_owed_under_a_row_that_this_table_lacks_can_be_given(ledger, tmp_path, passed_on):
    folder = tmp_path / "small"
    (folder / "LICENSES").mkdir(parents=True)
    (tmp_path / "acme.txt").write_text("Acme, as it came")
    if passed_on:
        (tmp_path / "acme.txt").rename(folder / "LICENSES" / f"{file_name(('acme', 'embedded:desk'))}.txt")
    owed = {"row": "acme", "kind": "licence_copy", "texts": ["Acme"], "modes": ["weights"]}
    released(folder, ledger.workspace, entry("embedded:desk", "shipped", None, obligations=[owed]))
    own = {} if passed_on else {"licence": str(tmp_path / "acme.txt")}
    what = recipe(folder, teacher={"model": str(folder), "terms": declared(folder), **own})
    assert licence_texts(what, ledger.workspace)["acme", "small"] == b"Acme, as it came"
    assert admit_all(what, ledger).owed.unmet == ()
    if passed_on:
        assert admit_all(begun_from(folder), ledger).owed.unmet == ()
