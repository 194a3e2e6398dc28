"""Where accounts stand and which act as one, over the admin API of a gateway that runs: what is read, what a
person decides, and that it is the same trail as the command line's."""

from __future__ import annotations

import time
from contextlib import closing

import httpx2 as httpx
import pytest
from acting import MONTH
from gate import SECRET, gate, tree_of

from stillhouse.gateway.steps import Steps
from stillhouse.gateway.store.standings import Watched
from stillhouse.guard.clusters import Cluster
from stillhouse.guard.config import Detection
from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.likeness import Sketch
from stillhouse.guard.seen import seen_of

ENFORCED = {"mode": "enforce", "step_hours": 0.0}


@pytest.fixture(scope="module")
def at(tmp_path_factory, behind):
    folder = tmp_path_factory.mktemp("standings")
    with gate(folder, tree_of(folder, behind.url, "whole") | {"detection": ENFORCED}) as made:
        yield made


@pytest.fixture(scope="module")
def client(at):
    headers = {"authorization": f"Bearer {SECRET}", "x-operator": "Ada"}
    url = at.url.removesuffix("/v1") + "/admin/api"
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def ask(client):
    """(status, answer) of a request of an operator."""

    def asked(path, body=None):
        answer = client.get(path) if body is None else client.post(path, json=body)
        return answer.status_code, answer.json()

    return asked


def in_store(at, question):
    with closing(Steps(at.config.store)) as steps:
        return question(steps)


def known(at, account):
    """As if the account had asked, and its evidence was written."""
    evidence = Evidence()
    for number in range(9):
        words = f"Explain how tide number {number} comes about, step by step."
        body = {"model": "whole", "messages": [{"role": "user", "content": words}]}
        use = observe(evidence, seen_of(bytes(32), body, "chat/completions", 300, MONTH + number))
    row = Watched(account, evidence.packed(), use, 0.75, 9, MONTH, 0, Sketch().packed())
    in_store(at, lambda steps: steps.standings.save("one", [row], [], []))


def test_a_standing_is_read_decided_appealed_and_undone(at, ask):
    account, key = at.new_key()
    known(at, account)
    status, told = ask(f"/accounts/{account}/standing")
    assert (status, told["rung"], told["score"], told["requests"], told["steps"]) == (
        200, "observe", 0.75, 9, [],
    )  # fmt: skip
    assert told["pattern"].startswith("Looks like")
    assert {"reasoning asked for in words", "long answers"} & {each["words"] for each in told["reasons"]}
    status, told = ask(f"/accounts/{account}/standing/decide", {"decision": "kill", "reason": "now"})
    assert (status, "after the review" in told["error"]["message"]) == (422, True)
    for decision, rung in (("review", "review"), ("kill", "kill")):
        order = {"decision": decision, "reason": f"we {decision} it"}
        status, told = ask(f"/accounts/{account}/standing/decide", order)
        assert (status, told["rung"], told["code"]) == (200, rung, "by_hand")
    assert account in [each["account"] for each in ask("/standings")[1]["data"]]
    with at.client(key) as customer:
        said = customer.post("/standing/appeal", json={"text": "We test our own product."})
        assert said.status_code == 201
    (appeal,) = [each for each in ask("/appeals")[1]["data"] if each["account"] == account]
    assert (appeal["said"], appeal["witness"]) == ("We test our own product.", "shown")
    assert ask(f"/accounts/{account}/standing/decide", {"decision": "keep", "reason": "no"})[0] == 200
    assert ask(f"/accounts/{account}/standing/decide", {"decision": "undo", "reason": "ours"})[1]["rung"] == (
        "observe"
    )
    told = ask(f"/accounts/{account}/standing/declare", {"use": "evaluation", "reason": "contract"})[1]
    assert told["declared"] == "evaluation"
    assert [(each["act"], each["who"], each["witness"]) for each in told["steps"]] == [
        ("declare", "Ada", "shown"), ("undo", "Ada", "shown"), ("keep", "Ada", "shown"),
        ("appeal", "customer", "shown"), ("kill", "Ada", "shown"), ("review", "Ada", "shown"),
    ]  # fmt: skip


def test_an_account_is_forgotten_and_the_act_has_a_leaf(at, ask, client):
    account = at.new_key()[0]
    known(at, account)
    cluster = Cluster((account, *(at.new_key()[0] for _ in range(7))), "settings", 1, 0.9, 0.001)
    id = in_store(at, lambda steps: steps.found(cluster, 682, MONTH))
    ask(f"/accounts/{account}/standing/decide", {"decision": "review", "reason": "their secret plan"})
    before = ask(f"/accounts/{account}/standing")[1]["steps"]
    answer = client.delete(f"/accounts/{account}/standing", params={"reason": "asked under Article 17"})
    assert (answer.status_code, answer.json()) == (200, {"account": account, "complete": True})
    told = ask(f"/accounts/{account}/standing")[1]
    assert (told["rung"], told["score"], told["requests"], told["clusters"]) == ("observe", None, None, [])
    (step,) = told["steps"]
    assert (step["act"], step["who"], step["said"], step["witness"]) == (
        "forget", "Ada", "asked under Article 17", "shown",
    )  # fmt: skip
    assert account not in [each["account"] for each in ask(f"/clusters/{id}")[1]["accounts"]]
    leaves = [each["leaf"] for each in before]
    left = in_store(at, lambda steps: [steps.ledger.contents(leaf) for leaf in leaves])
    assert left == [{"step": None}, {"step": None}]


@pytest.mark.parametrize(
    ("account", "query", "operator", "status"),
    [
        ("{id}", {}, "Ada", 400),
        ("{id}", {"reason": "x", "account": "acct_2"}, "Ada", 400),
        ("{id}", {"reason": "x"}, "", 400),
        ("acct_none", {"reason": "x"}, "Ada", 404),
    ],
)
def test_nobody_is_forgotten_by_an_order_that_is_not_whole(at, client, account, query, operator, status):
    path = f"/accounts/{account.replace('{id}', at.account)}/standing"
    answer = client.delete(path, params=query, headers={"x-operator": operator})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/accounts/acct_none/standing", None, 404),
        ("/accounts/acct_none/standing/decide", {"decision": "review", "reason": "x"}, 404),
        ("/accounts/{id}/standing/decide", {"decision": "promote", "reason": "x"}, 400),
        ("/accounts/{id}/standing/decide", {"decision": "review"}, 400),
        ("/accounts/{id}/standing/decide", {"decision": "undo", "reason": "x"}, 422),
        ("/accounts/{id}/standing/declare", {"use": "x" * 65, "reason": "x"}, 400),
        ("/clusters/9999", None, 404),
        ("/clusters/one", None, 404),
        ("/clusters/9999/decide", {"decision": "review", "reason": "x"}, 404),
        ("/clusters/9999/decide", {"decision": "kill", "reason": "x"}, 400),
        ("/standings?limit=0", None, 400),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(at, ask, path, body, status):
    answered, said = ask(path.replace("{id}", at.account), body)
    assert answered == status
    assert said["error"]["message"]


def test_a_cluster_is_listed_and_put_to_review(at, ask):
    accounts = [at.new_key()[0] for _ in range(8)]
    cluster = Cluster(tuple(accounts), "settings", 1, 0.9, 0.001)
    id = in_store(at, lambda steps: steps.found(cluster, 681, MONTH))
    (listed,) = [each for each in ask("/clusters")[1]["data"] if each["id"] == id]
    assert (listed["found"], listed["month"], listed["answer"], listed["accounts"]) == (8, "2026-10", "", [])
    assert "the same model, system message and settings" in listed["why"]
    assert {each["rung"] for each in ask(f"/clusters/{id}")[1]["accounts"]} == {"observe"}
    status, told = ask(f"/clusters/{id}/decide", {"decision": "review", "reason": "they are one"})
    assert (status, told["answer"], told["who"]) == (200, "review", "Ada")
    assert {(each["rung"], each["code"]) for each in told["accounts"]} == {("review", "cluster")}
    of_one = ask(f"/accounts/{accounts[0]}/standing")[1]
    assert of_one["clusters"] == [id]
    assert [(each["act"], each["witness"]) for each in of_one["steps"]] == [
        ("review", "shown"), ("cluster", "shown"),
    ]  # fmt: skip


def test_clusters_that_wait_are_a_figure(at, ask):
    def waiting():
        text = httpx.get(
            at.url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {SECRET}"}
        ).text
        return float(text.partition("\nstillhouse_guard_clusters ")[2].split()[0])

    before = in_store(at, lambda steps: steps.standings.findings.open())
    cluster = Cluster(tuple(at.new_key()[0] for _ in range(8)), "wording", 0, 0.9, 0.001)
    in_store(at, lambda steps: steps.found(cluster, 681, MONTH))
    end = time.monotonic() + 30
    while waiting() != before + 1:
        assert time.monotonic() < end


def test_where_nobody_is_watched_nothing_is_told_and_what_was_known_can_go(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole") | {"detection": Detection(mode="off").model_dump()}
    with gate(tmp_path, tree) as made:
        url = made.url.removesuffix("/v1") + "/admin/api"
        headers = {"authorization": f"Bearer {SECRET}", "x-operator": "Ada"}
        answer = httpx.get(f"{url}/standings", headers=headers)
        assert answer.status_code == 404
        assert "detection.mode is off" in answer.json()["error"]["message"]
        account = made.new_key()[0]
        known(made, account)
        path = f"{url}/accounts/{account}/standing?reason=asked"
        assert httpx.delete(path, headers=headers, timeout=30).status_code == 200
        assert in_store(made, lambda steps: steps.standings.strongest(account)) is None
