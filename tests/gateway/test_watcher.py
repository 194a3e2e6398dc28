"""The process in which accounts are watched, and the gateway's word with it."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from functools import partial

import orjson
import psutil
import pytest
from gate import SECRET, gate, tree_of
from watched import AT, ENFORCED, EVERYBODY, NOBODY, asked, body, direct, evidence_of, watching

from stillhouse.gateway import watcher as module
from stillhouse.gateway.store.standings import Standings
from stillhouse.gateway.watcher import Watcher
from stillhouse.guard.config import Detection

watched = partial(watching, Watcher)


def put(made, count, who="acct_1", first=0):
    for number in range(first, first + count):
        made.put(who, "chat/completions", orjson.dumps(body(number, who)), 50, AT + number)


def process(parent=None):
    children = psutil.Process(parent).children()
    (found,) = [each for each in children if "stillhouse.gateway.detector" in each.cmdline()]
    return found


def test_it_knows_what_watching_in_this_process_would_know(store):
    with watched(store) as made:
        put(made, 20)
        made.flush(60)
        assert evidence_of(store) == direct(20)
        assert (made.observed, made.unobserved.total(), made.waiting) == (20, 0, 0)
        put(made, 20, first=20)
    assert evidence_of(store) == direct(40)


def test_a_step_that_it_takes_holds_in_the_gateway_and_is_said(file_store):
    said = []
    with watched(file_store, log=lambda event, **fields: said.append((event, fields))) as made:
        put(made, 300)
        made.flush(60)
        standing = made.in_force("acct_1")
        assert standing.rung == "review"
        assert made.rungs() == {"review": 1}
        with closing(Standings(file_store)) as standings:
            assert standings.standing("acct_1").rung == "review"
    assert [fields["rung"] for event, fields in said if event == "step"] == [
        "notify", "throttle", "withhold", "review",
    ]  # fmt: skip


def test_a_decision_elsewhere_holds_here_within_a_second(store):
    with watched(store) as made:
        put(made, 6)
        made.flush(60)
        assert made.in_force("acct_1").rung == "review"
        asked(store, lambda steps: steps.decide("acct_1", "undo", ENFORCED, "Ada", "a mistake", AT + 10))
        began = time.monotonic()
        until(lambda: made.in_force("acct_1") is None)
        assert time.monotonic() - began < 5.0  # a second, on a machine that is not at its limit


def test_one_that_was_killed_is_replaced_and_what_it_forgot_is_counted(file_store, monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 0.0)
    with watched(file_store, lines=NOBODY) as made:
        put(made, 20)
        made.flush(60)
        killed = process()
        killed.kill()
        killed.wait(20)
        put(made, 7, first=20)
        until(lambda: made.unobserved[module.ENDED] == 7)
        put(made, 20, first=20)
        made.flush(60)
        assert evidence_of(file_store) == direct(40)
        assert (made.observed, made.unobserved) == (40, {module.ENDED: 7})


def test_one_that_hangs_holds_up_nobody(file_store, monkeypatch):
    with watched(file_store, lines=NOBODY) as made:
        put(made, 1)
        made.flush(60)
        monkeypatch.setattr(module, "PATIENCE", 0.5)
        hung = process()
        hung.suspend()
        began = time.perf_counter()
        put(made, module.WAITING + 500)
        assert time.perf_counter() - began < 5.0
        until(lambda: made.unobserved[module.ENDED] > 0)
        assert not hung.is_running()


def test_settings_that_were_read_anew_reach_it(file_store):
    with watched(file_store, Detection(mode="off")) as made:
        put(made, 5)
        made.flush(20)
        assert made.observed == 0
        made.apply(ENFORCED, EVERYBODY)
        put(made, 300)
        made.flush(60)
        assert made.in_force("acct_1") is not None
        made.apply(Detection(step_hours=0.0), EVERYBODY)
        assert made.in_force("acct_1") is None


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_gateway_and_keeps_what_it_knows(tmp_path, behind, sign):
    tree = tree_of(tmp_path, behind.url, "whole") | {"detection": {"mode": "shadow"}}
    with gate(tmp_path, tree) as made, made.client() as client:
        for number in range(3):
            said = {"model": "whole", "messages": body(number)["messages"]}
            assert client.post("/chat/completions", json=said).status_code == 200
        child = process(made.process.pid)
        until(lambda: "stillhouse_guard_requests_observed_total 3.0" in metrics_of(made))
        made.process.send_signal(sign)
        child.wait(30)
        made.process.wait(30)
    with closing(Standings(made.config.store)) as standings:
        assert [(account, requests) for account, _, requests, _ in standings.ranked(5)] == [(made.account, 3)]


def metrics_of(made):
    with made.client(SECRET) as operator:
        return operator.get(made.url.removesuffix("/v1") + "/metrics").text


def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
