"""What is had under written permissions: when it began, and that all of it is counted."""

from datetime import UTC, date, datetime, timedelta

import pytest

from stillhouse.ledger import Ledger, batches
from stillhouse.ledger.permissions import decide_by, grant

NOW = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
STAMP = "2026-12-31T23:59:59.000000Z"
TEXTS = {"request": b"q", "response": b"a"}


@pytest.fixture
def clock():
    """A clock that tests set."""
    return [NOW]


@pytest.fixture
def ledger(workspace, clock):
    with Ledger.open(workspace, clock=lambda: clock[0]) as ledger:
        yield ledger


@pytest.fixture
def permission(ledger):
    """The leaf of a permission of ten exchanges that ends with the year."""
    return grant(ledger, {"grantor": "Maker"}, {}, 10, date(2026, 1, 1), date(2026, 12, 31))


@pytest.fixture
def decision(ledger, permission):
    return decide_by(ledger, {"permissions": [permission]}, [permission])


def test_an_answer_says_when_it_was_asked_for(ledger, decision, clock):
    alone = ledger.begin("ab" * 32, "r", "p", "m", 0, decision=decision).result()
    lines = [batches.NewLine(f"{n:064x}", f"p{n}", 0, None) for n in range(100)]
    batch = batches.begin_batch(
        ledger, run="r", teacher=("e", "m", ""), decision=0, price=None, shard="ab" * 32, lines=lines
    )
    clock[0] += timedelta(hours=20)
    attempts = [alone, *(line.attempt for line in batches.lines_of(ledger, batch))]
    answers = [ledger.answer(attempt, {"decision": decision}, TEXTS) for attempt in attempts]
    leaves = [ledger.leaf(answer.result()) for answer in answers]
    assert {leaf.body["began"] for leaf in leaves} == {STAMP}
    assert {leaf.time for leaf in leaves} == {"2027-01-01T19:59:59.000000Z"}
    assert ledger.verify().ok
