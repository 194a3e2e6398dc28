"""Leaves of what a gateway served."""

import pytest

from stillhouse.ledger import Ledger

BODY = {
    "count": 2,
    "first": "2026-11-22T09:30:00.120000Z",
    "group": 7,
    "last": "2026-11-22T09:31:00.080000Z",
    "replica": "eu-1",
    "root": "9d" * 32,
}


def test_a_ledger_with_what_was_served_verifies(either_workspace):
    with Ledger.open(either_workspace) as ledger:
        ledger.append("served", BODY)
        ledger.append("decision", {"verdict": "allow"}, {"terms": b"x"})
        ledger.checkpoint()
        assert ledger.verify().ok
        assert [leaf.body for leaf in ledger.leaves("served")] == [BODY]


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0}, {"count": "many"}, {"count": None}, {"root": "9d"}, {"root": "zz" * 32}, {"root": 5},
        {"replica": None}, {"first": None},
    ],
)  # fmt: skip
def test_a_leaf_that_covers_nothing_is_found(file_workspace, wrong):
    with Ledger.open(file_workspace) as ledger:
        ledger.append(
            "served", {name: value for name, value in {**BODY, **wrong}.items() if value is not None}
        )
        verification = ledger.verify()
        assert not verification.ok
        assert "is not a served" in verification.checks[0].detail
