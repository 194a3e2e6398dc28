"""What the operator writes down of itself: one file, read by the gate and by a release."""

from dataclasses import fields
from datetime import date

import pytest

from stillhouse.errors import UsageError
from stillhouse.terms.facts import Operator, Publisher
from stillhouse.terms.operator import _KEYS, read_operator, read_publisher

WHOLE = """
monthly_users = 4
territory = "DE"
commercial = true

[provider]
name = "Ex"
market_date = 2026-12-01

[base]
training_flop = 2e22
"""


def test_each_reader_gets_its_part(workspace):
    assert read_operator(workspace) == Operator()
    assert read_publisher(workspace) == Publisher()
    workspace.operator.write_text(WHOLE)
    assert read_operator(workspace) == Operator(monthly_users=4, territory="DE", commercial=True)
    assert read_publisher(workspace) == Publisher(
        "Ex", market_date=date(2026, 12, 1), base_training_flop=2e22
    )


def test_every_fact_has_its_key():
    assert set(_KEYS[""]) == {field.name for field in fields(Operator)}
    keys = {*_KEYS["provider"], *(f"base_{key}" for key in _KEYS["base"])}
    assert keys == {field.name for field in fields(Publisher)}


@pytest.mark.parametrize("read", [read_operator, read_publisher])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("teritory = 3", "did you mean `territory`"),
        ("[provider]\nnane = 'Ex'", "did you mean `name`"),
        ("[base]\nflops = 1e24", "did you mean `training_flop`"),
        ("[zz]\nx = 1", "valid here: monthly_users"),
        ("monthly_users = true", "give a whole number, 0 or more"),
        ("yearly_revenue_usd = -1", "give a whole number, 0 or more"),
        ("commercial = 1", "give true or false"),
        ("territory = ' '", "give a code such as DE"),
        ("[provider]\nname = 3", "give a text"),
        ("[provider]\nmarket_date = 2026-12-01T10:00:00", "give a day such as 2026-12-01"),
        ("[base]\ntraining_flop = nan", "give a number above 0"),
        ("[base]\ntraining_flop = true", "give a number above 0"),
        ("provider = 3", "give a table, [provider]"),
        ("[provider", "docs/gate.md"),
        ("\udcff", "docs/gate.md"),
    ],
)
def test_what_is_not_understood_is_refused_by_both(workspace, read, text, said):
    """The gate too refuses a slip in what only a release needs: before anything is paid for."""
    workspace.operator.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        read(workspace)
    assert said in caught.value.mend
    assert str(workspace.operator) in caught.value.what
