"""`stillhouse guard prove`, `shown` and `accounts erase-texts` over a store that a gateway wrote."""

import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from recorded import SECRET, event, record

from stillhouse.gateway.store.texts import TextStore
from stillhouse.gateway.texts import Texts
from stillhouse.guard import config
from stillhouse.guard.accounts import Account


@pytest.fixture
def guard(guard):
    guard("init")
    return guard


def test_one_event_is_shown_to_whoever_has_the_key(guard, store, tmp_path):
    with closing(record(store)) as kept:
        for n in range(50):
            kept.put(event(n))
    told = json.loads(guard("prove", "req_000007", "one.proof", "--json"))
    shown = json.loads(guard("shown", "one.proof", "--key", told["key"], "--json"))
    assert shown["event"]["account"] == "a7"
    assert shown["event"]["id"] == "req_000007"
    assert shown["under"]["leaf"] == 0
    assert "a7" in guard("shown", "one.proof", "--key", told["key"])
    proof = Path("one.proof").read_text()
    assert "req_000008" not in proof
    Path("forged.proof").write_text(proof.replace(r"\"a7\"", r"\"a8\""))
    assert "not shown to have been recorded" in guard("shown", "forged.proof", "--key", told["key"], code=1)
    other = config.Store(folder=str(tmp_path / "other"))
    record(other).close()
    key = tmp_path / "other" / ".stillhouse" / "keys" / Path(told["key"]).name
    guard("shown", "one.proof", "--key", key, code=1)
    assert "never recorded" in guard("prove", "req_nothing", "none.proof", code=1)
    assert not Path("none.proof").exists()


def test_the_texts_of_one_account_are_erased_and_that_is_logged(guard, store):
    ids = [json.loads(guard("accounts", "add", name, "--consent", "--json"))["id"] for name in ("a", "b")]
    with closing(Texts(store, config.Record(text="with_consent"), SECRET, lambda *_, **__: None)) as texts:
        for number, id in enumerate(ids * 3):
            account = Account(id, None, "a customer", "default", consent=True, created=time.time())
            texts.put(f"req_{number}", account, b"a question", b"an answer")
    assert "reason" in guard("accounts", "erase-texts", ids[0], code=2)
    assert "acct_none" in guard("accounts", "erase-texts", "acct_none", "--reason", "asked", code=2)
    done = json.loads(guard("accounts", "erase-texts", ids[0], "--reason", "asked", "--json"))
    assert done == {"account": ids[0], "texts": 3, "complete": True}
    with closing(TextStore(store)) as kept:
        assert [kept.read(f"req_{number}") is None for number in range(6)] == [True, False] * 3
    log = json.loads(guard("changes", "--subject", f"account:{ids[0]}", "--json"))["data"]
    assert (log[-1]["what"], log[-1]["reason"], log[-1]["after"]) == ("erase texts", "asked", {"texts": 3})
