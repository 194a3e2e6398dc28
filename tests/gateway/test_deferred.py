"""What a cascade defers is kept by consent only, sealed, and not learned from once that is taken back."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx2 as httpx
import pytest
from cascade_house import Student, Teacher, calibration, cascade
from gate import SECRET, ask
from tiny import TEMPLATE, tiny_model

from stillhouse.cascade.calibration import written
from stillhouse.gateway.deferred import deferred_exchanges
from stillhouse.gateway.store.changing import Act
from stillhouse.gateway.store.place import pepper_of, sealing_key
from stillhouse.gateway.store.register import Register
from stillhouse.models import weights_digest

UNSURE = ("unsure", "stops")
MODELS = {"unsure": UNSURE, "back": UNSURE, "gone": UNSURE, "next": UNSURE}
MODELS |= {"sure": ("sure", "stops"), "length": ("unsure", "length")}
SETTINGS = {
    "terms": {"version": "2", "document": "terms.txt", "training": "forbidden"},
    "record": {"deferred": "with_consent"},
}


@pytest.fixture(scope="module")
def student():
    with Student() as server:
        yield server


@pytest.fixture(scope="module")
def teacher():
    with Teacher() as server:
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory, student, teacher):
    """A gateway with a model for each test."""
    folder = tmp_path_factory.mktemp("deferred")
    (folder / "terms.txt").write_text("Agree or not.")
    settings = SETTINGS | {"terms": SETTINGS["terms"] | {"document": str(folder / "terms.txt")}}
    with cascade(folder, student, teacher, MODELS, settings=settings) as gate:
        yield gate


class Desk:
    """The register, as an operator has it beside a gateway that runs."""

    def __init__(self, made):
        self.pepper = pepper_of(made.config.store, os.environ)
        self.made = made

    def order(self, path, body):
        headers = {"authorization": f"Bearer {SECRET}", "x-operator": "tester"}
        base = self.made.url.removesuffix("/v1") + "/admin/api"
        with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
            done = client.post(path, json=body)
        assert done.status_code == 200, done.text
        return done.json()

    def agree(self, account):
        self.order(f"/accounts/{account}/training", {"version": "2"})

    def withdraw(self, account):
        self.order(f"/accounts/{account}/training/withdraw", {})

    def deferred(self, model, since=0.0):
        store = self.made.config.store
        with closing(Register(store, self.pepper)) as register:
            return list(deferred_exchanges(store, sealing_key(self.pepper), register, model, since))

    def kept(self, model, count):
        """What was deferred, once so many texts of it are on disk: that is a moment after the answers."""
        deadline = time.monotonic() + 20
        while True:
            found = self.deferred(model)
            if sum(not isinstance(one, str) for one in found) == count:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def question(text):
    return [{"role": "user", "content": text}]


def test_only_what_was_deferred_of_whoever_agreed_by_these_terms_is_kept(made, teacher):
    desk = Desk(made)
    agreed, never, earlier = made.new_key(), made.new_key({"name": "b", "consent": True}), made.new_key()
    with closing(Register(made.config.store, desk.pepper)) as register:
        register.agree(Act("ann", time.time(), "a letter"), earlier[0], "1")
    desk.agree(agreed[0])
    for account, key in (agreed, never, earlier):
        said = ask(made, "unsure", key=key, messages=question(f"say 7 of {account}"), max_tokens=50)
        assert said.headers["x-stillhouse-cascade"] == "teacher; unsure"
    assert ask(made, "sure", key=agreed[1]).headers["x-stillhouse-cascade"] == "student; sure"
    assert (
        ask(made, "unsure", stream=True, key=agreed[1], messages=question("say 8 streamed")).status_code
        == 200
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert ask(made, "unsure", key=agreed[1], tools=tools).status_code == 200
    assert ask(made, "length", key=agreed[1]).status_code == 200
    with httpx.Client() as client:
        shown = client.get(
            made.url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {SECRET}"}
        )
    lost = 'stillhouse_guard_texts_lost_total{of="deferred",reason="not to be read, cut short or empty"} 1.0'
    assert lost in shown.text
    found = desk.kept("unsure", 2)
    kept = [one for one in found if not isinstance(one, str)]
    assert [(one.messages[0]["content"], one.answer) for one in kept] == [
        (f"say 7 of {agreed[0]}", "7"),
        ("say 8 streamed", "8"),
    ]
    first = kept[0]
    assert (first.why, first.consent, first.account, first.model) == ("unsure", "2", agreed[0], "unsure")
    assert (first.upstream, first.called, first.sampling) == (teacher.url, "stops", {"max_tokens": 50})
    assert sorted(one for one in found if isinstance(one, str)) == [
        "it is erased, or was not kept",
        "it was no plain chat, and not kept",
        "its account has not agreed to training",
    ]
    assert desk.deferred("sure") == []
    until(lambda: desk.deferred("length") == ["it is erased, or was not kept"])
    data = b"".join(path.read_bytes() for path in Path(made.config.store.folder).rglob("*") if path.is_file())
    assert b"streamed" not in data
    assert agreed[0].encode() in data


def test_a_consent_that_is_taken_back_ends_the_keeping_and_the_taking_for_good(made):
    desk = Desk(made)
    account, key = made.new_key()
    desk.agree(account)
    ask(made, "back", key=key, messages=question("say 1 before"))
    desk.withdraw(account)
    ask(made, "back", key=key, messages=question("say 1 between"))
    desk.agree(account)
    ask(made, "back", key=key, messages=question("say 1 after"))
    found = desk.kept("back", 1)
    assert found[:2] == [
        "it was kept under a consent that was taken back since",
        "it is erased, or was not kept",
    ]
    assert found[2].messages[0]["content"] == "say 1 after"
    assert desk.deferred("back", since=found[2].at + 60) == []
    desk.withdraw(account)
    assert desk.deferred("back") == ["its account took its consent to training back"] * 3


def test_erasing_an_accounts_texts_erases_what_was_deferred(made):
    desk = Desk(made)
    account, key = made.new_key()
    desk.agree(account)
    ask(made, "gone", key=key, messages=question("say 1 to be erased"))
    desk.kept("gone", 1)
    done = desk.order(f"/accounts/{account}/texts/erase", {"reason": "asked"})
    assert done == {"account": account, "texts": 1, "complete": True}
    assert desk.deferred("gone") == ["it is erased, or was not kept"]


@pytest.mark.slow
def test_the_next_student_is_trained_from_what_a_guard_kept_by_one_command(made, teacher):
    desk, folder = Desk(made), made.folder
    student = tiny_model(folder / "student", template=TEMPLATE)
    (folder / "cascade.json").write_text(json.dumps(written(calibration(student=weights_digest(student)))))
    agreed, never = made.new_key(), made.new_key()
    desk.agree(agreed[0])
    for n in range(4):
        ask(made, "next", key=agreed[1], messages=question(f"say {n} deferred"))
    ask(made, "next", key=never[1], messages=question("say 9 never agreed"))
    desk.kept("next", 4)
    rows = [{"prompt": f"say {n % 5} {n}", "reference": str(n % 5), "scorer": "exact"} for n in range(30)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = RECIPE.format(url=teacher.url)
    (folder / "recipe.toml").write_text(recipe)
    command = [sys.executable, "-m", "stillhouse.cli", "run", "recipe.toml", "--from-cascade", "guard.json"]

    def run(*more):
        return subprocess.run(
            [*command, *more], cwd=folder, capture_output=True, text=True, check=False, timeout=300
        )

    unclear = run("--json")
    assert unclear.returncode == 2
    assert "unsure, back, gone, next, sure, length" in unclear.stdout + unclear.stderr
    teacher.bodies.clear()
    done = run("--model", "next", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["landed"]["taken"] == 4
    assert found["landed"]["left_out"] == {"its account has not agreed to training": 1}
    assert found["landed"]["student"] == str(student)
    assert len(teacher.bodies) == 30  # the recipe's own prompts, and none of those that were deferred
    (folder / "recipe.toml").write_text(recipe.replace("[prompts]", "[collect]\nsamples = 2\n[prompts]"))
    refused = run("--model", "next")
    assert refused.returncode == 2
    assert "several answers" in refused.stderr


RECIPE = """
[run]
name = "next"
[teacher]
model = "stops"
endpoint = "{url}"
terms = {{ document = "terms.txt", read_on = 2026-01-02, declared_by = "a test" }}
[prompts]
source = "prompts.jsonl"
[student]
init = "embedded:base"
[train]
epochs = 1
dtype = "float32"
[evaluate]
held_out = 0.2
resamples = 50
baseline = false
"""
