"""A teacher that is a release: its own teachers are weighed, and unknown where its record does not hold."""

from hashlib import sha256

import pytest
from taught import NOW, decided, entry, recipe, released, upstream

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.terms import admit
from stillhouse.workspace import init_workspace


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path / "ours"), clock=lambda: NOW) as ledger:
        yield ledger


@pytest.fixture
def theirs(tmp_path):
    return init_workspace(tmp_path / "theirs")


def test_a_refused_teacher_is_refused_one_step_further_too(ledger, tmp_path):
    folder = tmp_path / "small"
    manifest = released(folder, ledger.workspace, entry("gpt-4o", host="api.openai.com"))
    what = recipe(folder)
    with pytest.raises(GateRefused, match="small may not be used") as caught:
        admit(what, what.teacher, "train_target", ledger, NOW)
    assert (
        "OpenAI Services Agreement (gpt-4o, which taught small by this workspace's word)" in caught.value.why
    )
    assert "a written permission of OpenAI" in caught.value.mend
    (leaf,) = ledger.leaves("decision")
    known = leaf.body["upstream"]
    assert (known["release"], known["unknown"]) == ("small", "")
    assert [each["model"] for each in known["teachers"]] == ["gpt-4o"]
    assert known["manifestSha256"] == sha256(manifest.note).hexdigest()
    assert "openai-api" in {layer["row"] for layer in leaf.body["layers"]}


def test_one_further_up_counts_as_well_and_what_is_owed_adds_up(ledger, tmp_path):
    folder = tmp_path / "small"
    further = upstream("middle", entry("gpt-4o", host="api.openai.com"))
    released(folder, ledger.workspace, entry("middle", "weights", None, upstream=further))
    found = decided(ledger, folder)
    assert found.verdict == "refuse"
    assert {reason.row for reason in found.reasons} == {"", "openai-api"}


def test_what_others_say_they_decided_is_for_a_person_to_read(ledger, theirs, tmp_path):
    folder = tmp_path / "small"
    released(folder, theirs, entry("big-1"))
    found = decided(ledger, folder)
    assert (found.verdict, found.to_declare) == ("review", ("big-1",))
    assert decided(ledger, folder, "big-1").verdict == "allow"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "MANIFEST").unlink(), "cannot be read"),
        (lambda folder: (folder / "MANIFEST").write_text("nothing"), "cannot be read"),
        (lambda folder: (folder / "provenance/public-key.pem").unlink(), "cannot be read"),
        (lambda folder: (folder / "provenance/teachers.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "provenance/teachers.json").write_text("[]"), "teachers.json was changed"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"others"), "safetensors was changed"),
        (lambda folder: (folder / "more.safetensors").write_bytes(b"others"), "more.safetensors is not in"),
        (
            lambda folder: (folder / "MANIFEST").write_text(
                (folder / "MANIFEST").read_text().replace("release small", "release clean")
            ),
            "not signed",
        ),
    ],
)
def test_a_record_that_does_not_hold_leaves_the_teachers_unknown(ledger, tmp_path, spoil, why):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("embedded:desk", "shipped", None))
    assert decided(ledger, folder).verdict == "allow"
    spoil(folder)
    what = recipe(folder)
    with pytest.raises(GateRefused, match="not yet known to be allowed") as caught:
        admit(what, what.teacher, "train_target", ledger, NOW)
    assert why in caught.value.why
    assert 'about = ["lineage"]' in caught.value.mend
    known = next(iter(ledger.leaves("decision"))).body["upstream"]
    assert why in known["unknown"]
    assert (known["teachers"], known["signedBy"]) == ([], "")
    found = decided(ledger, folder, "lineage")
    assert (found.verdict, "is unknown" in found.reasons[-1].words()) == ("allow", True)
