"""Over the admin API of a gateway that runs: an account's texts erased, an event shown."""

import time

import httpx2 as httpx
from gate import SECRET, gate, tree_of

from stillhouse.gateway.store.events import Events
from stillhouse.gateway.store.texts import TextStore
from stillhouse.guard.proof import read_event_proof
from stillhouse.ledger.keys import read_public_key
from stillhouse.workspace import Workspace

HELLO = [{"role": "user", "content": "hello"}]


def operator(made) -> httpx.Client:
    headers = {"authorization": f"Bearer {SECRET}", "x-operator": "tester"}
    return httpx.Client(base_url=made.url.removesuffix("/v1") + "/admin/api", headers=headers, timeout=60)


def until(done, seconds: float = 10.0) -> bool:
    """An event is on disk a moment after its answer."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
    return done()


def test_what_was_just_said_is_erased_and_an_event_can_be_shown(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole")
    tree["record"] = {"text": "with_consent"}
    with gate(tmp_path, tree) as made:
        account, key = made.new_key({"name": "a customer", "consent": True})
        body = {"model": "whole", "messages": HELLO}
        with made.client(key) as client:
            said = [client.post("/chat/completions", json=body) for _ in range(3)]
        ids = [each.headers["x-request-id"] for each in said]
        with operator(made) as asked:
            path = f"/accounts/{account}/texts/erase"
            assert asked.post(path, json={}).status_code == 400
            assert asked.post("/accounts/acct_none/texts/erase", json={"reason": "x"}).status_code == 404
            done = asked.post(path, json={"reason": "asked"})
            assert (done.status_code, done.json()) == (
                200,
                {"account": account, "texts": 3, "complete": True},
            )
            assert until(lambda: asked.get(f"/events/{ids[0]}/proof").status_code == 409), "under no leaf yet"
            assert asked.get("/events/req_nothing/proof").status_code == 404
        assert made.stop() == 0
        texts, events = TextStore(made.config.store), Events(made.config.store)
        assert [texts.read(id) for id in ids] == [None] * 3
        assert {event.id for event in events.newest(most=10)} == set(ids), "events stay"
        texts.close()
        events.close()
        made.start()
        with operator(made) as asked:
            proof = asked.get(f"/events/{ids[1]}/proof")
        assert proof.status_code == 200
        public = read_public_key(Workspace(tmp_path / "store" / ".stillhouse"))
        assert read_event_proof(proof.content, public).event.account == account
