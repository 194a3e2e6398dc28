"""The pages about accounts that seem to copy the model: what they show, and what a person decides there."""

from __future__ import annotations

import json
import time
from random import Random

import pytest
from console_house import house, token_in, tree_of

from stillhouse.gateway.console.shown import plain
from stillhouse.guard.clusters import Cluster
from stillhouse.guard.lines import Lines, shipped

EVERYBODY = Lines.model_validate(
    shipped().model_dump() | {"flag": {"score": -1e9, "alarm": 0.5, "accounts": 9}, "source": "a test"}
)
HOSTILE = "we sell \u202eencyclopaedias <script>alert(1)</script>"


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standings")
    tree = tree_of(folder) | {"detection": {"mode": "enforce", "step_hours": 0.0}}
    with house(folder, tree) as made:
        made.watching.apply(made.config.detection, EVERYBODY)
        yield made


@pytest.fixture
def ada(at):
    with at.log_in("Ada Lovelace") as client:
        yield client


@pytest.fixture
def stepped(at):
    """An account that came to review by its own requests."""
    account = at.account("a customer that asks")
    draw = Random(3)
    for number in range(8):
        words = " ".join("".join(draw.choices("abcdefgh", k=6)) for _ in range(20))
        body = {"model": "large", "messages": [{"role": "user", "content": words}]}
        at.watching.put(account, "chat/completions", json.dumps(body).encode(), 40, time.time() + number)
    at.watching.flush(60)
    return account


def send(ada, account, decision, reason="looked at it", sure="yes", seen=None):
    page = ada.get(f"/admin/standings/{account}").text
    now = page.split('name="seen" value="')[1].split('"')[0]
    form = {"token": token_in(page), "seen": now if seen is None else seen, "decision": decision}
    return ada.post(f"/admin/standings/{account}/decide", data=form | {"reason": reason, "sure": sure})


def test_the_pages_say_who_stands_where_and_why(at, ada, stepped):
    listed = ada.get("/admin/standings").text
    assert "a customer that asks" in listed
    assert "<b>review</b>" in listed
    page = ada.get(f"/admin/standings/{stepped}").text
    assert "by a test" in page
    assert page.count("<b>step</b>") == 4
    assert "leaf " in page
    for words in ("Looks like ", "What it shows", "copying_"):
        assert words in page


def test_a_person_stops_an_account_hears_its_appeal_and_undoes_it(at, ada, stepped):
    assert send(ada, stepped, "kill", reason="").status_code == 422
    assert send(ada, stepped, "kill", sure="").status_code == 422
    assert at.watching.in_force(stepped).rung == "review"
    done = send(ada, stepped, "kill")
    assert done.status_code == 303
    assert "The account is stopped." in ada.get(done.headers["location"]).text
    assert at.watching.in_force(stepped).rung == "kill"
    at.watching.do(lambda steps: steps.appeal(stepped, HOSTILE, time.time()))
    for page in ("/admin/standings", f"/admin/standings/{stepped}"):
        text = ada.get(page).text
        assert plain("\u202e") in text
        assert "&lt;script&gt;" in text
        assert "<script>alert" not in text
    assert send(ada, stepped, "keep", reason="the shop is not there").status_code == 303
    assert send(ada, stepped, "undo", reason="it is, we looked again").status_code == 303
    assert at.watching.in_force(stepped) is None
    trail = at.watching.do(lambda steps: steps.standings.steps(stepped))
    assert [(step.act, step.who) for step in trail[:4]] == [
        ("undo", "Ada Lovelace"), ("keep", "Ada Lovelace"), ("appeal", "customer"), ("kill", "Ada Lovelace"),
    ]  # fmt: skip
    assert (
        "console: act",
        {"operator": "Ada Lovelace", "act": "decide undo", "subject": f"account:{stepped}"},
    ) in (at.said)


def test_what_changed_meanwhile_or_cannot_be_decided_is_refused(at, ada, stepped):
    assert send(ada, stepped, "undo", seen="0").status_code == 409
    assert send(ada, stepped, "keep").status_code == 422
    assert send(ada, stepped, "promote").status_code == 400
    fresh = at.account("another")
    assert send(ada, fresh, "kill").status_code == 422
    assert ada.get("/admin/standings/acct_nobody").status_code == 404
    assert at.watching.in_force(stepped).rung == "review"


def test_an_account_that_is_closed_is_forgotten(at, ada, stepped):
    page = ada.get(f"/admin/accounts/{stepped}/close").text
    form = {"token": token_in(page), "seen": page.split('name="seen" value="')[1].split('"')[0]}
    done = ada.post(f"/admin/accounts/{stepped}/close", data=form | {"reason": "it left", "sure": "yes"})
    assert done.status_code == 303, done.text
    assert at.watching.in_force(stepped) is None
    assert at.watching.do(lambda steps: steps.standings.strongest(stepped)) is None
    assert [each.act for each in at.watching.do(lambda steps: steps.standings.steps(stepped))] == ["forget"]


@pytest.fixture
def found(at):
    """A cluster of eight accounts, and its number."""
    accounts = [at.account(f"one of many {n}") for n in range(8)]
    cluster = Cluster(tuple(accounts), "settings", 0, 0.91, 0.0004)
    return at.watching.do(lambda steps: steps.found(cluster, 681, time.time())), accounts


def answer(ada, id, decision, reason="one firm"):
    page = ada.get(f"/admin/clusters/{id}").text
    form = {"token": token_in(page), "decision": decision, "reason": reason}
    return ada.post(f"/admin/clusters/{id}/decide", data=form)


def test_accounts_that_act_as_one_are_shown_and_left_to_a_person(at, ada, found):
    id, accounts = found
    at.watching.do(lambda steps: steps.standings.findings.claim(681, 1, "elsewhere", time.time()))
    assert "wait for a person" in ada.get("/admin/standings").text.replace("waits", "wait")
    listed = ada.get("/admin/clusters").text
    for words in (f"cluster {id}", "waits for a person", "it has not ended", "91% of pairs", "≤ 0.0004"):
        assert words in listed, words
    page = ada.get(f"/admin/clusters/{id}").text
    assert page.count("one of many") == 8
    assert f'href="/admin/clusters/{id}"' in ada.get(f"/admin/standings/{accounts[0]}").text
    assert at.watching.in_force(accounts[0]) is None
    assert answer(ada, id, "review", "").status_code == 422
    assert answer(ada, id, "kill").status_code == 400
    done = answer(ada, id, "review", HOSTILE)
    assert done.status_code == 422, "what cannot be shown as it is"
    done = answer(ada, id, "review", "they are one <b>")
    assert done.status_code == 303
    shown = ada.get(done.headers["location"]).text
    assert "All of them stand at review." in shown
    assert "they are one &lt;b&gt;" in shown
    assert {at.watching.in_force(account).code for account in accounts} == {"cluster"}
    assert ada.get("/admin/clusters/9999").status_code == 404
    assert ada.get("/admin/clusters/one").status_code == 404


def test_a_cluster_that_is_dismissed_leaves_its_accounts_where_they_are(at, ada, found):
    id, accounts = found
    assert answer(ada, id, "dismiss").status_code == 303
    assert at.watching.in_force(accounts[0]) is None
    assert "dismiss" in ada.get("/admin/clusters").text


def test_where_nothing_is_watched_the_page_says_so(tmp_path):
    tree = tree_of(tmp_path) | {"detection": {"mode": "off"}}
    with house(tmp_path, tree) as made, made.log_in() as client:
        for path in ("/admin/standings", "/admin/clusters", "/admin/clusters/1"):
            assert "detection.mode is off" in client.get(path).text
