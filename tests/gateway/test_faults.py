"""Stores that fail while requests run: they are refused as long, and served again without a restart."""

import asyncio
import json
import resource
import sqlite3
import time
from types import SimpleNamespace

import pytest
from gate import gate, tree_of

from stillhouse.errors import StorageError
from stillhouse.gateway import rebuilding
from stillhouse.gateway.exchange import Exchange
from stillhouse.gateway.patience import Patience
from stillhouse.gateway.state import Trail
from stillhouse.gateway.store.counts import CountsLost, StoreDown
from stillhouse.gateway.store.events import Events
from stillhouse.guard.asked import Asked
from stillhouse.guard.limits import Step, Used

FEW = {"requests_per_minute": 500}
HELLO = [{"role": "user", "content": "hello"}]


def ask(made, **more):
    with made.client() as client:
        return client.post("/chat/completions", json={"model": "whole", "messages": HELLO, **more})


def refused(said) -> bool:
    return said.status_code == 503 and said.json()["error"]["code"] == "store_down"


def asked_until_refused(made) -> list:
    """What was lent ahead of the disk is still granted: under FEW at most two blocks of 16 requests."""
    said = [ask(made)]
    while not refused(said[-1]) and len(said) < 50:
        said.append(ask(made))
    assert all(each.status_code == 200 for each in said[:-1])
    assert len(said) <= 40
    return said


def until(done, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(done())


def events(made) -> list:
    kept = Events(made.config.store)
    try:
        return kept.newest(most=10_000)
    finally:
        kept.close()


def test_while_the_disk_is_full_nothing_is_granted_and_afterwards_it_goes_on(tmp_path, behind):
    """A limit on the length of files is what the kernel can be made to answer a write with."""
    tree = tree_of(tmp_path, behind.url, "whole")
    tree["tiers"]["default"]["limits"] = FEW
    with gate(tmp_path, tree) as made:
        pid = made.process.pid
        assert ask(made).status_code == 200
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
        behind.seen.clear()
        granted = len(asked_until_refused(made)) - 1
        said = [ask(made) for _ in range(5)]
        assert all(map(refused, said)), [each.text for each in said]
        assert said[0].headers["retry-after"]
        assert behind.seen["whole"] == granted
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert until(lambda: ask(made).status_code == 200, 15)
        assert made.stop() == 0
    seen = events(made)
    assert len([event for event in seen if event.reason == "store_down"]) >= 5, "recorded when there was room"
    assert len(seen) == len({event.id for event in seen})


@pytest.mark.parametrize("name", ["counts.sqlite", "accounts.db"])
def test_a_database_that_somebody_locks_is_waited_for_and_then_refused(tmp_path, behind, name):
    tree = tree_of(tmp_path, behind.url, "whole")
    tree["tiers"]["default"]["limits"] = FEW
    with gate(tmp_path, tree) as made:
        assert ask(made).status_code == 200
        db = sqlite3.connect(tmp_path / "store" / name, isolation_level=None)
        db.execute("BEGIN EXCLUSIVE")
        said = asked_until_refused(made) if name == "counts.sqlite" else [ask(made)]
        db.execute("ROLLBACK")
        db.close()
        assert refused(said[-1]) == (name == "counts.sqlite"), "accounts are only read, which nobody hinders"
        assert until(lambda: ask(made).status_code == 200, 10)
        with made.client() as client:
            assert client.get("/models").status_code == 200
        assert made.stop() == 0
    assert all(event.ended in ("whole", "refused") for event in events(made))


@pytest.mark.parametrize("name", ["counts.sqlite", "counts.sqlite-wal"])
def test_counts_that_somebody_takes_away_are_missed_within_a_second(tmp_path, behind, name):
    """SQLite would write on into the file that is gone, and a restart would know of nothing."""
    tree = tree_of(tmp_path, behind.url, "whole")
    with gate(tmp_path, tree) as made:
        assert ask(made).status_code == 200
        there, away = tmp_path / "store" / name, tmp_path / "away"
        there.rename(away)
        began = time.monotonic()
        assert until(lambda: refused(ask(made)), 5)
        assert time.monotonic() - began < 2
        with made.client() as client:
            assert client.get("/models").status_code == 200
        away.rename(there)
        assert until(lambda: ask(made).status_code == 200, 5)
        there.unlink()
        assert until(lambda: refused(ask(made)), 5)
        assert made.stop() == 0


def test_what_is_cut_off_at_the_end_is_counted_and_recorded(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole", "stall")
    tree["server"] |= {"drain_seconds": 1.0}
    with gate(tmp_path, tree) as made, made.client() as client:
        body = {"model": "stall", "messages": HELLO, "stream": True}
        with client.stream("POST", "/chat/completions", json=body) as said:
            parts = said.iter_bytes()
            next(parts)
            began = time.monotonic()
            assert made.stop() == 0
            assert time.monotonic() - began < 10
    cut = events(made)[0]
    assert (cut.model, cut.ended, cut.reason, cut.counted) == ("stall", "failed", "shutdown", "bound")
    assert cut.output_tokens
    for line in (tmp_path / "log").read_text().splitlines():
        assert json.loads(line)["event"]


def test_idle_connections_do_not_hold_up_the_end(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole")
    tree["server"] |= {"drain_seconds": 50.0}
    with gate(tmp_path, tree) as made, made.client() as client:
        assert client.get("/models").status_code == 200
        began = time.monotonic()
        assert made.stop() == 0
        assert time.monotonic() - began < 25


def test_settings_with_a_forbidden_server_are_refused_by_a_reload_too(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole")
    with gate(tmp_path, tree) as made:
        url = "http://169.254.169.254/v1"
        made.tree = tree | {"models": [{"name": "metadata", "upstreams": [{"url": url}]}]}
        made.reload()
        assert until(lambda: "reload" in (tmp_path / "log").read_text(), 10)
        assert ask(made).status_code == 200


def test_counts_are_entered_anew_although_the_record_failed_at_first(tmp_path, monkeypatch):
    """A database that is down for a while must not end what looks after the counts."""
    tries = []

    class Counts:
        async def standing(self, _):
            raise CountsLost("gone", "emptied", "wait")

        async def rebuild(self, rows):
            tries.append(list(rows))
            return True

    def recorded(*_):
        if not tries:
            tries.append(None)
            raise StorageError("no database", "down", "wait")
        if len(tries) == 1:
            tries.append(None)
            raise RuntimeError("what nobody foresaw")
        return {}, 0.0

    monkeypatch.setattr(rebuilding, "_recorded", recorded)
    monkeypatch.setattr(rebuilding, "LOOK_SECONDS", 0.01)

    async def run() -> None:
        task = asyncio.create_task(rebuilding.keep_whole(Counts(), SimpleNamespace(), time.time))
        async with asyncio.timeout(5):
            while [] not in tries and not task.done():  # noqa: ASYNC110 - the task tells nobody
                await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()

    asyncio.run(run())
    assert [] in tries


def test_a_client_that_leaves_while_it_is_settled_is_settled_all_the_same():
    """A store on the network takes time for it, in which the request can be cancelled."""
    settled = []

    class Counts:
        async def settle(self, id, used):
            if not settled:
                settled.append(None)
                await asyncio.Event().wait()
            settled.append((id, used))
            return 12

    async def run() -> Trail:
        trail = Trail("chat/completions")
        asked = Asked(False, False, 100, 50, 1, None)
        exchange = Exchange(
            SimpleNamespace(counts=Counts()), trail, SimpleNamespace(), asked, None, 0.0, Patience()
        )
        task = asyncio.create_task(exchange.settle())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await exchange.settle()
        await exchange.settle()
        return trail

    trail = asyncio.run(run())
    assert trail.cost == 12
    assert settled == [None, (trail.id, Used(0, 0, sent=False))]


@pytest.mark.parametrize(
    ("sent", "reserved", "cost"), [(False, 900, 0), (True, 900, 10 * 3 + 20 * 9), (True, 170, 170)]
)
def test_what_ends_while_the_store_is_down_is_recorded_at_the_dearest_price(sent, reserved, cost):
    """Else the invoice, which is made of the events, would have it for nothing; but for no more than what was
    reserved at the step where the account was."""
    later = []

    class Counts:
        async def settle(self, id, used):
            raise StoreDown("no answer", "away", "wait")

    async def run() -> Trail:
        trail = Trail("chat/completions")
        gateway = SimpleNamespace(counts=Counts(), settle_later=lambda *what: later.append(what))
        served = SimpleNamespace(steps=(Step(0, 3, 7), Step(10**9, 2, 9)))
        asked = Asked(False, False, 100, 50, 1, None)
        exchange = Exchange(gateway, trail, served, asked, None, 0.0, Patience())
        exchange._sent, exchange._told = sent, (10, 20) if sent else None
        exchange.reserved = reserved
        await exchange.settle()
        await exchange.settle()
        return trail

    trail = asyncio.run(run())
    assert (trail.cost, trail.counted) == (cost, "bound" if sent else "told")
    assert later == [(trail.id, Used(10, 20) if sent else Used(0, 0, sent=False))]


def test_a_system_that_allows_few_open_files_is_asked_for_more(tmp_path, behind):
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, most), most))
    try:
        with gate(tmp_path, tree_of(tmp_path, behind.url, "whole")) as made:
            assert resource.prlimit(made.process.pid, resource.RLIMIT_NOFILE) == (most, most)
            assert ask(made).status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
