"""Counts of one process: never less on disk than was granted, whatever happens to process, clock and disk."""

import asyncio
import contextlib
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.errors import StillhouseError
from stillhouse.gateway.store import local
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.local import LocalCounts
from stillhouse.guard import counting
from stillhouse.guard.limits import Granted, Limit, Refused, Step, Subject, Used, Wanted
from stillhouse.guard.windows import DAY, SECOND

LIMITS = (
    Limit("requests", "minute", 5),
    Limit("output_tokens", "day", 400),
    Limit("concurrent", "ever", 3),
    Limit("money", "month", 10_000),
)


def wanted(id, account="a", limits=LIMITS, tokens=(10, 20)):
    subjects = (Subject(f"account:{account}", limits), Subject("model:m", (Limit("requests", "day", 10**6),)))
    return Wanted(id, subjects, *tokens, 60.0, f"account:{account}", "s", (Step(0, 3, 7), Step(200, 5, 11)))


class Clock:
    """The machine's two clocks, set by a test."""

    def __init__(self, monkeypatch):
        self.steady, self.wall = 50 * SECOND, 1_790_000_000 * SECOND
        monkeypatch.setattr(local, "_steady", lambda: self.steady)
        monkeypatch.setattr(local, "_wall", lambda: self.wall)

    def wait(self, microseconds):
        self.steady += microseconds
        self.wall += microseconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_it_decides_as_the_algorithm_through_restarts_and_with_hardly_any_memory(tmp_path, clock):
    async def run():
        book, counts, choose = counting.Book(), LocalCounts.open(tmp_path, warm=2), random.Random(7)
        open_ = []

        async def settled_alike(id, used):
            expected = counting.settle(book, id, used, clock.wall)
            if expected is None:
                with pytest.raises(StoreDown, match="not known"):
                    await counts.settle(id, used)
            else:
                assert await counts.settle(id, used) == expected

        for number in range(600):
            what = choose.random()
            if what < 0.5:
                request = wanted(
                    str(number), account=choose.choice("abcde"), tokens=(choose.randrange(40), 20)
                )
                expected = counting.reserve(book, request, clock.wall)
                assert await counts.reserve(request) == expected
                if isinstance(expected, Granted):
                    open_.append(request.id)
            elif what < 0.8 and open_:
                id = open_.pop(choose.randrange(len(open_)))
                used = Used(choose.randrange(40), choose.randrange(30), choose.random() < 0.8)
                await settled_alike(id, used)
            elif what < 0.98:
                clock.wait(choose.choice([1, SECOND, 7 * SECOND, 50 * SECOND, 3 * 3600 * SECOND]))
            else:
                for id in open_:
                    await settled_alike(id, Used(1, 1))
                open_ = []
                await counts.close()
                counts = LocalCounts.open(tmp_path, warm=2)
            account = f"account:{choose.choice('abcde')}"
            assert await counts.standing(account) == counting.standing(book, account, clock.wall)
            assert len(counts._warm) <= 6
        await counts.close()

    asyncio.run(run())


def test_two_hundred_at_once_get_no_more_than_the_limit(tmp_path):
    async def run():
        counts = LocalCounts.open(tmp_path)
        one = (Limit("output_tokens", "day", 50 * 20),)
        answers = await asyncio.gather(*[counts.reserve(wanted(str(i), limits=one)) for i in range(200)])
        assert sum(isinstance(a, Granted) for a in answers) == 50
        await asyncio.gather(*[counts.settle(a.id, Used(0, 0)) for a in answers if isinstance(a, Granted)])
        assert (await counts.standing("account:a"))["output_tokens", "day"] == 0
        await counts.close()

    asyncio.run(run())


@pytest.mark.parametrize("back", [5, 3600])
def test_a_wall_clock_set_back_grants_nothing_twice_and_freezes_nothing(tmp_path, clock, back):
    async def run():
        one, counts = (Limit("requests", "minute", 1),), LocalCounts.open(tmp_path)
        assert isinstance(await counts.reserve(wanted("1", limits=one)), Granted)
        clock.wait(30 * SECOND)
        clock.wall -= back * SECOND
        assert isinstance(await counts.reserve(wanted("2", limits=one)), Refused)
        await counts.close()
        counts = LocalCounts.open(tmp_path)
        refused = await counts.reserve(wanted("3", limits=one))
        assert isinstance(refused, Refused)
        assert refused.retry_after <= 35
        clock.wait(round(refused.retry_after * SECOND))
        assert isinstance(await counts.reserve(wanted("4", limits=one)), Granted)
        clock.wait(-10 * SECOND)
        clock.steady += 10 * SECOND
        assert isinstance(await counts.reserve(wanted("5", limits=one)), Refused)
        await counts.close()

    asyncio.run(run())


def test_a_second_process_on_the_folder_is_refused(tmp_path):
    async def run():
        counts = LocalCounts.open(tmp_path)
        with pytest.raises(StoreDown, match="another process") as caught:
            LocalCounts.open(tmp_path)
        assert "redis" in caught.value.mend
        await counts.close()
        await LocalCounts.open(tmp_path).close()

    asyncio.run(run())


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_counts_local import wanted, Limit
from stillhouse.gateway.store.local import LocalCounts
from stillhouse.guard.limits import Granted

async def run():
    counts = LocalCounts.open(Path(sys.argv[1]))
    limits = (Limit("output_tokens", "day", 1000 * 20), Limit("concurrent", "ever", 4))
    for round in range(int(sys.argv[3]), 10_000):
        ids = [f"{round}-{i}" for i in range(8)]
        for answer in await asyncio.gather(*[counts.reserve(wanted(id, limits=limits)) for id in ids]):
            if isinstance(answer, Granted):
                print(answer.id, flush=True)
        await asyncio.sleep(0)
        if round % 50 == 10:
            print("stuck", flush=True)
            await asyncio.sleep(60)

asyncio.run(run())
"""


def test_twenty_kills_between_reserve_and_settle_lose_no_count(tmp_path):
    """Each has all its places taken when it is killed; the next has them free, and the count of the day."""
    granted = set()
    for turn in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, tmp_path, str(Path(__file__).parent), str(turn * 100)],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        for line in child.stdout:
            if line == "stuck\n":
                break
            granted.add(line.strip())
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert len(granted) == 4 * (turn + 1)

    async def run():
        counts = LocalCounts.open(tmp_path)
        standing = await counts.standing("account:a")
        tokens, money = standing["output_tokens", "day"], standing["money", "month"]
        assert 80 * 20 <= tokens <= 80 * 20 + 20 * 16 * 20
        assert 80 * 170 <= money <= (80 + 20 * 256) * 270
        with pytest.raises(StoreDown, match="not known any more"):
            await counts.settle("0-0", Used(0, 0))
        await counts.close()

    asyncio.run(run())


@contextlib.contextmanager
def full_disk(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "counts.sqlite-wal").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_closes_it_at_the_bound_and_what_was_not_granted_is_not_charged(tmp_path, clock):
    limits = (Limit("requests", "minute", 1000), Limit("output_tokens", "day", 100_000))

    async def run():
        counts = LocalCounts.open(tmp_path)
        assert isinstance(await counts.reserve(wanted("1", limits=limits)), Granted)
        granted = 1
        with full_disk(tmp_path):
            for number in range(2, 100):
                try:
                    assert isinstance(await counts.reserve(wanted(str(number), limits=limits)), Granted)
                except StoreDown as error:
                    assert "disk" in error.mend  # noqa: PT017
                    break
                granted += 1
            crashed = after_crash(tmp_path, tmp_path.parent / f"{tmp_path.name}-crashed")
            for _ in range(3):
                with pytest.raises(StoreDown):
                    await counts.reserve(wanted("last", limits=limits))
            assert granted == 17
            assert await counts.settle("1", Used(1, 1)) == 10
        assert (await counts.standing("account:a"))["requests", "minute"] == granted
        assert isinstance(await counts.reserve(wanted("more", limits=limits)), Granted)
        await counts.close()
        counts = LocalCounts.open(tmp_path)
        assert (await counts.standing("account:a"))["output_tokens", "day"] == granted * 20 + 1
        await counts.close()
        counts = LocalCounts.open(crashed)
        assert (await counts.standing("account:a"))["requests", "minute"] == granted
        await counts.close()

    asyncio.run(run())


def after_crash(folder, copy):
    """What a crash at this moment leaves."""
    copy.mkdir()
    for name in ("counts.sqlite", "counts.sqlite-wal"):
        (copy / name).write_bytes((folder / name).read_bytes())
    return copy


def test_a_folder_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "file").touch()

    async def run():
        with pytest.raises((StillhouseError, OSError)):
            LocalCounts.open(tmp_path / "file" / "below")

    asyncio.run(run())


def test_a_caller_that_goes_away_leaves_nothing_charged(tmp_path):
    async def run():
        counts = LocalCounts.open(tmp_path)
        task = asyncio.create_task(counts.reserve(wanted("1")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any((await counts.standing("account:a")).values())
        await counts.close()

    asyncio.run(run())


def test_it_forgets_what_it_may(tmp_path, clock):
    async def run():
        counts = LocalCounts.open(tmp_path, warm=50)
        free = (Limit("concurrent", "ever", 5),)
        for number in range(1500):
            answer = await counts.reserve(wanted(str(number), account=str(number % 300), limits=free))
            await counts.settle(answer.id, Used(1, 1))
            clock.wait(SECOND)
        book = counts._book
        assert max(map(len, (book.states, counts._warm))) <= 60
        assert max(map(len, (book.reserved, book.settled, book.in_flight))) <= 20
        assert max(len(book.ends), len(book.late)) <= 1001
        clock.wait(DAY + 3 * 3600 * SECOND)
        await counts.standing("account:1")
        await counts.standing("account:1")
        assert len(book.states) < 60
        await counts.close()

    asyncio.run(run())
