from datetime import date

import pytest
from maker import NOW, TEXT, row_toml

from stillhouse.ledger import Ledger
from stillhouse.recipe import Declaration
from stillhouse.workspace import init_workspace


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path), clock=lambda: NOW) as ledger:
        yield ledger


@pytest.fixture
def terms(tmp_path):
    (tmp_path / "terms.txt").write_bytes(TEXT)
    return Declaration(
        document=str(tmp_path / "terms.txt"), read_on=date(2026, 11, 20), declared_by="R. Ames"
    )


@pytest.fixture
def maker(ledger):
    """The workspace's own row about a vendor; call it to change the row."""

    def write(**changes):
        ledger.workspace.terms.mkdir(exist_ok=True)
        text = row_toml(**{"hosts": ["api.maker.example"], **changes})
        (ledger.workspace.terms / "maker.toml").write_text(text)

    write()
    return write
