"""Ledgers that earlier versions wrote, one for each state of the schema, open and verify here and go on."""

import contextlib
import gzip
import shutil
from pathlib import Path

import pytest

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.database import MIGRATIONS
from stillhouse.ledger.quarantine import quarantined
from stillhouse.workspace import init_workspace

EARLIER = Path(__file__).parent / "earlier"


@pytest.fixture(params=sorted(p.name for p in EARLIER.iterdir()))
def earlier(request, tmp_path):
    """A workspace as that version left it: 18 answers, one failure, one lost request, an erasure, another
    signing key. Its private keys are not kept."""
    folder = EARLIER / request.param
    workspace = init_workspace(tmp_path)
    workspace.ledger.write_bytes(gzip.decompress((folder / "ledger.sqlite.gz").read_bytes()))
    shutil.copy(folder / "signing.pub", workspace.verifying_key)
    return workspace, (folder / "checkpoint").read_bytes()


def test_an_earlier_ledger_verifies_and_is_anchored(earlier):
    workspace, kept = earlier
    with Ledger.open(workspace) as ledger:
        done = ledger.verify(kept)
        assert done.ok, [check for check in done.checks if not check.ok]
        assert done.anchored
        counts = ledger.attempts()
        assert (counts.answered, counts.failed, counts.unknown) == (18, 1, 1)


def test_what_an_earlier_version_recorded_is_found_and_added_to(earlier):
    workspace, _ = earlier
    with Ledger.open(workspace) as ledger:
        exchanges = list(ledger.leaves("exchange"))
        (stored, *_) = ledger.exchanges([exchanges[0].body["key"]])
        assert stored.leaf == exchanges[0].index
        assert ledger.contents(exchanges[0].index) == {"request": b"question 0", "response": b"answer 0"}
        assert set(ledger.contents(exchanges[2].index).values()) == {None}  # erased then
        size = ledger.size()
        attempt = ledger.begin("ab" * 32, "run-2", "p", "m", 0, reserved=0.5).result()
        leaf = ledger.answer(attempt, {"decision": 2}, {"response": b"more"}, cost=0.25).result()
        assert leaf == size
        assert ledger.spent("run-2").known == pytest.approx(0.25)
        ledger.erase(exchanges[5].index, "a test")
    with Ledger.open(workspace) as ledger:
        assert ledger.verify().ok


def test_what_an_earlier_version_recalled_is_asked_no_more(earlier):
    workspace, _ = earlier
    with Ledger.open(workspace) as ledger:
        held = quarantined(ledger)
        assert bool(held) is any(leaf.body.get("decisions") for leaf in ledger.leaves("correction"))
        for decision in (leaf.index for leaf in ledger.leaves("decision")):
            with pytest.raises(GateRefused) if decision in held else contextlib.nullcontext():
                ledger.begin("cd" * 32, "r", "p", "m", 0, decision=decision).result()


def test_every_state_of_the_schema_before_this_one_has_its_ledger():
    names = [step.__name__.partition("_")[0] for step in MIGRATIONS]
    assert set(names[:-1]) <= {p.name for p in EARLIER.iterdir()} <= set(names)
