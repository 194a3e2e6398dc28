"""Accounts watched off the path of requests: nothing waits, nothing that was asked is kept, and what is known
survives a restart and goes with the account."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from recorded import schema_of
from watched import (
    AT,
    ENFORCED,
    EVERYBODY,
    NOBODY,
    SECRET_WORD,
    asked,
    body,
    direct,
    evidence_of,
    standing_of,
    watching,
)

from stillhouse.errors import UsageError
from stillhouse.gateway import watching as module
from stillhouse.gateway.steps import Steps, forget_in
from stillhouse.gateway.store.changing import Act, Conflict
from stillhouse.gateway.store.standings import Step
from stillhouse.gateway.watching import Watching
from stillhouse.guard.config import Detection
from stillhouse.guard.evidence import observe
from stillhouse.guard.ladder import Standing
from stillhouse.guard.likeness import month_of
from stillhouse.ledger import Ledger
from stillhouse.workspace import open_workspace

watched = partial(watching, Watching)


def put(made, count, who="acct_1", first=0):
    for number in range(first, first + count):
        made.put(who, "chat/completions", body(number, who), 50, AT + number, 300)


def test_what_is_known_survives_a_restart(store):
    with watched(store) as made:
        put(made, 20)
    with watched(store) as made:
        put(made, 20, first=20)
        made.flush(60)
        assert evidence_of(store) == direct(40)
        assert made.observed == 20


def test_accounts_that_no_longer_fit_into_memory_are_taken_up_again(file_store):
    names = [f"acct_{number}" for number in range(12)]
    with watched(file_store, lines=NOBODY, held=5) as made:
        for number in range(6):
            for name in names:
                put(made, 1, name, number)
        made.flush(60)
        assert {evidence_of(file_store, name) == direct(6, name) for name in names} == {True}


def test_a_full_queue_is_counted_and_nobody_waits(file_store, monkeypatch):
    go, held = threading.Event(), threading.Event()

    def hold(*words):
        held.set()
        go.wait(60)
        return observe(*words)

    monkeypatch.setattr(module, "observe", hold)
    with watched(file_store, lines=NOBODY) as made:
        put(made, 1)
        assert held.wait(20)
        began = time.perf_counter()
        put(made, module.WAITING + 500)
        assert time.perf_counter() - began < 5.0
        assert made.unobserved["the queue was full"] >= 500 - module.BATCH
        big = made.unobserved.total()
        made.put("acct_2", "chat/completions", body(0), 5, AT, module.WAITING_BYTES + 1)
        assert made.unobserved.total() == big + 1
        go.set()
        made.flush(120)
        assert made.observed + made.unobserved.total() == module.WAITING + 502


def test_a_store_that_fails_is_counted_and_harms_no_request(file_store):
    with watched(file_store, lines=NOBODY) as made:
        with closing(sqlite3.connect(Path(file_store.folder) / "standings.sqlite")) as db:
            db.execute("ALTER TABLE evidence RENAME TO elsewhere")
        put(made, 3)
        wait_for(lambda: made.unobserved["the store failed"] == 3)
        with closing(sqlite3.connect(Path(file_store.folder) / "standings.sqlite")) as db:
            db.execute("ALTER TABLE elsewhere RENAME TO evidence")
        put(made, 2)
        wait_for(lambda: made.observed == 2)


def wait_for(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nothing_that_was_said_is_kept(file_store):
    with watched(file_store) as made:
        put(made, 30)
    folder = Path(file_store.folder)
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert SECRET_WORD.encode() not in data
    words = {word for number in range(30) for word in body(number)["messages"][0]["content"].split()}
    # Six of the digits a to f may stand in a hash by chance
    assert not [word for word in words if set(word) - set("abcdef") and word.encode() in data]


def test_off_looks_at_nothing_and_shadow_takes_nothing(file_store):
    with watched(file_store, Detection(mode="off")) as made:
        put(made, 5)
        made.flush(20)
        assert made.observed == 0
        made.apply(Detection(step_hours=0.0), EVERYBODY)
        put(made, 5)
        made.flush(20)
        assert made.observed == 5
        standing = standing_of(file_store)
        assert (standing.rung, standing.shadow) == ("review", True)


def test_each_step_is_a_leaf_and_a_row_that_was_changed_is_told(file_store):
    with watched(file_store) as made:
        put(made, 6)
        made.flush(20)
        assert standing_of(file_store).rung == "review"
        asked(
            file_store, lambda steps: steps.decide("acct_1", "kill", ENFORCED, "Ada", "it goes on", AT + 10)
        )
    with closing(Steps(file_store)) as steps:
        trail = steps.standings.steps("acct_1")
        assert [step.act for step in trail] == ["kill", *["step"] * 4]
        assert [steps.differs(step) for step in trail] == [""] * 5
        assert steps.ledger.verify().ok
        leaf = steps.ledger.leaf(trail[0].leaf)
        assert leaf.body == {
            "act": "kill", "from": "review", "mode": "enforce", "replica": steps.replica,
            "step": trail[0].id, "to": "kill",
        }  # fmt: skip
        assert b"acct_1" not in leaf.data
    with closing(sqlite3.connect(Path(file_store.folder) / "standings.sqlite")) as db:
        db.execute("UPDATE standing_step SET who = 'Bob' WHERE act = 'kill'")
        db.commit()
    with closing(Steps(file_store)) as steps:
        told = {step.act: steps.differs(step) for step in steps.standings.steps("acct_1")}
        assert "says something else" in told["kill"]


def test_a_step_of_a_process_that_died_before_its_leaf_gets_one(file_store):
    with closing(Steps(file_store)) as steps:
        after = Standing("acct_1", "notify", AT, False, "copying_answers", AT)
        row = Step(
            0, "acct_1", AT, "step", "ladder", "observe", "notify", False, "copying_answers", 1.5, "[]", "",
            steps.replica, None,
        )  # fmt: skip
        assert steps.standings.take(Standing("acct_1"), after, row) is not None
    with closing(Steps(file_store)) as steps:
        (step,) = steps.standings.steps("acct_1")
        assert steps.differs(step) == ""
        assert len(list(steps.ledger.leaves("standing"))) == 1


def test_two_who_would_step_at_once_take_one_step(store):
    with closing(Steps(store)) as one, closing(Steps(store)) as two:
        before, after = Standing("acct_1"), Standing("acct_1", "notify", AT, False, "copying_answers", AT)
        assert one.lapse(before, after, AT) is not None
        assert two.lapse(before, after, AT) is None
        assert len(one.standings.steps("acct_1")) == 1


def test_an_account_that_is_forgotten_leaves_nothing(store):
    with watched(store) as made:
        put(made, 6)
        put(made, 6, "acct_2")
        made.flush(60)
        asked(store, lambda steps: steps.appeal("acct_1", "we sell encyclopaedias", AT + 9))
        forget_in(store, "acct_1", Act("Ada", AT + 20, "closed"))
        made.flush(60)
        assert evidence_of(store) is None
        assert evidence_of(store, "acct_2") is not None
    with closing(Steps(store)) as steps:
        assert [step.act for step in steps.standings.steps("acct_1")] == ["forget"]
        assert steps.standings.highest(month_of(int(AT) // 86_400))[0][0] == "acct_2"
        contents = [steps.ledger.contents(leaf.index)["step"] for leaf in steps.ledger.leaves("standing")]
        assert not [
            each for each in contents if each is not None and b"acct_1" in each and b"forget" not in each
        ]
        assert steps.ledger.verify().ok
    with Ledger.open(open_workspace(Path(store.folder))) as ledger:
        assert len(list(ledger.leaves("tombstone"))) == 1
    data = b"".join(path.read_bytes() for path in Path(store.folder).rglob("*") if path.is_file())
    assert b"encyclopaedias" not in data


def test_two_processes_erase_the_same_at_once(file_store):
    with watched(file_store) as made:
        put(made, 6)
        made.flush(60)
        with closing(Steps(file_store)) as other:
            to_erase = other.standings.to_erase
            other.standings.forget(other.standings.steps("acct_1")[0]._replace(act="forget"))
            rows = to_erase(other.replica)
            wait_for(lambda: not to_erase(other.replica))
            other.standings.to_erase = lambda _: rows  # as it was before the other one began
            assert other.erase()
            assert other.ledger.verify().ok


def test_replicas_keep_evidence_of_their_own_and_share_the_standing(server, tmp_path):
    with schema_of(server, tmp_path / "one") as first:
        second = first.model_copy(update={"folder": str(tmp_path / "two")})
        with watched(first) as one, watched(second) as two:
            put(one, 6)
            one.flush(60)
            assert standing_of(second).rung == "review"
            put(two, 3, first=6)
            two.flush(60)
            known = asked(first, lambda steps: steps.standings.ranked(10))
            assert sorted(requests for _, _, requests, _ in known) == [3, 6]
            asked(
                second, lambda steps: steps.decide("acct_1", "kill", ENFORCED, "Ada", "it goes on", AT + 10)
            )
            assert standing_of(first).rung == "kill"
            trail = asked(
                second,
                lambda steps: [(each, steps.differs(each)) for each in steps.standings.steps("acct_1")],
            )
            assert trail[0][1] == ""
            assert {fault.partition(" in ")[0] for _, fault in trail[1:]} == {"its leaf is"}
            asked(second, lambda steps: steps.forget("acct_1", "Ada", "asked for", AT + 20))
            wait_for(lambda: asked(first, lambda steps: len(list(steps.ledger.leaves("tombstone")))) == 1)
            assert asked(first, lambda steps: steps.ledger.verify()).ok
            assert asked(first, lambda steps: steps.standings.ranked(10)) == []


def test_appeals_are_one_at_a_time_and_only_against_something(file_store):
    with closing(Steps(file_store)) as steps:
        with pytest.raises(Conflict, match="nothing to appeal"):
            steps.appeal("acct_1", "why", AT)
        steps.decide("acct_1", "review", ENFORCED, "Ada", "a signal of theirs fits", AT)
        for text in ("", "   ", "x" * 4001):
            with pytest.raises(UsageError, match="cannot be taken"):
                steps.appeal("acct_1", text, AT)
        opened = steps.appeal("acct_1", "why", AT + 1)
        assert [each.id for each in steps.standings.appeals()] == [opened.appeal]
        with pytest.raises(Conflict, match="is open"):
            steps.appeal("acct_1", "why", AT + 2)
        with pytest.raises(UsageError, match="needs a reason"):
            steps.decide("acct_1", "keep", ENFORCED, "Ada", " ", AT + 3)
        steps.decide("acct_1", "keep", ENFORCED, "Ada", "it fits too well", AT + 3)
        assert steps.standings.appeals() == []
        assert steps.appeal("acct_1", "again", AT + 4).appeal


def test_a_step_lapses_by_itself_and_evidence_expires(file_store, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(module, "TIDY_SECONDS", 0.0)
    now = [AT]
    with watched(file_store, clock=lambda: now[0]) as made:
        put(made, 1)
        made.flush(20)
        assert standing_of(file_store).rung == "notify"
        now[0] = AT + 31 * 86_400
        wait_for(lambda: standing_of(file_store).rung == "observe")
        assert asked(file_store, lambda steps: steps.standings.steps("acct_1"))[0].act == "lapse"
        assert evidence_of(file_store) is not None
        now[0] = AT + 91 * 86_400
        wait_for(lambda: evidence_of(file_store) is None)


def test_highest_scores_are_kept_by_month(file_store):
    with watched(file_store, lines=NOBODY) as made:
        put(made, 5)
        made.put("acct_1", "chat/completions", body(0), 50, AT + 40 * 86_400, 300)
        made.flush(20)
        first, second = (
            asked(file_store, lambda steps, m=month: steps.standings.highest(m))
            for month in (month_of(int(AT) // 86_400), month_of(int(AT + 40 * 86_400) // 86_400))
        )
        assert [row[0] for row in first] == [row[0] for row in second] == ["acct_1"]
        assert first[0][1] != second[0][1]
