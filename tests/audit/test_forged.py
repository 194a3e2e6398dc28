"""What a maker could write who holds the keys and the log, and leaves out what the log itself shows."""

import json
import shutil
from pathlib import Path

import pytest
from resealing import seal_again

from stillhouse.audit import verify
from stillhouse.ledger import Ledger
from stillhouse.ledger.disclosure import disclose, disclosed
from stillhouse.ledger.manifest import digests
from stillhouse.ledger.quarantine import decisions_of, recall
from stillhouse.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def forged(made, tmp_path):
    """What `verify` finds of the release written again, by the log and under the keys of its workspace, after
    `change(folder, body of the release's leaf, ledger)`, which returns further leaves to show."""
    workspace = Workspace(Path(shutil.copytree(made.workspace.root, tmp_path / ".stillhouse")))
    folder = Path(shutil.copytree(made.release, tmp_path / "forged"))

    def write(change):
        proofs = folder / "provenance"
        before = {leaf.index: leaf for leaf in disclosed(proofs)}
        body = next(leaf.body for leaf in before.values() if leaf.kind == "release")
        with Ledger.open(workspace) as ledger:
            more = change(folder, body, ledger) or set()
            for name in ("model.sig", "MANIFEST", "provenance/checkpoint", "provenance/public-key.pem"):
                (folder / name).unlink()
            (proofs / "leaves.jsonl.gz").unlink()
            shutil.rmtree(proofs / "tile")
            again = ledger.append("release", {**body, "files": digests(folder)})
            shown = {index for index, leaf in before.items() if leaf.kind != "release"}
            disclose(ledger, proofs, {*shown, *more, again}, ledger.checkpoint())
        seal_again(folder, workspace, body["name"])
        return {check.name: check.detail for check in verify(folder).checks if not check.ok}

    return write


def test_what_was_not_changed_verifies(forged):
    assert forged(lambda folder, body, ledger: None) == {}


def teachers_with(**more):
    def change(folder, body, ledger):
        path = folder / "provenance" / "teachers.json"
        (entry,) = json.loads(path.read_bytes())
        path.write_text(json.dumps([{**entry, **more}]))

    return change


def test_a_teacher_to_whom_other_things_are_owed_than_was_decided_is_found(forged):
    owed = {"row": "x", "kind": "note", "texts": ["T"], "modes": ["weights"], "redistributes": False}
    found = forged(teachers_with(obligations=[{**owed, "where": ""}]))
    assert set(found) == {"teachers"}
    assert "other things are owed than the decisions" in found["teachers"]


def test_other_grounds_than_were_decided_by_are_found(forged):
    def change(folder, body, ledger):
        path = folder / "provenance" / "teachers.json"
        path.write_text(path.read_text().replace('"basis": "declaration"', '"basis": "authorisation"'))

    found = forged(change)
    assert set(found) == {"teachers"}
    assert "does not have the decisions of the leaves" in found["teachers"]


def test_a_teacher_that_was_asked_elsewhere_is_found(forged):
    """Its host is what holds a server's ban against it a step further."""
    found = forged(teachers_with(host=None, access="weights"))
    assert set(found) == {"teachers"}
    assert "asked in another way than was decided" in found["teachers"]


def test_a_teacher_that_is_passed_off_as_a_base_is_found(forged):
    """What is taken for a base is asked for what it owes, and not for its leave."""
    found = forged(teachers_with(use="base"))
    assert set(found) == {"teachers"}
    assert "says that it is a base" in found["teachers"]


def test_a_base_of_before_it_was_told_what_it_is_known_by_verifies(forged):
    def change(folder, body, ledger):
        path = folder / "provenance" / "base.json"
        told = json.loads(path.read_bytes())
        path.write_text(json.dumps({name: value for name, value in told.items() if name != "known"}))

    assert forged(change) == {}


def without_its_base(folder, body, ledger):
    body["decisions"] = [
        index for index in body["decisions"] if ledger.leaf(index).body["use"] == "train_target"
    ]
    (folder / "provenance" / "base.json").unlink()


def test_a_base_that_is_left_out_of_the_release_is_found(forged):
    found = forged(without_its_base)
    assert set(found) == {"teachers"}
    assert "the release has no decision about that" in found["teachers"]


@pytest.mark.parametrize("lifted", [False, True])
def test_a_release_that_rests_on_what_was_recalled_before_it_is_found(forged, lifted):
    def change(folder, body, ledger):
        (row, *_) = ledger.leaves("row")
        which = ledger.leaf(row.body["exchanges"][0]).body["decision"]
        decisions = decisions_of(ledger, "decision", which)
        leaves = recall(ledger, decisions, "a letter came").leaves
        if lifted:
            leaves = [*leaves, *recall(ledger, decisions, "a mistake", lift=True).leaves]
        return leaves

    found = forged(change)
    assert set(found) == (set() if lifted else {"decisions"})
    assert lifted or "was recalled before it" in found["decisions"]


@pytest.mark.parametrize("part", ["retention", "verdict"])
def test_an_evaluation_that_was_polished_is_found(forged, part):
    def change(folder, body, ledger):
        told = json.loads((folder / "evaluation.json").read_bytes())
        told[part] = {**told[part], "value": 1.0, "ruling": "kept", "margin": 0.5}
        (folder / "evaluation.json").write_text(json.dumps(told))

    found = forged(change)
    assert set(found) == {"evaluation"}
    assert "does not have the figures of the log" in found["evaluation"]
