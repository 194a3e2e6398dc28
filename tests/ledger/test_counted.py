"""What is had under written permissions: when it began, and that all of it is counted."""

from datetime import UTC, date, datetime, timedelta

import pytest

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger, batches
from stillhouse.ledger.permissions import append_answers, decide_by, grant, revoke, standings

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


def imports(decision, numbers):
    return [({"key": f"{n:064x}", "decision": decision}, {"response": b"a"}) for n in numbers]


def test_imported_answers_count_and_are_covered_all_or_not_at_all(ledger, permission, decision, clock):
    append_answers(ledger, decision, imports(decision, range(8)))
    assert standings(ledger)[permission].used == 8
    size = ledger.size()
    with pytest.raises(GateRefused, match="does not cover") as caught:
        append_answers(ledger, decision, imports(decision, range(8, 11)))
    assert "8 of 10" in caught.value.why
    assert (ledger.size(), standings(ledger)[permission].used) == (size, 8)
    clock[0] += timedelta(seconds=1)
    with pytest.raises(GateRefused, match="does not cover"):
        append_answers(ledger, decision, imports(decision, [8]))
    clock[0] = NOW
    revoke(ledger, permission, "enough")
    with pytest.raises(GateRefused, match="does not cover"):
        append_answers(ledger, decision, imports(decision, [8]))
    assert sum(1 for _ in ledger.leaves("import")) == 8


def test_verifying_counts_again_what_was_had_under_a_permission(ledger, permission, decision):
    begun = [
        ledger.begin(f"{n:064x}", "r", "p", "m", 0, reserved=0.1, decision=decision).result()
        for n in range(4)
    ]
    ledger.answer(begun[0], {"decision": decision}, TEXTS, 0.0).result()
    ledger.fail(begun[1], "refused").result()
    ledger.fail(begun[2], "rate_limited", billed=False).result()
    append_answers(ledger, decision, imports(decision, range(8, 10)))
    assert standings(ledger)[permission].used == 5
    assert ledger.verify().ok
    ledger.write(lambda db: db.execute("UPDATE permission SET used = 1").rowcount).result()
    (failed,) = (check for check in ledger.verify().checks if not check.ok)
    said = f"under the permission in leaf {permission} 5 exchanges were had, and 1 are counted"
    assert (failed.name, failed.detail) == ("attempts", said)
