"""A teacher that is a release: its own teachers are weighed, and unknown where its record does not hold."""

import json
from datetime import UTC, date, datetime
from hashlib import sha256

import pytest

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.keys import public_bytes, public_pem, read_signing_key
from stillhouse.ledger.manifest import seal
from stillhouse.ledger.quarantine import recall
from stillhouse.recipe import parse_recipe
from stillhouse.terms import admit, consider
from stillhouse.workspace import init_workspace

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
ALLOWED = {"leaf": 3, "verdict": "allow"}


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path / "ours"), clock=lambda: NOW) as ledger:
        yield ledger


@pytest.fixture
def theirs(tmp_path):
    return init_workspace(tmp_path / "theirs")


def entry(model, access="api", host="api.example.com", decisions=(ALLOWED,), upstream=None):
    return {
        "model": model,
        "revision": None,
        "access": access,
        "host": host,
        "decisions": list(decisions),
        "upstream": upstream,
    }


def released(folder, workspace, *entries):
    """The folder as `workspace` would have released it."""
    (folder / "provenance").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "provenance" / "teachers.json").write_text(json.dumps(entries))
    key = read_signing_key(workspace)
    (folder / "provenance" / "public-key.pem").write_bytes(public_pem(public_bytes(key)))
    return seal(folder, "stillhouse/0011223344556677", "small", key)


def recipe(folder, *about):
    text = folder.with_name("terms.txt")
    text.write_text("You may train on it.")
    read = {"document": str(text), "read_on": date(2026, 11, 20), "declared_by": "R. Ames"}
    return parse_recipe(
        {
            "run": {"name": "smaller"},
            "teacher": {
                "model": str(folder),
                "terms": [read, *([{**read, "about": about}] if about else [])],
            },
            "prompts": {"source": "embedded:desk"},
            "student": {"init": "embedded:base"},
        }
    )


def decided(ledger, folder, *about):
    what = recipe(folder, *about)
    return consider(what, what.teacher, "train_target", ledger, NOW)


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
    further = {
        "release": "middle",
        "manifestSha256": "ab" * 32,
        "signedBy": "cd" * 32,
        "unknown": "",
        "teachers": [entry("gpt-4o", host="api.openai.com")],
    }
    released(folder, ledger.workspace, entry("middle", "weights", None, upstream=further))
    found = decided(ledger, folder)
    assert found.verdict == "refuse"
    assert {reason.row for reason in found.reasons} == {"", "openai-api"}


def test_a_teacher_that_the_house_had_leave_for_stays_allowed_until_that_is_recalled(ledger, tmp_path):
    leaf = ledger.append("decision", {"what": "a test"})
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("big-1", decisions=[{"leaf": leaf, "verdict": "allow"}]))
    assert decided(ledger, folder).verdict == "allow"
    recall(ledger, [leaf], "a letter came")
    assert decided(ledger, folder).verdict == "refuse"
    found = decided(ledger, folder, "big-1")
    assert (found.verdict, found.basis) == ("allow", "declaration")
    refused = tmp_path / "other"
    released(refused, ledger.workspace, entry("big-1", decisions=[{"leaf": 99, "verdict": "refuse"}]))
    assert decided(ledger, refused).verdict == "refuse"


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
        (lambda folder: (folder / "provenance/teachers.json").write_text("[3]"), "not in its form"),
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
