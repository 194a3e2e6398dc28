"""The evidence file: signed, repeated by another to the same figures, and found out when it was changed."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from crowd import answers, crowd
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.audit.lineage import Finding, Settings, body, find, material, repeat, seal, unseal
from stillhouse.audit.lineage.evidence import differences, figures
from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger.keys import public_bytes, read_public_pem, read_signing_key
from stillhouse.report.lineage import page
from stillhouse.workspace import init_workspace

MODELS = Path(__file__).parents[2].parent / "shared/data/models"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A workspace, and files of a student, its teacher and a folder of controls."""
    folder = tmp_path_factory.mktemp("asked")
    workspace = init_workspace(folder)
    teacher = answers("teacher")
    student = answers("student", of=teacher, share=0.5)
    (folder / "controls").mkdir()
    for name, texts in {**crowd(18), "teacher": teacher, "student": student}.items():
        at = folder if name in ("teacher", "student") else folder / "controls"
        rows = [{"prompt": f"prompt {n}", "answer": text} for n, text in enumerate(texts)]
        (at / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return workspace, folder


@pytest.fixture(scope="module")
def sealed(asked):
    workspace, folder = asked
    roles = [("suspect", folder / "student.jsonl"), ("teacher", folder / "teacher.jsonl")]
    roles += [("control", file) for file in sorted((folder / "controls").iterdir())]
    given_ = [material(role, path) for role, path in roles]
    asked_with = Settings(level=0.05)
    found = find(given_, asked_with)
    whole = body(
        found,
        given_,
        {"level": 0.05, "seed": 0, "related": None},
        {"stillhouse": "1"},
        "2026-01-02T03:04:05Z",
    )
    key = read_signing_key(workspace)
    return seal(whole, key), key, whole


def test_what_was_sealed_is_what_is_read_and_holds_no_answer(sealed, asked):
    data, key, whole = sealed
    evidence, public = unseal(data, public_bytes(key))
    assert public == public_bytes(key)
    assert evidence["finding"]["verdict"] == "supported"
    assert evidence == json.loads(json.dumps(whole))
    text = answers("teacher")[0].split()[25]
    assert text.encode() not in data
    assert len(evidence["materials"]) == 20
    assert all(len(each["sha256"]) == 64 for each in evidence["materials"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_figure_hash_or_word_of_it_can_be_changed(sealed, data):
    whole = json.loads(sealed[0])
    places = list(leaves(whole["evidence"]))
    path = data.draw(st.sampled_from(places))
    at = whole["evidence"]
    for step in path[:-1]:
        at = at[step]
    old = at[path[-1]]
    at[path[-1]] = "other" if old != "other" else 1
    with pytest.raises(LedgerError, match="does not hold"):
        unseal(json.dumps(whole).encode())


def leaves(tree, path=()):
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*path, key))
    else:
        yield path


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"evidence": 1}', b"\xff"])
def test_a_file_that_is_none_is_refused(data):
    with pytest.raises(LedgerError, match="does not hold"):
        unseal(data)


def test_a_file_of_another_key_is_refused(sealed):
    with pytest.raises(LedgerError) as refused:
        unseal(sealed[0], bytes(32))
    assert "not by the one given" in refused.value.why


def test_a_repeat_gives_the_same_figures_where_the_materials_lie_beside_it(sealed, asked, tmp_path):
    folder = asked[1]
    for file in [folder / "student.jsonl", folder / "teacher.jsonl", *(folder / "controls").iterdir()]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = json.loads(json.dumps(sealed[2]))
    for each in whole["materials"]:
        each["path"] = "elsewhere/" + each["path"].rpartition("/")[2]
    (tmp_path / "e.json").write_bytes(seal(whole, sealed[1]))
    done = repeat(tmp_path / "e.json", public_bytes(sealed[1]))
    assert done.differences == ()
    (tmp_path / "teacher.jsonl").write_text((tmp_path / "teacher.jsonl").read_text() + "\n{}")
    with pytest.raises(LedgerError, match="is not what was tested"):
        repeat(tmp_path / "e.json")


@pytest.mark.skipif(not MODELS.is_dir(), reason="data sets are not part of the project")
def test_a_test_of_weights_is_repeated_from_the_same_folders(sealed, tmp_path):
    roles = (("suspect", MODELS / "stories260K"), ("teacher", MODELS / "babyllama361"))
    given_ = [material(role, folder) for role, folder in roles]
    found = find(given_, Settings())
    assert found.kind == "weights"
    assert "<caption>layers</caption>" in page({**sealed[2], "finding": figures(found)}, b"")
    whole = body(found, given_, asdict(Settings()), {}, "2026-01-02T03:04:05Z")
    (tmp_path / "e.json").write_bytes(seal(whole, sealed[1]))
    assert repeat(tmp_path / "e.json").differences == ()


def test_figures_that_do_not_come_out_are_named_though_the_signature_is_right(sealed, tmp_path):
    whole = json.loads(json.dumps(sealed[2]))
    whole["finding"]["tests"][0]["p"] = 0.5
    (tmp_path / "e.json").write_bytes(seal(whole, sealed[1]))
    done = repeat(tmp_path / "e.json")
    assert [line for line in done.differences if line.startswith("finding.tests[0].p: 0.5")]


def test_figures_near_each_other_are_the_same_and_what_is_left_out_is_not():
    assert differences({"p": 0.0123456}, {"p": 0.0123457}) == []
    assert differences({"p": 0.0123}, {"p": 0.0124})
    assert differences({"p": 1, "why": "x"}, {"p": 1})
    assert differences([1, 2], [1])
    assert differences({"ok": True}, {"ok": 1.0}) == []


def test_the_page_says_all_of_it_and_carries_no_script_of_a_models_name(sealed):
    whole = json.loads(json.dumps(sealed[2]))
    whole["materials"][0]["name"] = "<script>alert(1)</script>"
    text = page(whole, sealed[0])
    assert "<script>" not in text
    assert "not decided" in text  # named among the verdicts there are
    for said in (*whole["finding"]["limits"][:1], "Holm", whole["materials"][1]["sha256"]):
        assert said.split("'")[0] in text
    assert page(whole, sealed[0]) == text


def stillhouse(folder, *arguments):
    command = [sys.executable, "-m", "stillhouse.cli", "audit", "lineage", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_from_the_command_line_evidence_is_written_repeated_and_found_out(asked):
    workspace, folder = asked
    given_ = ("--suspect", "student.jsonl", "--teacher", "teacher.jsonl", "--control", "controls")
    done = stillhouse(folder, *given_, "--level", "0.05", "--evidence", "e.json", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["verdict"] == "supported"
    assert (folder / "e.html").read_text().startswith("<!doctype html>")
    again = stillhouse(folder, "--repeat", "e.json", "--key", workspace.verifying_key)
    assert again.returncode == 0, again.stderr
    assert "the same figures" in again.stdout
    changed = (folder / "e.json").read_text().replace('"supported"', '"not decided"')
    (folder / "e.json").write_text(changed)
    bad = stillhouse(folder, "--repeat", "e.json")
    assert bad.returncode == 1
    assert "does not hold" in bad.stderr
    assert read_public_pem(workspace.verifying_key)


def test_evidence_of_another_version_is_refused_in_words(sealed, tmp_path):
    whole = json.loads(json.dumps(sealed[2])) | {"settings": {"levels": 1}}
    (tmp_path / "e.json").write_bytes(seal(whole, sealed[1]))
    with pytest.raises(LedgerError, match="cannot be repeated"):
        repeat(tmp_path / "e.json")


def test_models_of_one_name_and_levels_that_are_none_are_refused(asked, tmp_path):
    folder = asked[1]
    (tmp_path / "teacher.jsonl").write_bytes((folder / "teacher.jsonl").read_bytes())
    two = [material("suspect", folder / "teacher.jsonl"), material("teacher", tmp_path / "teacher.jsonl")]
    with pytest.raises(UsageError, match="called teacher"):
        find(two, Settings())
    with pytest.raises(UsageError, match="no level"):
        find(two, Settings(level=1.0))


def test_what_is_lacking_is_named(asked):
    folder = asked[1]
    done = stillhouse(folder, "--suspect", "student.jsonl")
    assert done.returncode == 2
    assert "--teacher" in done.stderr


def test_figures_are_rounded_so_that_they_are_the_same_elsewhere():
    made = Finding("answers", "", "", "", (), "", (), {"x": 0.123456789, "y": float("nan")}, ())
    assert figures(made)["facts"] == {"x": 0.123457, "y": None}
