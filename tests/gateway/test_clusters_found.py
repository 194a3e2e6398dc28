"""Accounts that act as one: searched for beside the gateway, recorded with each, left to a person."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
from acting import DAY, MONTH, customers, team
from recorded import schema_of
from watched import ENFORCED, KEY, NOBODY, asked, body, standing_of

from stillhouse.gateway import searching
from stillhouse.gateway import watching as module
from stillhouse.gateway.customers import said
from stillhouse.gateway.searching import search
from stillhouse.gateway.steps import Steps
from stillhouse.gateway.store.changing import Conflict
from stillhouse.gateway.store.findings import RETAKEN
from stillhouse.gateway.store.standings import Watched
from stillhouse.gateway.watching import Watching
from stillhouse.guard.config import Store
from stillhouse.guard.likeness import Sketch, month_of

NOW = month_of(int(MONTH // DAY))


@pytest.fixture(scope="module")
def everyone():
    return customers(60) | team(20, "one")


def keep(store, sketches, month=NOW, replica=None):
    """As a gateway writes what it saw."""
    with closing(Steps(store)) as steps:
        rows = [
            Watched(name, b"", 0, 0.1, each.requests, MONTH, month, each.packed())
            for name, each in sketches.items()
        ]
        steps.standings.save(replica or steps.replica, rows, [], [])


def searched(store, look, month=NOW):
    """As the replica that comes first."""
    with closing(Steps(store)) as steps:
        assert steps.standings.findings.claim(month, look, steps.replica, MONTH)
    return search(store, month, look, "seed")


def clusters_of(store):
    with closing(Steps(store)) as steps:
        findings = steps.standings.findings
        return [(each, findings.accounts(each.id)) for each in findings.clusters()]


def trail(store, account):
    with closing(Steps(store)) as steps:
        return [(step.act, step.who, step.rung) for step in steps.standings.steps(account)]


def test_what_is_found_is_recorded_once_takes_nothing_and_is_told_to_no_customer(file_store, everyone):
    keep(file_store, everyone)
    told = searched(file_store, 2)
    assert (told["accounts"], told["clusters"], told["left"], told["unread"]) == (80, [1], 0, 0)
    ((found, accounts),) = clusters_of(file_store)
    assert found.answer == ""
    assert len(accounts) == found.found >= 16
    assert all(name.startswith("team-") for name in accounts)
    assert trail(file_store, accounts[0]) == [("cluster", "ladder", "observe")]
    assert searched(file_store, 3)["clusters"] == [1]
    with closing(Steps(file_store)) as steps:
        standing, steps_ = steps.standings.standing(accounts[0]), steps.standings.steps(accounts[0])
        assert len(steps_) == 1
        assert [steps.differs(step) for step in steps_] == [""]
        assert "cluster 1: " in steps_[0].said
        assert not [other for other in accounts[1:] if other in steps_[0].said]
        assert said(standing, steps_, ENFORCED)["steps"] == []
        assert len(list(steps.ledger.leaves("standing"))) == len(accounts)
        assert steps.ledger.verify().ok
        assert [(each.look, each.ended > 0) for each in steps.standings.findings.searches()] == [
            (3, True), (2, True),
        ]  # fmt: skip


def test_a_person_puts_them_to_review_and_the_customer_reads_why(store, everyone):
    keep(store, everyone)
    searched(store, 1)
    ((found, accounts),) = clusters_of(store)
    with closing(Steps(store)) as steps:
        steps.decide(accounts[0], "review", ENFORCED, "Ada", "a signal fits", MONTH)
        with pytest.raises(Conflict, match="no cluster 7"):
            steps.answer(7, "review", ENFORCED, "Ada", "they are one", MONTH)
        put = steps.answer(found.id, "review", ENFORCED, "Ada", "they are one", MONTH)
        assert sorted([*put, accounts[0]]) == accounts
        standing = steps.standings.standing(accounts[1])
        assert (standing.rung, standing.code, standing.shadow) == ("review", "cluster", False)
        assert steps.standings.findings.cluster(found.id).who == "Ada"
        assert steps.standings.findings.open() == 0
        told = said(standing, steps.standings.steps(accounts[1]), ENFORCED)["steps"]
        assert [(each["act"], each["why"]) for each in told] == [("review", "they are one")]


def test_what_a_person_dismissed_stays_so_and_goes_with_its_accounts(file_store, everyone):
    keep(file_store, everyone)
    searched(file_store, 1)
    ((found, accounts),) = clusters_of(file_store)
    with closing(Steps(file_store)) as steps:
        assert steps.answer(found.id, "dismiss", ENFORCED, "Ada", "one firm", MONTH) == []
    searched(file_store, 2)
    with closing(Steps(file_store)) as steps:
        assert steps.standings.findings.cluster(found.id).answer == "dismiss"
        assert steps.standings.findings.open() == 0
        assert [step.act for step in steps.standings.steps(accounts[0])] == ["dismiss", "cluster"]
        steps.forget(accounts[0], "Ada", "asked for", MONTH)
        assert accounts[0] not in steps.standings.findings.accounts(found.id)
        assert steps.ledger.verify().ok
    assert searched(file_store, 3)["accounts"] == 79
    assert accounts[0] not in clusters_of(file_store)[0][1]


def test_replicas_see_a_part_each_and_find_the_whole(server, tmp_path):
    with schema_of(server, tmp_path / "one") as store:
        for replica, part in (("one", 0), ("two", 1)):
            keep(store, customers(60, part=part) | team(20, "one", part=part), replica=replica)
        told = searched(store, 1)
        assert (told["accounts"], told["clusters"]) == (80, [1])
        ((found, _),) = clusters_of(store)
        assert found.found >= 16


def test_a_search_is_made_by_one_and_taken_over_from_one_that_died(store):
    with closing(Steps(store)) as one, closing(Steps(store)) as two:
        first, second = one.standings.findings, two.standings.findings
        assert first.claim(NOW, 1, "one", 100.0)
        assert not second.claim(NOW, 1, "two", 101.0)
        assert second.claim(NOW, 2, "two", 101.0)
        assert second.claim(NOW, 1, "two", 101.0 + RETAKEN)
        assert not first.claim(NOW, 1, "one", 102.0 + RETAKEN)
        second.ended(NOW, 1, 200.0, {"accounts": 0})
        assert not first.claim(NOW, 1, "one", 9e9)
        assert [each.replica for each in first.searches()] == ["two", "two"]


def test_a_gateway_begins_the_search_that_is_due_in_a_process_of_its_own(file_store, everyone, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    keep(file_store, everyone)
    said_ = []
    made = Watching(
        file_store,
        ENFORCED,
        NOBODY,
        KEY,
        clock=lambda: MONTH + 15 * DAY,
        log=lambda *words, **fields: said_.append((words[0], fields)),
    )
    try:
        end = time.monotonic() + 60
        while ("a search for clusters ended", {"well": True}) not in said_:
            assert time.monotonic() < end, said_
            time.sleep(0.05)
        ((found, accounts),) = clusters_of(file_store)
        assert found.month == NOW
        assert standing_of(file_store, accounts[0]).rung == "observe"
    finally:
        made.close()


def test_sketches_of_a_month_outlive_it_until_they_were_searched(file_store):
    with closing_watching(file_store) as made:
        for day in (1, 2, 40):
            made.put("acct_1", "chat/completions", body(day), 50, MONTH + day * DAY, 300)
        made.flush(60)
    with closing_watching(file_store) as made:  # and a restart between
        made.put("acct_1", "chat/completions", body(41), 50, MONTH + 41 * DAY, 300)
        made.flush(60)
        counts = asked(
            file_store,
            lambda steps: [
                [Sketch.unpacked(row).requests for _, row in steps.standings.findings.sketches(month)]
                for month in (NOW, NOW + 1, NOW + 2)
            ],
        )
        assert counts == [[2], [2], []]
        asked(file_store, lambda steps: steps.standings.expire(0.0, NOW, NOW + 1))
        assert asked(file_store, lambda steps: steps.standings.findings.sketches(NOW)) == []


def closing_watching(store):
    return closing(Watching(store, ENFORCED, NOBODY, KEY))


def test_rows_that_another_version_wrote_are_counted(file_store):
    keep(file_store, {"acct_1": Sketch(), "acct_2": Sketch()})
    with closing(Steps(file_store)) as steps:
        steps.standings.save(
            "old", [Watched("acct_3", b"", 0, 0.1, 3, MONTH, NOW, b"something else")], [], []
        )
    told = searched(file_store, 1)
    assert (told["accounts"], told["unread"], told["too_few"]) == (2, 1, 2)


def test_a_search_that_cannot_read_its_store_says_so(tmp_path):
    place = tmp_path / "guard"
    place.mkdir()
    (place / "standings.sqlite").write_bytes(b"no database" * 100)
    assert searching.begin(Store(folder=str(place)), NOW, 1, KEY).wait(60) == 1
