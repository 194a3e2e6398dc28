"""A student that begins as somebody's weights, which are no release: what they ask goes with its students."""

import json
from datetime import UTC, datetime

import pytest
from maker import row_toml
from taught import NOW, decided, declared, entry, released

from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.pipeline.setup import admit_all
from stillhouse.recipe import parse_recipe
from stillhouse.terms import admit_base, admit_release, consider_base
from stillhouse.terms.licences import digest
from stillhouse.terms.lineage import as_base, read_lineage
from stillhouse.terms.obligations import file_name
from stillhouse.terms.registry import shipped
from stillhouse.workspace import init_workspace

ABOUT = ("llama3.1", "llama3.1/licence_text")
KINDS = {"name_prefix", "credit", "licence_copy", "use_policy", "notice"}


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path / "ours"), clock=lambda: datetime.now(UTC)) as ledger:
        ledger.workspace.operator.write_text("monthly_users = 5\n")
        yield ledger


def begun_from(init, *about, **tables):
    terms = declared(init, *about)[1:] if about else []
    tree = {
        "run": {"name": "smaller"},
        "teacher": {"model": "embedded:desk", **({"terms": terms} if terms else {})},
        "prompts": {"source": "embedded:desk", "count": 8},
        "student": {"init": str(init)},
        **tables,
    }
    return parse_recipe(tree)


def a_llama(tmp_path, name="Llama-3.1-8B", config=None):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "LICENSE").write_text("Llama 3.1 Community License, as it came")
    return folder


def passed_on(ledger, init, folder, maker=None, **tables):
    """A release by `maker` of a student that began as `init`, whom a shipped model taught."""
    leaf = admit_base(begun_from(init, **tables), ledger, NOW)
    shipped = entry("embedded:desk", "shipped", None)
    released(folder, maker or ledger.workspace, shipped, base=as_base(leaf, ledger.leaf(leaf).body))
    return folder


def kinds(owed):
    return {each.obligation.kind for each in owed}


def test_what_the_base_asks_is_a_decision_with_what_it_is_known_by(ledger, tmp_path):
    folder = a_llama(tmp_path)
    body = ledger.leaf(admit_base(begun_from(folder), ledger, NOW)).body
    assert (body["use"], body["verdict"]) == ("base", "allow_with_obligations")
    assert {each["kind"] for each in body["obligations"]} >= KINDS
    assert [each["row"] for each in body["layers"]] == ["llama3.1"]
    assert body["asked"]["licence_sha256"]
    assert "upstream" not in body
    assert str(tmp_path) not in json.dumps(body)


@pytest.mark.parametrize("whose", ["ours", "theirs"])
@pytest.mark.parametrize("steps", [1, 2])
def test_what_a_base_asks_is_owed_however_many_begin_as_its_student(ledger, tmp_path, whose, steps):
    maker = ledger.workspace if whose == "ours" else init_workspace(tmp_path / "theirs")
    small = passed_on(ledger, a_llama(tmp_path), tmp_path / "small", maker)
    for step in range(1, steps):
        small = passed_on(ledger, small, tmp_path / f"small{step}", maker)
    admitted = admit_all(begun_from(small), ledger)
    assert admitted.owed.prefix == "Llama"
    assert admitted.owed.credits == ("Built with Llama",)
    assert ("llama3.1", f"the base {small.name}") in admitted.owed.copies
    assert any("must begin with 'Llama'" in line for line in admitted.owed.unmet)
    assert not any("not known" in line for line in admitted.owed.unknown if "Llama" in line)


WEIGHTS = [row for row in shipped().rows() if row.access == "weights" and row.models]


@pytest.mark.parametrize("row", WEIGHTS, ids=lambda row: row.key)
@pytest.mark.parametrize("first", ["internal", "weights"])
def test_whatever_a_base_asks_it_asks_of_its_students_student_too(ledger, tmp_path, row, first):
    init = row.models[0].replace("*", "x")
    small = passed_on(ledger, init, tmp_path / "small", release={"mode": first})
    smaller = passed_on(ledger, small, tmp_path / "smaller", release={"mode": first})
    own = admit_base(begun_from(init), ledger, NOW)
    for later in (small, smaller):
        (of, on) = (
            {(each["row"], each["kind"], *each["texts"]) for each in ledger.leaf(leaf).body["obligations"]}
            for leaf in (own, admit_base(begun_from(later), ledger, NOW))
        )
        assert of <= on


def test_a_base_is_remembered_over_many_steps(ledger, tmp_path):
    """What it asks is told once, where the base stands, and not again at each step."""
    small = a_llama(tmp_path)
    for step in range(16):
        small = passed_on(ledger, small, tmp_path / f"small-{step}")
    lineage = read_lineage(small, ledger.workspace)
    assert lineage is not None
    assert (lineage.unknown, lineage.teachers[-1].model) == ("", "Llama-3.1-8B")
    assert admit_all(begun_from(small), ledger).owed.prefix == "Llama"


def test_a_copy_of_the_bases_licence_goes_on(ledger, tmp_path):
    small = tmp_path / "small"
    (small / "LICENSES").mkdir(parents=True)
    (small / "LICENSES" / f"{file_name(('llama3.1', 'the base Llama-3.1-8B'))}.txt").write_text("as it came")
    passed_on(ledger, a_llama(tmp_path), small)
    assert admit_all(begun_from(small, release={"name": "Llama-smaller"}), ledger).owed.unmet == ()


def test_who_is_taught_by_a_student_of_a_base_owes_that_too(ledger, tmp_path):
    small = passed_on(ledger, a_llama(tmp_path), tmp_path / "small")
    assert decided(ledger, small).verdict == "review"  # nobody read the LICENSE of what its answers come of
    found = decided(ledger, small, *ABOUT)
    assert found.verdict == "allow_with_obligations"
    assert kinds(found.obligations) >= KINDS


def test_whose_weights_a_base_in_a_renamed_folder_was_made_of_is_told_on(ledger, tmp_path):
    folder = a_llama(tmp_path, "mine", {"_name_or_path": "meta-llama/Llama-3.1-8B"})
    small = passed_on(ledger, folder, tmp_path / "small")
    assert admit_all(begun_from(small), ledger).owed.prefix == "Llama"
    assert "llama3.1" in {reason.row for reason in decided(ledger, small).reasons}


def test_what_a_student_in_the_house_did_not_owe_its_student_that_is_given_out_owes(ledger, tmp_path):
    ledger.workspace.terms.mkdir()
    inside = passed_on(
        ledger, "google/gemma-3-270m", tmp_path / "small", run={"name": "in"}, release={"mode": "internal"}
    )
    own = admit_all(begun_from("google/gemma-3-270m"), ledger).owed
    assert own.licence or own.copies or own.notices
    on = admit_all(begun_from(inside), ledger).owed
    assert (on.licence, on.notices, on.policies) == (own.licence, own.notices, own.policies)
    assert {row for row, _ in on.copies} == {row for row, _ in own.copies}


def test_a_base_whose_terms_nobody_knows_is_told_of_at_every_step(ledger, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    small = passed_on(ledger, strange, tmp_path / "small")
    smaller = passed_on(ledger, small, tmp_path / "smaller")
    for init in (strange, small, smaller):
        found = admit_all(begun_from(init), ledger).owed.unknown
        assert any("the terms of the base strange are not known" in line for line in found)
    assert consider_base(begun_from(smaller), ledger, NOW).verdict == "allow"


def test_what_a_base_asked_when_the_run_began_is_owed_at_its_release(ledger, tmp_path):
    folder = a_llama(tmp_path, "mine", {"_name_or_path": "meta-llama/Llama-3.1-8B"})
    what = begun_from(folder)
    admit_base(what, ledger, NOW)
    (folder / "config.json").write_text("{}")
    *_, leaf = admit_release(what, [], ledger, NOW)
    body = ledger.leaf(leaf).body
    assert body["use"] == "base"
    assert {each["kind"] for each in body["obligations"]} >= KINDS


def test_a_student_that_begins_as_its_teacher_is_given_one_copy_of_its_licence(ledger, tmp_path):
    (tmp_path / "licence.txt").write_text("Llama 3.1 Community License, as it came")
    teacher = {
        "model": "meta-llama/Llama-3.1-8B",
        "licence": str(tmp_path / "licence.txt"),
        "terms": declared(tmp_path / "x", *ABOUT)[1:],
    }
    what = begun_from("meta-llama/Llama-3.1-8B", teacher=teacher, release={"name": "Llama-smaller"})
    assert admit_all(what, ledger).owed.unmet == ()


def test_a_student_cut_out_of_a_student_of_a_base_passes_that_base_on(ledger, tmp_path):
    """What is asked for passing weights on, too, though nothing was given out when the first was made."""
    ledger.workspace.terms.mkdir()
    licence = {"name": "Maker Licence", "sha256": [digest("as it came")]}
    verdict = "allow_with_obligations"
    row = row_toml(access="weights", models=["maker/*"], licence=licence, verdict=verdict)
    row += '[[row.obligation]]\nkind = "notice"\ntexts = ["Of Maker"]\nredistributes = true\n'
    (ledger.workspace.terms / "maker.toml").write_text(row)
    folder = a_llama(tmp_path, "made")
    (folder / "LICENSE").write_text("as it came")
    small = passed_on(ledger, folder, tmp_path / "small", release={"mode": "internal"})
    assert not [each for leaf in ledger.leaves("decision") for each in leaf.body["obligations"]]
    assert admit_all(begun_from(small), ledger).owed.notices == ("Of Maker",)
    teacher = {"model": str(small), "terms": declared(small, "maker-api")}
    cut = begun_from("from_teacher", teacher=teacher)
    assert admit_all(cut, ledger).owed.notices == ("Of Maker",)
    taught = begun_from("embedded:base", teacher=teacher)
    assert admit_all(taught, ledger).owed.notices == ()


def test_a_student_in_its_run_is_neither_base_nor_teacher(ledger):
    """Nothing there says who taught it."""
    folder = ledger.workspace.runs / "first-01234567" / "student"
    folder.mkdir(parents=True)
    with pytest.raises(UsageError, match="is a part of a run") as caught:
        consider_base(begun_from(folder), ledger, NOW)
    assert "the run's folder `release`" in caught.value.mend
    with pytest.raises(UsageError, match="is a part of a run"):
        decided(ledger, folder)
    released(folder.with_name("release"), ledger.workspace, entry("embedded:desk", "shipped", None))
    assert decided(ledger, folder.with_name("release")).allowed
