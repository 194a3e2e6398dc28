"""`stillhouse guard standing`, `decide`, `replay` and `calibrate` over a store that a gateway wrote."""

from __future__ import annotations

import json
import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from recorded import event
from rows import DATA

from stillhouse.gateway.record import Record
from stillhouse.gateway.steps import Steps
from stillhouse.gateway.store.place import PEPPER_BYTES, pepper_of, sealing_key
from stillhouse.gateway.store.standings import Standings, Watched
from stillhouse.guard import config
from stillhouse.guard.accounts import Account
from stillhouse.guard.clusters import Cluster
from stillhouse.guard.likeness import month_of
from stillhouse.guard.lines import read_lines

if (DATA / "traffic").exists():
    from traffic.people import person, requests

simulated = pytest.mark.skipif(not (DATA / "traffic").exists(), reason="real traces and prompts are absent")
OCTOBER = 1_790_812_800.0
LAST = month_of(int(time.time() // 86_400)) - 1


@pytest.fixture
def guard(guard, store):
    """With the same pepper in every run: what chance decides in the search for clusters hangs on it."""
    guard("init")
    pepper_of(store, {})
    Path(store.folder, "pepper.key").write_text("07" * PEPPER_BYTES)
    return guard


@pytest.fixture
def account(guard):
    return json.loads(guard("accounts", "add", "a shop", "--json"))["id"]


def past(kind, number, most):
    for each in islice(requests(person("calibrate", 3, kind, number), "calibrate", 3), most):
        yield {"account": f"{kind}/{number}", "at": each.at, "body": each.body()} | {
            "output_tokens": each.output_tokens
        }


@simulated
def test_a_replay_says_who_would_have_been_stepped_up_when_and_why(guard):
    rows = [row for kind in ("distiller:pure", "chat") for n in range(2) for row in past(kind, n, 300)]
    lines = [json.dumps(row) for row in rows]
    lines += [json.dumps({"account": "a7", "at": 1.0, "output_tokens": 5}), "no json", "[]"]
    lines += [json.dumps({"account": "a7", "at": "noon", "body": {}, "output_tokens": 5}), ""]
    Path("month.jsonl").write_text("\n".join(lines))
    told = json.loads(guard("replay", "month.jsonl", "--json"))
    assert told["requests"] == len(rows)
    assert told["thresholds"] == "simulated traffic"
    assert told["skipped"] == {
        "no body: an event alone holds no text": 1, "no JSON": 1, "no object": 1,
        "account, at, output_tokens or route is missing or wrong": 1,
    }  # fmt: skip
    flagged = {each["account"] for each in told["rungs"]["notify"]}
    assert flagged == {"distiller:pure/0", "distiller:pure/1"}
    assert told["rungs"]["kill"] == []
    assert max(told["highest"][f"chat/{n}"] for n in range(2)) < 1.0
    first = min(told["rungs"]["notify"], key=lambda each: each["at"])
    assert first["request"] < 60
    said = guard("replay", "month.jsonl")
    assert "notify            2" in said
    assert "Looks like" in said
    assert "1 rows were not looked at: no body" in said


@simulated
def test_a_replay_reads_the_texts_that_were_kept(guard, store):
    pepper = pepper_of(store, {})
    settings = config.Record(text="with_consent")
    consents = Account("a0", None, "n", "default", consent=True)
    with closing(Record(store, settings, {}, sealing_key(pepper))) as record:
        for n, row in enumerate(past("distiller:pure", 0, 80)):
            at = time.time() - 3600 + 10 * n
            kept = event(10 * n, at=at, output_tokens=row["output_tokens"], route="/v1/chat/completions")
            record.put(kept)
            record.put_text(kept.id, consents, json.dumps(row["body"]).encode(), b"{}")
        record.put(event(3, at=time.time()))
        record.put(event(4, at=time.time(), status=429))
        record.texts.flush(30)
    told = json.loads(guard("replay", "--json"))
    assert told["requests"] == 80
    assert told["skipped"] == {"its text was not kept": 1}
    assert [each["account"] for each in told["rungs"]["notify"]] == ["a0"]


def test_thresholds_are_set_by_what_accounts_reached_last_month(guard, store):
    draw = Random(5)
    with closing(Standings(store)) as standings:
        reached = [(f"acct_{n}", LAST, draw.gauss(0.2, 0.2)) for n in range(1200)]
        standings.save("one", [], reached, [])
        standings.save("two", [], [("acct_0", LAST, 9.0), ("acct_1", LAST + 1, 99.0)], [])
    said = guard("calibrate", "thresholds.toml")
    lines = read_lines("thresholds.toml")
    assert lines.flag.accounts == 1200
    assert sum(score > lines.flag.score for _, _, score in reached[1:]) + 1 == 11
    assert lines.kill.score > lines.flag.score
    assert "of accounts like these 1,200, at most 1 in 100 a month" in said
    assert "flag, use declared  none: 1 in 100 needs 99 accounts, and there are 0" in said
    Path("guard.toml").write_text(
        Path("guard.toml").read_text() + '\n[detection]\nmode = "enforce"\nthresholds = "thresholds.toml"\n'
    )
    assert "detection" not in guard("check", code=1)
    assert "nothing is known of 2001-01" in guard("calibrate", "x.toml", "--month", "2001-01", code=2)


def test_stopped_accounts_are_no_measure(guard, store, account):
    with closing(Standings(store)) as standings:
        standings.save("one", [], [(account, LAST, 5.0), ("acct_2", LAST, 0.1)], [])
    Path("guard.toml").write_text(Path("guard.toml").read_text() + '\n[detection]\nmode = "enforce"\n')
    guard("decide", account, "review", "--reason", "a signal fits", "--as", "Ada")
    guard("decide", account, "kill", "--reason", "it does", "--as", "Ada")
    assert json.loads(guard("calibrate", "x.toml", "--json"))["flag"]["accounts"] == 1


def test_what_is_decided_is_shown_with_its_leaf(guard, store, account):
    with closing(Standings(store)) as standings:
        standings.save("one", [Watched("acct_9", b"", 0, 0.7, 12, time.time(), LAST, b"")], [], [])
    assert "kill comes after the review" in guard("decide", account, "kill", "--reason", "x", code=2)
    assert "needs a reason" in guard("decide", account, "review", code=2)
    assert "is no decision" in guard("decide", account, "promote", "--reason", "x", code=2)
    assert "no account acct_x" in guard("decide", "acct_x", "review", "--reason", "x", code=2)
    guard("declare", account, "evaluation", "--reason", "by contract")
    guard("decide", account, "review", "--reason", "a signal fits", "--as", "Ada")
    listed = guard("standing")
    assert "mode shadow" in listed
    assert account in listed
    assert "acct_9" in listed
    told = guard("standing", account)
    assert "leaf 1" in told
    assert "review by Ada" in told
    assert "declared      evaluation" in told
    guard("decide", account, "undo", "--reason", "it was ours")
    assert "forgotten" in guard("forget", account, "--reason", "asked for")
    assert "evaluation" not in guard("standing", account)
    assert guard("appeals") == "none\n"


def test_nobody_is_stopped_by_simulated_thresholds_without_a_person(guard):
    Path("guard.toml").write_text(
        Path("guard.toml").read_text() + '\n[detection]\nmode = "enforce"\nautomatic = true\n'
    )
    assert "error    detection.thresholds" in guard("check", code=1)


def test_accounts_that_act_as_one_are_listed_and_decided_on(guard, store):
    assert "no cluster was found" in guard("clusters")
    assert "no search was made yet" in guard("clusters")
    accounts = [json.loads(guard("accounts", "add", f"shop {n}", "--json"))["id"] for n in range(8)]
    with closing(Steps(store)) as steps:
        steps.found(Cluster(tuple(accounts), "settings", 0, 0.91, 0.0004), LAST, time.time())
        steps.standings.findings.claim(LAST, 5, "one", time.time())
        steps.standings.findings.claim(LAST + 1, 1, "one", time.time())
        told = {"compared": 900, "accounts": 1_000, "groups": 31, "left": 2, "clusters": [1]}
        steps.standings.findings.ended(LAST, 5, time.time(), told)
    listed = guard("clusters")
    assert "8 accounts ask with the same model, system message and settings; 91% of pairs" in listed
    assert "with a probability of at most 0.0004" in listed
    assert "nobody decided on it" in listed
    assert "900 of 1,000 accounts compared in 31 groups, 2 of them left for lack of time" in listed
    assert "it has not ended" in listed
    assert accounts[0] in guard("clusters", 1)
    assert "there is no cluster 2" in guard("clusters", 2, code=2)
    assert "is no decision on a cluster" in guard("clusters", 1, "kill", "--reason", "x", code=2)
    assert "needs a reason" in guard("clusters", 1, "review", code=2)
    done = json.loads(guard("clusters", 1, "review", "--reason", "one firm", "--as", "Ada", "--json"))
    assert {(each["rung"], each["code"]) for each in done["accounts"]} == {("review", "cluster")}
    assert "review by Ada" in guard("clusters", 1)
    assert "cluster by ladder: observe  cluster" in guard("standing", accounts[0])


def test_a_replay_says_which_accounts_act_as_one(guard):
    draw, rows = Random(4), []
    for number in range(60):
        ours = number < 20
        first = 11.0 if ours else draw.uniform(0, 20)
        last = 14.0 if ours else draw.uniform(first + 3, 30)
        system = "Be brief." if ours else f"Program {number}."
        for _ in range(24):
            text = " ".join(f"{draw.choice('abcdef')}{draw.randrange(10**6)}" for _ in range(10))
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            at = OCTOBER + 86_400 * draw.uniform(first, last)
            body = {"model": "m", "messages": messages}
            rows.append({"account": f"{ours}-{number}", "at": at, "body": body, "output_tokens": 90})
    rows.sort(key=lambda row: row["at"])
    Path("month.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (cluster,) = json.loads(guard("replay", "month.jsonl", "--json"))["clusters"]
    assert cluster["month"] == "2026-10"
    assert len(cluster["accounts"]) >= 16
    assert all(name.startswith("True") for name in cluster["accounts"])
    assert "2026-10: 1 clusters among 60 accounts; 0 asked too little" in guard("replay", "month.jsonl")
