"""The gate as a person meets it: what is refused, what lifts it, and what ends that again."""

import json
import os
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from maker import row_toml
from provider import echo

ROW = row_toml(
    trains_others="no", trains_competing="no", verdict="refuse", clause="No models are made of Output."
)
ROW += """
[[row.need]]
need = "paid_tier"
verdict = "refuse"
why = "paid access alone"

[[row.obligation]]
kind = "notice"
texts = ["made with Maker"]
"""
PERMISSION = """
grantor = "Maker Inc."
grantee = "us"
signatory = "J. Doe"
approver = "R. Ames"
document = "contract.txt"
valid_from = 2026-01-01
valid_to = 2099-12-31
[scope]
models = ["maker-*"]
uses = ["train_target", "evaluation"]
competing = true
volume = 12
"""


def stillhouse(*arguments, cwd):
    command = [sys.executable, "-m", "stillhouse.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ, check=False)


@pytest.fixture
def house(tmp_path):
    """A folder with a workspace that knows one vendor's terms; call it to write a recipe for a server."""
    assert stillhouse("init", cwd=tmp_path).returncode == 0
    (tmp_path / ".stillhouse" / "terms").mkdir()
    (tmp_path / ".stillhouse" / "terms" / "maker.toml").write_text(ROW)
    (tmp_path / "contract.txt").write_text("Maker permits us to train on Output.\n")
    (tmp_path / "permission.toml").write_text(PERMISSION)
    rows = [{"prompt": f"say {i}", "reference": str(i), "scorer": "exact"} for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def write(url="http://127.0.0.1:9/v1"):
        (tmp_path / "recipe.toml").write_text(
            f'[run]\nname = "small"\n[teacher]\nmodel = "maker-2"\nendpoint = "{url}"\npaid = true\n'
            '[prompts]\nsource = "prompts.jsonl"\n[student]\ninit = "embedded:base"\n'
            "[evaluate]\nheld_out = 0.3\n"
        )
        return tmp_path

    return write


def test_a_refusal_gives_the_clause_its_source_and_what_lifts_it(house):
    for command in (("plan",), ("run",), ("terms", "check")):
        done = stillhouse(*command, "recipe.toml", cwd=house())
        assert done.returncode == 3
        said = done.stdout + done.stderr
        for words in (
            "No models are made of Output.",
            "read on 2026-11-01",
            "https://maker.example/terms",
            "a written permission of Maker",
        ):
            assert words in said, said
        assert "Traceback" not in said


def test_check_prints_every_use_and_records_nothing(house):
    folder = house()
    found = json.loads(stillhouse("terms", "check", "recipe.toml", "--json", cwd=folder).stdout)
    assert [(each["use"], each["verdict"]) for each in found["decisions"]] == [
        ("train_target", "refuse"),
        ("evaluation", "review"),
    ]
    assert json.loads(stillhouse("ledger", "show", "--json", cwd=folder).stdout)["leaves"] == 0


def test_a_permission_lifts_it_until_it_is_revoked(house):
    folder = house()
    done = stillhouse("terms", "authorise", "permission.toml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    leaf = json.loads(done.stdout)["leaf"]
    checked = stillhouse("terms", "check", "recipe.toml", cwd=folder)
    assert checked.returncode == 0
    assert "owed     notice: made with Maker (maker-api)" in checked.stdout
    planned = stillhouse("plan", "recipe.toml", cwd=folder)
    assert planned.returncode == 0, planned.stderr
    assert "terms      maker-2 as train_target: allow with obligations" in planned.stdout
    assert "of Maker Inc." in planned.stdout
    assert f"12 exchanges left under leaf {leaf}" in planned.stdout
    assert "owed       notice (maker-api): made with Maker" in planned.stdout
    assert stillhouse("terms", "revoke", leaf, "--reason", "it ended", cwd=folder).returncode == 0
    after = stillhouse("plan", "recipe.toml", cwd=folder)
    assert after.returncode == 3
    assert "it was revoked" in after.stderr
    assert stillhouse("terms", "revoke", leaf, "--reason", "it ended", cwd=folder).returncode == 1


def test_a_run_stops_at_the_volume_and_keeps_what_it_has(house, provider):
    server = provider(echo)
    folder = house(server.url)
    assert stillhouse("terms", "authorise", "permission.toml", cwd=folder).returncode == 0
    done = stillhouse("collect", "recipe.toml", cwd=folder)
    assert done.returncode == 3
    assert "used up: 12 of 12 exchanges" in done.stderr
    assert len(server.bodies) == 12
    attempts = json.loads(stillhouse("ledger", "show", "--json", cwd=folder).stdout)["attempts"]
    assert attempts["answered"] == 12
    again = stillhouse("collect", "recipe.toml", cwd=folder)
    assert again.returncode == 3
    assert len(server.bodies) == 12


def test_a_permission_by_options_that_its_grantor_signs_too(house):
    folder = house()
    options = (
        "--grantor Maker --grantee us --signatory J.Doe --approver R.Ames --document contract.txt".split()
    )
    options += (
        "--model maker-2 --use train_target --use evaluation --competing --valid-from 2026-01-01".split()
    )
    written = stillhouse("terms", "authorise", *options, "--to-sign", "statement.bin", cwd=folder)
    assert written.returncode == 0, written.stderr
    theirs = Ed25519PrivateKey.generate()
    (folder / "theirs.pub").write_bytes(
        theirs.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (folder / "theirs.sig").write_bytes(theirs.sign((folder / "statement.bin").read_bytes()))
    signed = ["--grantor-key", "theirs.pub", "--grantor-signature", "theirs.sig"]
    other = stillhouse("terms", "authorise", *options, *signed, "--volume", "3", cwd=folder)
    assert other.returncode == 2
    assert "does not hold" in other.stderr
    done = stillhouse("terms", "authorise", *options, *signed, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert stillhouse("terms", "check", "recipe.toml", cwd=folder).returncode == 0
    both = stillhouse("terms", "authorise", "permission.toml", *options, cwd=folder)
    assert both.returncode == 2
    assert "take either" in both.stderr


def test_the_operator_is_printed(house):
    folder = house()
    (folder / ".stillhouse" / "operator.toml").write_text('territory = "DE"\ncommercial = true\n')
    said = stillhouse("terms", "operator", cwd=folder).stdout
    assert "DE" in said
    assert "nobody said" in said
    found = json.loads(stillhouse("terms", "operator", "--json", cwd=folder).stdout)
    assert (found["territory"], found["monthly_users"]) == ("DE", None)
    (folder / ".stillhouse" / "operator.toml").write_text("teritory = 3\n")
    refused = stillhouse("terms", "operator", cwd=folder)
    assert refused.returncode == 2
    assert "did you mean `territory`" in refused.stderr
