"""`stillhouse guard` as an operator meets it, on one store."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SECRET = "Zk3vT9qLw8RxY2nB5mHc7PdJ4sGf6EaU"


@pytest.fixture
def begun(guard):
    guard("init")

    def run(*words, **given):
        return json.loads(guard(*words, "--json", **given))

    return run


def test_settings_to_begin_with_are_written_once_and_checked(guard, tmp_path):
    assert "guard check guard.toml" in guard("init")
    assert "there already" in guard("init", code=2)
    assert "STILLHOUSE_ADMIN_SECRET is not set" in guard("check", code=1)
    assert "0 errors, 0 warnings" in guard("check", STILLHOUSE_ADMIN_SECRET=SECRET)
    weak = guard("check", code=1, STILLHOUSE_ADMIN_SECRET="hunter2")
    assert "7 characters" in weak
    assert "hunter2" not in weak
    settings = (tmp_path / "guard.toml").read_text()
    (tmp_path / "guard.toml").write_text(settings.replace("port =", "prot ="))
    wrong = guard("check", code=2)
    assert "guard.toml:5" in wrong
    assert "did you mean `port`?" in wrong
    assert "stillhouse guard init" in guard("check", "none.toml", code=2)


def test_a_customer_from_its_first_day_to_its_last(guard, begun, tmp_path):
    house = begun("organisations", "add", "the house", "--limit", "requests_per_day=1000")
    assert house["limits"] == {"requests_per_day": 1000}
    account = begun("accounts", "add", "ann", "--organisation", house["id"], "--budget", "12.5")
    made = begun("keys", "add", account["id"], "--name", "main", "--model", "first", "--days", "30")
    key, secret = made["key"]["id"], made["secret"]
    assert begun("keys", "list", "--search", secret[:15])["data"][0]["id"] == key
    for _ in range(2):
        paid = begun("accounts", "pay", account["id"], "20.5", "--reference", "r1")
        assert paid["paid"] == 20_500_000_000
    assert [one["amount"] for one in begun("accounts", "payments", account["id"])["data"]] == [20_500_000_000]
    assert "needs a reason" in guard("accounts", "set", account["id"], "--limit", "concurrent=2", code=2)
    limited = ("--limit", "concurrent=2", "--reason", "agreed", "--as", "bob")
    assert begun("accounts", "set", account["id"], *limited)["limits"] == {"concurrent": 2}
    assert begun("accounts", "set", account["id"], "--budget", "none")["budget"] is None
    assert "reason" in guard("keys", "block", key, code=2)
    blocked = begun("keys", "block", key, "--reason", "leaked", "--as", "bob")
    assert (blocked["state"], blocked["why"]) == ("blocked", "bob: leaked")
    assert begun("keys", "unblock", key)["state"] == "active"
    rotated = begun("keys", "rotate", key, "--grace-hours", "1")
    assert rotated["key"]["id"] == key
    assert rotated["secret"] != secret
    assert begun("keys", "revoke", key, "--reason", "left")["revoked"] is not None
    assert "is revoked" in guard("keys", "unblock", key, code=2)
    assert begun("accounts", "close", account["id"], "--reason", "left")["state"] == "closed"
    log = begun("changes", "--subject", f"account:{account['id']}")["data"]
    assert [one["what"] for one in log] == ["add", "pay", "change", "change", "close"]
    assert log[2]["who"] == "bob"
    everything = (
        guard("changes") + guard("accounts", "list") + guard("keys", "list") + guard("keys", "show", key)
    )
    assert rotated["secret"][:15] in everything
    assert rotated["secret"][15:] not in everything
    files = b"".join(
        path.read_bytes() for path in (tmp_path / ".stillhouse" / "guard").rglob("*") if path.is_file()
    )
    assert secret[15:].encode() not in files


def test_a_process_does_it_and_the_next_one_sees_it(tmp_path):
    def stillhouse(*words):
        command = [sys.executable, "-m", "stillhouse.cli", "guard", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True
        )
        return done.stdout

    stillhouse("init")
    made = json.loads(stillhouse("accounts", "add", "ann", "--json"))
    assert made["id"] in stillhouse("accounts", "list")


def test_the_commands_of_the_page_do_what_it_says(begun, monkeypatch):
    monkeypatch.setenv("STILLHOUSE_ADMIN_SECRET", SECRET)
    page = (Path(__file__).parents[2] / "docs" / "guard-accounts.md").read_text()
    lines = re.search(r"```sh\n(.*?)```", page, re.S)[1].splitlines()
    assert lines[0] == "stillhouse guard init"
    known = {}
    for line in lines[1:]:
        words = shlex.split(re.sub("|".join(known) or "$", lambda found: known.get(found[0], ""), line))
        done = begun(*words[2:])
        for name, made in (("ORGANISATION", done), ("ACCOUNT", done), ("KEY", done.get("key", {}))):
            if made.get("id", "").startswith(
                {"ORGANISATION": "org_", "ACCOUNT": "acct_", "KEY": "key_"}[name]
            ):
                known[name] = made["id"]
    assert [one["what"] for one in done["data"]] == ["add", "pay", "change", "close"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("accounts", "add", "x", "--tier", "defualt"), "did you mean default"),
        (("accounts", "add", "x", "--budget", "much"), "budget"),
        (("accounts", "add", "x", "--limit", "concurrents=3"), "concurrents"),
        (("accounts", "add", "x", "--limit", "concurrent"), "NAME=NUMBER"),
        (("accounts", "add", "a\nb"), "name"),
        (("accounts", "show", "acct_none"), "there is no account"),
        (("accounts", "pay", "acct_none", "much", "--reference", "r"), "amount"),
        (("accounts", "accept-terms", "acct_none", "--version", "1"), "there are none"),
        (("keys", "add", "acct_none", "--days", "soon"), "no number of days"),
        (("keys", "add", "acct_none", "--days", "-1"), "expired already"),
    ],
)
def test_what_cannot_be_done_is_told_in_three_lines(guard, words, said):
    guard("init")
    told = guard(*words, code=2)
    assert said in told
    assert [line.split(":")[0] for line in told.splitlines()] == ["error", "cause", "hint"]


def test_a_tier_that_accounts_have_and_the_settings_lack_is_found(guard, begun, tmp_path):
    begun("accounts", "add", "ann")
    settings = (tmp_path / "guard.toml").read_text()
    (tmp_path / "guard.toml").write_text(settings.replace("[tiers.default]", "[tiers.gold]"))
    found = guard("check", code=1, STILLHOUSE_ADMIN_SECRET=SECRET)
    assert "accounts have the tier 'default'" in found


def test_a_consent_to_training_is_recorded_listed_and_taken_back(guard, begun, tmp_path):
    account = begun("accounts", "add", "ann")["id"]
    assert "there are none" in guard("accounts", "agree-training", account, "--version", "1", code=2)
    terms = '\n[terms]\nversion = "2026-11"\ndocument = "terms.txt"\ntraining = "forbidden"\n'
    (tmp_path / "guard.toml").write_text((tmp_path / "guard.toml").read_text() + terms)
    page = (Path(__file__).parents[2] / "docs" / "guard-accounts.md").read_text()
    lines = re.findall(r"```sh\n(.*?)```", page, re.S)[1].replace("ACCOUNT", account).splitlines()
    agreed, taken, listed = (begun(*shlex.split(line)[2:]) for line in lines)
    assert (agreed["training"], taken["training"]) == ("2026-11", None)
    said = [(one["version"], one["reason"]) for one in listed["data"]]
    assert said == [("2026-11", "form of 22 November"), (None, "asked for by mail")]
