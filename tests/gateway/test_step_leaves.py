"""One leaf for each step, whoever else opens the steps while it is taken, and whatever died in between."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from watched import ENFORCED

from stillhouse.errors import StorageError
from stillhouse.gateway import steps as module
from stillhouse.gateway.steps import Steps
from stillhouse.gateway.store.standings import Standings


class Died(Exception):
    pass


def decide(steps, account):
    steps.decide(account, "review", ENFORCED, "Ada", "seen", 5.0)


def leaves(steps):
    """(step, leaf) as the ledger has them, and as the trail does."""
    written = [(leaf.body["step"], leaf.index) for leaf in steps.ledger.leaves("standing", 0)]
    return sorted(written), sorted(steps.standings._read("SELECT id, leaf FROM standing_step"))


def test_who_opens_the_steps_gives_no_leaf_to_one_that_is_being_taken(store, monkeypatch):
    looked, unlinked = threading.Event(), Standings.unlinked

    def seen(self, replica):
        found = unlinked(self, replica)
        if found:
            looked.set()
        return found

    monkeypatch.setattr(Standings, "unlinked", seen)
    with closing(Steps(store)) as steps:
        other = threading.Thread(target=lambda: Steps(store).close())
        append = steps.ledger.append

        def slowly(*words):
            other.start()
            assert looked.wait(60)
            other.join(0.5)  # time to do what it must not
            return append(*words)

        monkeypatch.setattr(steps.ledger, "append", slowly)
        decide(steps, "acct_1")
        other.join(60)
        assert not other.is_alive()
        written, told = leaves(steps)
    assert len(written) == 1
    assert written == told


@pytest.mark.parametrize("appended", [False, True])
def test_what_died_before_a_later_step_gets_one_leaf(store, monkeypatch, appended):
    """Between the store and the ledger, or between the ledger and the store again."""

    def dies(*words):
        raise Died

    with closing(Steps(store)) as steps, closing(Steps(store)) as other:
        with monkeypatch.context() as patched:
            patched.setattr(*((steps.standings, "link") if appended else (steps.ledger, "append")), dies)
            with pytest.raises(Died):
                decide(steps, "acct_1")
        decide(other, "acct_2")
    with closing(Steps(store)) as steps:
        written, told = leaves(steps)
    assert len(written) == 2
    assert written == told


def test_a_link_that_dies_half_way_is_gone_on_with(store, monkeypatch):
    def dies(*words):
        raise Died

    with closing(Steps(store)) as steps:
        for account, part, name in (
            ("acct_1", steps.ledger, "append"),
            ("acct_2", steps.standings, "link"),
            ("acct_3", steps.ledger, "append"),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(part, name, dies)
                with pytest.raises(Died):
                    decide(steps, account)
    append = module.Ledger.append

    def then_dies(*words):
        append(*words)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(module.Ledger, "append", then_dies)
        with pytest.raises(Died):
            Steps(store)
    with closing(Steps(store)) as steps:
        written, told = leaves(steps)
    assert len(written) == 3
    assert written == told


def test_a_process_that_holds_the_steps_for_ever_is_told_of(file_store, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with closing(Steps(file_store)) as steps, closing(Steps(file_store)) as other:
        with other._alone(), pytest.raises(StorageError, match="no step can be taken"):
            decide(steps, "acct_1")
        decide(steps, "acct_1")
        assert len(leaves(steps)[0]) == 1
