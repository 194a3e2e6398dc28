import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from stillhouse.errors import StorageError, UsageError
from stillhouse.workspace import (
    Workspace,
    find_workspace,
    init_workspace,
    open_workspace,
    write_atomic,
    write_json,
)


@pytest.fixture
def workspace(tmp_path):
    return init_workspace(tmp_path)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def make_run(workspace: Workspace, name: str, changed: int) -> Path:
    folder = workspace.runs / name
    folder.mkdir()
    write_json(folder / "recipe.json", {})
    os.utime(folder / "recipe.json", (changed, changed))
    return folder


def test_a_workspace_is_its_owners_alone(tmp_path, umask):
    umask(0)
    workspace = init_workspace(tmp_path)
    assert mode(workspace.root) == mode(workspace.signing_key.parent) == 0o700
    assert mode(workspace.signing_key) == mode(workspace.workspace_key) == 0o600


@pytest.mark.parametrize(("mask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_a_written_file_has_the_rights_that_the_umask_leaves(tmp_path, umask, mask, wanted):
    umask(mask)
    path = tmp_path / "a.json"
    for text in (b"old", b"new"):
        write_atomic(path, text)
        assert path.read_bytes() == text
        assert mode(path) == wanted
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def full(*_):
        raise InterruptedError

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InterruptedError):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_run_is_found_by_name_without_digest_before_longer_names(workspace):
    short = make_run(workspace, "qa-0123abcd", 100)
    long = make_run(workspace, "qa-large-0123abcd", 200)
    assert workspace.find_run("qa").root == short
    assert workspace.find_run("qa-0123abcd").root == short
    assert workspace.find_run("qa-large").root == long
    assert workspace.find_run("qa-l").root == long
    newer = make_run(workspace, "qa-ffffffff", 150)
    assert workspace.find_run("qa").root == newer
    assert workspace.find_run(str(short)).root == short


def test_a_longer_name_is_taken_when_only_that_fits(workspace):
    long = make_run(workspace, "qa-large-0123abcd", 200)
    assert workspace.find_run("qa").root == long


@pytest.mark.parametrize(
    "name", ["/nowhere/at/all", "../x", "**", "[", "a\0b", "x" * 5000, "*", "qa-0123abcd/../.."]
)
def test_an_odd_name_is_an_error_for_people(workspace, name):
    make_run(workspace, "qa-0123abcd", 100)
    with pytest.raises(UsageError, match="no run named") as caught:
        workspace.find_run(name)
    assert "qa-0123abcd" in caught.value.why


def test_no_runs_yet(tmp_path):
    with pytest.raises(UsageError) as caught:
        Workspace(tmp_path).find_run("qa")
    assert "none yet" in caught.value.why


def test_of_several_who_make_a_workspace_at_once_all_get_the_same_one(tmp_path):
    at_once = Barrier(8)

    def one_of_them(folder):
        at_once.wait()
        made = init_workspace(folder)
        keys = (made.workspace_key, made.signing_key, made.verifying_key, made.model_signing_key)
        return [key.read_bytes() for key in keys]

    for round in range(5):
        folder = tmp_path / str(round)
        folder.mkdir()
        with ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(one_of_them, [folder] * 8))
        assert all(keys == seen[0] for keys in seen)
        assert not list((folder / ".stillhouse").glob(".making*"))


def test_a_workspace_that_nobody_finished_is_made_and_its_remains_harm_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StorageError):
            init_workspace(tmp_path)
    assert find_workspace(tmp_path) is None
    made = init_workspace(tmp_path)
    assert find_workspace(tmp_path) == open_workspace(tmp_path) == made
