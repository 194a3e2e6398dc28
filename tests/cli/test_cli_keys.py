"""`stillhouse keys`: what others are given, and its replacement."""

import json
import subprocess
import sys

import pytest

from stillhouse.workspace import init_workspace


@pytest.fixture
def house(tmp_path):
    return init_workspace(tmp_path)


def keys(workspace, *arguments):
    command = [sys.executable, "-m", "stillhouse.cli", "keys", *arguments]
    done = subprocess.run(command, cwd=workspace.root.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_keys_that_sign_are_shown_and_replaced(house):
    before = house.verifying_key.read_bytes(), house.model_verifying_key.read_bytes()
    said = keys(house, "show")
    assert f"models     {house.model_verifying_key}" in said
    assert f"private    {house.model_signing_key}" in said
    assert "PRIVATE" not in said
    text = keys(house, "rotate")
    assert str(house.verifying_key) in text
    assert str(house.model_verifying_key) in text
    assert house.verifying_key.read_bytes() != before[0]
    assert house.model_verifying_key.read_bytes() != before[1]
    found = json.loads(keys(house, "show", "--json"))
    assert found["model_signing"] == str(house.model_verifying_key)
    assert len(found["earlier"]) == 1


def test_a_workspace_of_before_the_second_key_says_when_it_comes(house):
    house.model_signing_key.unlink()
    house.model_verifying_key.unlink()
    assert "models     made with the next release" in keys(house, "show")
    found = json.loads(keys(house, "show", "--json"))
    assert found["model_signing"] is None
    assert str(house.model_signing_key) not in found["private"]
