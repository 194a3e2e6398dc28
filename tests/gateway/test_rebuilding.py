"""A gateway opens a Redis that has no counts, and goes on trying where the records cannot be read."""

import asyncio
import time
from pathlib import Path

import pytest
from redis_server import Unavailable, running

from stillhouse.gateway import rebuilding
from stillhouse.gateway.store.counts import CountsLost
from stillhouse.gateway.store.redis import RedisCounts
from stillhouse.guard.config import Store


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
