"""Two processes at once: what one lifts is not what the other one ended in between."""

from datetime import date

import pytest

from stillhouse.errors import GateRefused, LedgerError
from stillhouse.ledger import Ledger
from stillhouse.ledger.permissions import append_answers, decide_by, grant, revoke, standings
from stillhouse.ledger.quarantine import recall, withdrawn
from stillhouse.workspace import Workspace


@pytest.fixture
def two(either_workspace):
    """The same ledger, opened by two."""
    with Ledger.open(either_workspace) as one, Ledger.open(Workspace(either_workspace.root)) as other:
        yield one, other


@pytest.fixture
def permitted(two):
    """A permission, and a decision that rests on it."""
    one, _ = two
    permission = grant(one, {"what": "permission"}, {}, None, date(2026, 1, 1), None)
    return permission, decide_by(one, {"authorisation": permission}, [permission])


def meanwhile(ledger, what):
    """Let `what` happen after this ledger's next call has read, and before it writes."""
    write = ledger.write

    def writes(operation):
        ledger.write = write
        what()
        return write(operation)

    ledger.write = writes


def test_lifting_a_recall_undoes_no_revocation_of_that_moment(two, permitted):
    one, other = two
    permission, decision = permitted
    recall(one, [decision], "a letter came", authorisation=permission)
    meanwhile(one, lambda: revoke(other, permission, "the contract was ended"))
    recall(one, [decision], "it was answered", lift=True, authorisation=permission)
    revoked = standings(other)[permission].revoked
    assert revoked is not None
    assert other.leaf(revoked).body["what"] == "permission revoked"
    assert withdrawn(other) == {}
    with pytest.raises(LedgerError, match="cannot be revoked"):
        revoke(other, permission, "twice")


def test_a_recall_of_that_moment_stands_in_no_revocations_way(two, permitted):
    one, other = two
    permission, decision = permitted
    meanwhile(one, lambda: recall(other, [decision], "a letter came", authorisation=permission))
    ended = revoke(one, permission, "the contract was ended")
    assert standings(other)[permission].revoked == ended
    recall(other, [decision], "it was answered", lift=True, authorisation=permission)
    assert standings(other)[permission].revoked == ended


def test_a_second_recall_and_its_lift_leave_no_trace(two, permitted):
    one, other = two
    permission, decision = permitted
    for ledger in (one, other, one):
        recall(ledger, [decision], "a letter came", authorisation=permission)
        assert standings(one)[permission].revoked is not None
        recall(other, [decision], "it was answered", lift=True, authorisation=permission)
        assert standings(one)[permission].revoked is None


def test_nothing_is_asked_or_imported_in_any_process_under_what_is_recalled(two):
    one, other = two
    decision, apart = (one.append("decision", {"what": "a test", "n": n}) for n in (1, 2))
    begin = [lambda under: other.begin("ab" * 32, "r", "p", "m", 0, decision=under).result()]
    begin.append(lambda under: append_answers(other, under, [({"decision": under}, {"response": b"x"})]))
    for each in begin:
        each(decision)
    (leaf,) = recall(one, [decision], "a letter came").leaves
    for each in begin:
        with pytest.raises(GateRefused, match=f"leaf {decision} allows no further") as caught:
            each(decision)
        assert f"recalled (leaf {leaf})" in caught.value.why
        each(apart)
    recall(one, [decision], "it was answered", lift=True)
    for each in begin:
        each(decision)
