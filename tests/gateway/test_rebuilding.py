"""A gateway opens a Redis that has no counts, and goes on trying where the records cannot be read."""

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import event, record
from redis_server import Unavailable, running

from stillhouse.gateway import rebuilding
from stillhouse.gateway.store.counts import CountsLost
from stillhouse.gateway.store.local import LocalCounts
from stillhouse.gateway.store.redis import RedisCounts
from stillhouse.guard.accounts import Account, Key
from stillhouse.guard.config import Limits, Store, Tier
from stillhouse.guard.limits import Granted, Step, Used, Wanted
from stillhouse.guard.subjects import subjects_of


@pytest.fixture(scope="module")
def redis():
    try:
        with running("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") as server:
            yield server
    except Unavailable as error:
        pytest.skip(str(error))


async def opened(counts, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await counts.standing("account:a")
        except CountsLost:
            await asyncio.sleep(0.02)
        else:
            return True
    return False


def test_a_new_redis_is_opened_even_if_the_records_could_not_be_read_at_first(redis, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuilding, "LOOK_SECONDS", 0.02)
    folder = tmp_path / "store"
    folder.write_text("a file where the folder should be")

    async def run():
        counts = RedisCounts(redis.url)
        watch = asyncio.create_task(
            rebuilding.keep_whole(counts, Store(folder=str(folder), redis=redis.url), time.time)
        )
        assert not await opened(counts, 0.5)
        assert not watch.done()
        folder.unlink()
        assert await opened(counts)
        watch.cancel()
        await counts.close()

    asyncio.run(run())


def test_why_nothing_is_granted_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(rebuilding, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(rebuilding.logs, "say", lambda event, **more: said.append((event, more["error"])))
    nobody = f"unix://{tmp_path / 'socket'}"

    async def run():
        counts = RedisCounts(nobody)
        watch = asyncio.create_task(
            rebuilding.keep_whole(counts, Store(folder=str(tmp_path), redis=nobody), time.time)
        )
        await asyncio.sleep(0.5)
        watch.cancel()
        await counts.close()

    asyncio.run(run())
    assert [event for event, _ in said] == ["counts down"]


def test_local_counts_that_were_deleted_are_made_again_of_the_events(tmp_path, monkeypatch):
    """And only those: counts that are there know better."""
    monkeypatch.setattr(rebuilding, "MINUTE", 0.2)
    store = Store(folder=str(tmp_path))
    with contextlib.closing(record(store)) as kept:
        for n in range(30):
            kept.put(replace(event(n), at=time.time()))

    async def standing() -> dict:
        counts = LocalCounts.open(tmp_path)
        try:
            await rebuilding.rebuild(counts, store, time.time)
            return dict(await counts.standing("account:a3"))
        finally:
            await counts.close()

    used = {
        ("requests", "day"): 3,
        ("input_tokens", "day"): 30,
        ("output_tokens", "day"): 15,
        ("money", "month"): 60_000,
        ("money", "ever"): 60_000,
    }
    assert asyncio.run(standing()) == used
    assert asyncio.run(standing()) == used
    for path in tmp_path.glob("counts.sqlite*"):
        path.unlink()
    assert asyncio.run(standing()) == used


def test_counts_made_again_bound_a_prepaid_account_as_those_that_were_lost(tmp_path, monkeypatch):
    """It spent something in another tier before."""
    monkeypatch.setattr(rebuilding, "MINUTE", 0.2)
    monthly, prepaid = Tier(budget=1.0), Tier(prepaid=True)
    account, key = Account("a3", None, "ann", "t", paid=60_000), Key("k3", "a3", b"", "sk")
    store = Store(folder=str(tmp_path / "events"))

    def wanted(id: str, tier: Tier) -> Wanted:
        whose = subjects_of(None, account, key, tier, "m", Limits())
        return Wanted(id, whose, 10, 5, 60.0, "account:a3", "list", (Step(0, 1000, 2000),))

    async def run(folder: Path, spend: int) -> tuple[int, bool]:
        counts = LocalCounts.open(folder)
        try:
            await rebuilding.rebuild(counts, store, time.time)
            for n in range(spend):
                assert isinstance(await counts.reserve(wanted(f"{n}", monthly)), Granted)
                assert await counts.settle(f"{n}", Used(10, 5)) == 20_000
            ever = (await counts.standing("account:a3"))["money", "ever"]
            return ever, isinstance(await counts.reserve(wanted("last", prepaid)), Granted)
        finally:
            await counts.close()

    for name in ("two", "live", "again"):
        (tmp_path / name).mkdir()
    assert asyncio.run(run(tmp_path / "two", 2)) == (40_000, True)
    live = asyncio.run(run(tmp_path / "live", 3))
    with contextlib.closing(record(store)) as kept:
        for n in range(3):
            kept.put(event(n, at=time.time(), account="a3", key="k3", organisation=""))
    assert asyncio.run(run(tmp_path / "again", 0)) == live == (60_000, False)
