"""A release goes to a hub, comes back, and is what it was; on the way everything may go wrong."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hub_server import ATTRIBUTES, blob, hubs
from huggingface_hub import constants

from stillhouse import pipeline
from stillhouse.audit import verify
from stillhouse.cli import main
from stillhouse.ledger import Ledger
from stillhouse.ledger.manifest import names
from stillhouse.ledger.quarantine import decisions_of, recall
from stillhouse.recipe import load_recipe
from stillhouse.workspace import open_workspace

NAME = "house/small"
CHECKER = Path(__file__).parents[2] / "docs" / "check_release.py"


@pytest.fixture
def hub():
    with hubs() as made:
        yield made


@pytest.fixture
def run(hub, tmp_path):
    """Python in another process, which knows of no hub but this one, and of no token but the one given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}

    def python(*words, **more):
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, *map(str, words)]
        env = {**kept, **home, "HF_HUB_DISABLE_XET": "1", **more}
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    return python


@pytest.fixture
def push(hub, made, monkeypatch, capsys, tmp_path):
    """`stillhouse push` in this process, which has the client's imports behind it."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def pushed(*words, release=made.release, name=NAME, token=hub.token, url=hub.url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(sys, "argv", ["stillhouse", "push", str(release), name, *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return subprocess.CompletedProcess(sys.argv, left.value.code or 0, *capsys.readouterr())

    return pushed


def refused(done, code, *words):
    assert done.returncode == code, done.stdout + done.stderr
    said = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert [part for part in ("error", "cause", "hint") if part in said] == ["error", "cause", "hint"]
    assert "Traceback" not in done.stderr
    assert "hf_right" not in done.stdout + done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


FETCH = "import sys, huggingface_hub; huggingface_hub.snapshot_download(sys.argv[1], local_dir=sys.argv[2])"


def test_a_release_that_was_pushed_and_fetched_again_verifies(hub, run, made, tmp_path):
    done = run("-m", "stillhouse.cli", "push", made.release, NAME, "--json", HF_TOKEN=hub.token)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    commits = hub.repositories[NAME].commits
    assert [*commits][1:] == [told["commit"]], "one commit, after the one that makes a repository"
    sent = names(made.release)
    assert told == {
        "url": f"{hub.url}/{NAME}",
        "commit": told["commit"],
        "revision": "main",
        "files": len(sent),
        "private": False,
        "new": True,
        "recalls_looked_at": True,
    }
    assert sorted(hub.tree(NAME)) == sorted([*sent, ".gitattributes"])
    assert all(agent.startswith("stillhouse/") for agent in hub.agents)

    fetched = run("-c", FETCH, NAME, tmp_path / "back")
    assert fetched.returncode == 0, fetched.stderr
    there = set(names(tmp_path / "back")) - set(sent)
    assert ".gitattributes" in there
    assert all(name.startswith(".cache/huggingface/") for name in there - {".gitattributes"})
    back = verify(tmp_path / "back", made.key, made.kept)
    assert back.ok, back.checks
    line = next(check.detail for check in back.checks if check.name == "files")
    assert line.endswith("not part of the release, and not read: .cache/huggingface/, .gitattributes")
    alone = run("-I", CHECKER, tmp_path / "back", made.workspace.verifying_key)
    assert alone.returncode == 0, alone.stderr


@pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
def test_weights_go_by_xet_where_the_client_has_it(hub, run, made, tmp_path):
    hub.xet = tmp_path / "xet"
    xet = {"HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "0"}
    done = run("-m", "stillhouse.cli", "push", made.release, NAME, **xet)
    assert done.returncode == 0, done.stderr
    assert sorted(hub.tree(NAME)) == sorted([*names(made.release), ".gitattributes"])
    assert done.stderr == ""
    assert any(path.stat().st_size for path in hub.xet.rglob("*") if path.is_file())
    assert not hub.stored


def test_pushing_the_same_again_sends_nothing(hub, push):
    first = json.loads(push("--json").stdout)
    hub.asked.clear()
    again = push("--json")
    assert json.loads(again.stdout) == {**first, "new": False}
    assert {line.split()[1] for line in hub.asked} == {"info", "revision", "tree"}
    assert "nothing, for the same files lie there already" in push().stdout


def with_others(hub, push):
    """A repository with an older release in it, of which one file has no successor."""
    push()
    tree = {**hub.tree(NAME), "config.json": blob(b"{}"), "old.bin": blob(b"old")}
    return hub.repositories[NAME].commit("main", tree)


def test_other_files_are_replaced_only_where_that_is_said(hub, push, made):
    before = with_others(hub, push)
    refused(push(), 2, f"{NAME} holds other files", "and", "--replace")
    assert hub.repositories[NAME].branches["main"] == before
    done = push("--replace")
    assert done.returncode == 0, done.stderr
    assert sorted(hub.tree(NAME)) == sorted([*names(made.release), ".gitattributes"])
    assert "old.bin" in hub.repositories[NAME].commits[before], "the history keeps it"


def test_a_branch_is_made_and_the_others_stay(hub, push, made):
    before = with_others(hub, push)
    done = push("--revision", "next")
    assert done.returncode == 0, done.stderr
    assert hub.repositories[NAME].branches["main"] == before
    assert sorted(hub.tree(NAME, "next")) == sorted([*names(made.release), ".gitattributes"])


def test_a_private_repository_is_made_and_a_public_one_is_not_taken_for_one(hub, run, push, tmp_path):
    done = push("--private")
    assert done.returncode == 0, done.stderr
    assert hub.repositories[NAME].private
    assert "(private)" in done.stdout
    assert run("-c", FETCH, NAME, tmp_path / "back").returncode != 0
    assert push(name="house/open").returncode == 0
    hub.asked.clear()
    refused(push("--private", "--replace", name="house/open"), 2, "house/open is public")
    assert "POST commit" not in hub.asked


def test_who_may_not_write_is_told_so_and_the_token_is_not(hub, push):
    refused(push(token="hf_wrong"), 1, "does not know this token", "401", "hf auth login")
    refused(push(token=hub.reads_only), 1, "may not write to house/small", "403", "rights", "for house")
    refused(push(token=""), 2, "there is no token", "HF_TOKEN")
    for damaged in ("hf_ri\x01ght", "hf_riéght"):
        done = push(token=damaged)
        refused(done, 2, "the token", "is damaged")
        assert "hf_ri" not in done.stderr
    assert not hub.repositories


def test_a_hub_that_repeats_the_token_has_it_blotted_out(hub, push):
    hub.repeats = True
    refused(push(token="hf_wrong"), 1, "the wrong token is (the token)")


def test_a_cut_before_the_commit_leaves_nothing_to_be_seen_and_what_came_is_not_sent_again(hub, push):
    hub.cut = ["store", "commit"]  # the client tries the first again by itself
    refused(push(), 1, f"did not reach {NAME}", "run the same command again")
    assert [*hub.tree(NAME)] == [".gitattributes"]
    assert len(hub.stored) > 1
    hub.asked.clear()
    done = push()
    assert done.returncode == 0, done.stderr
    assert "PUT store" not in hub.asked
    assert len(hub.repositories[NAME].commits) == 2


def test_a_commit_whose_answer_was_lost_is_found_by_the_next_push(hub, push):
    hub.cut = ["commit answered"]
    refused(push(), 1, f"did not reach {NAME}")
    done = push("--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new"] is False
    assert len(hub.repositories[NAME].commits) == 2


def test_what_somebody_else_wrote_meanwhile_is_not_written_over(hub, push):
    theirs = {"README.md": blob(b"theirs")}
    hub.meanwhile = lambda: hub.repositories[NAME].commit("main", theirs)
    refused(push(), 1, f"{NAME} was changed meanwhile", "412")
    assert hub.tree(NAME) == theirs


def test_a_hub_that_is_not_there_is_named(push):
    refused(push(url="http://127.0.0.1:9"), 1, f"did not reach {NAME}", "Connect")


def test_what_the_hub_leaves_out_is_found(hub, push):
    hub.ignores = (".md",)
    refused(push(), 1, "does not hold the release as it was sent", "README.md", "--replace")


def test_what_does_not_verify_is_not_published(hub, push, made, tmp_path):
    release = Path(shutil.copytree(made.release, tmp_path / "release"))
    (release / "README.md").write_text("better than it was")
    refused(push(release=release), 1, "does not verify", "files: README.md was changed", "audit verify")
    refused(push(release=tmp_path / "nowhere"), 2, "no release in")
    assert not hub.asked


@pytest.mark.parametrize("mode", ["internal", "hosted"])
def test_a_student_that_stays_in_the_house_is_not_published(hub, push, made, tmp_path, mode):
    shutil.copytree(made.workspace.root, tmp_path / ".stillhouse")
    recipe = load_recipe(made.release.parent / "recipe.json")
    changed = recipe.model_copy(update={"release": recipe.release.model_copy(update={"mode": mode})})
    done = pipeline.run(changed, open_workspace(tmp_path), stages=["release"])
    assert verify(done.run.release).ok
    refused(push("--private", release=done.run.release), 3, "may be given out", f'"{mode}"', "weights")
    assert not hub.asked


@pytest.mark.parametrize("name", ["small", "house/small/er", "house/sm all", "house/-x"])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(hub, push, name):
    refused(push(name=name), 2, "is no name of a repository", "ORG/NAME")
    assert not hub.asked


def test_a_release_that_was_fetched_can_be_pushed_on(hub, push, made, tmp_path):
    release = Path(shutil.copytree(made.release, tmp_path / "release"))
    (release / ".gitattributes").write_bytes(ATTRIBUTES + b"*.mine filter=lfs\n")
    (release / ".cache" / "huggingface").mkdir(parents=True)
    (release / ".cache" / "huggingface" / "CACHEDIR.TAG").write_text("x")
    done = push(release=release)
    assert done.returncode == 0, done.stderr
    assert sorted(hub.tree(NAME)) == sorted([*names(made.release), ".gitattributes"])
    assert hub.tree(NAME)[".gitattributes"].data == ATTRIBUTES


@pytest.mark.parametrize("by", ["decision", "authorisation"])
def test_a_release_of_which_something_was_recalled_is_not_published(hub, push, made, tmp_path, by):
    shutil.copytree(made.workspace.root, tmp_path / ".stillhouse")
    release = tmp_path / made.release.relative_to(made.workspace.root.parent)
    with Ledger.open(open_workspace(tmp_path)) as ledger:
        (row, *_) = ledger.leaves("row")
        decision = ledger.leaf(ledger.leaf(row.body["exchanges"][0]).body["decision"])
        rests_on = decision.body["authorisation"]
        which = decision.index if by == "decision" else rests_on
        found = decisions_of(ledger, by, which)
        recall(ledger, found, "a letter came", authorisation=None if by == "decision" else rests_on)
    assert verify(release).ok
    refused(push(release=release), 3, "has been recalled since", str(decision.index), "--lift")
    elsewhere = shutil.copytree(release, tmp_path.parent / f"{tmp_path.name}-elsewhere" / "release")
    assert not hub.asked
    done = push(release=elsewhere)
    assert done.returncode == 0, done.stderr
    assert "recalls    not looked at" in done.stdout
    with Ledger.open(open_workspace(tmp_path)) as ledger:
        recall(
            ledger, found, "it was a mistake", lift=True, authorisation=None if by == "decision" else rests_on
        )
    done = push(release=release)
    assert "recalls    none" in done.stdout, done.stderr
