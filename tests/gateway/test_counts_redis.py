"""Counts in a real Redis: the same decisions as the algorithm's, whatever happens to it and to replicas."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis_server import Unavailable, running

from stillhouse.errors import UsageError
from stillhouse.gateway.store import redis as redis_module
from stillhouse.gateway.store.counts import CountsLost, StoreDown
from stillhouse.gateway.store.redis import RedisCounts
from stillhouse.gateway.store.resp import address_of
from stillhouse.guard import counting
from stillhouse.guard.counting import Spent
from stillhouse.guard.limits import Granted, Limit, Refused, Step, Subject, Used, Wanted
from stillhouse.guard.windows import DAY, SECOND, begin_of_month

MINUTE = (Limit("requests", "minute", 5),)


@pytest.fixture(scope="module")
def server():
    try:
        with running("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") as server:
            yield server
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def redis(server):
    server.ask("CONFIG", "SET", "appendfsync", "always")
    server.ask("CONFIG", "SET", "maxmemory", "0")
    server.ask("FLUSHALL")
    return server


def wanted(id, subject="account:a", limits=MINUTE, tokens=(10, 20), steps=(), seconds=60.0):
    payer = (subject, "s") if steps else ("", "")
    return Wanted(str(id), (Subject(subject, limits),), *tokens, seconds, *payer, steps)


async def opened(redis, **options):
    counts = RedisCounts(redis.url, **options)
    await counts.rebuild([])
    return counts


LIMITS = (
    Limit("requests", "minute", 6),
    Limit("requests", "day", 40),
    Limit("input_tokens", "minute", 90),
    Limit("output_tokens", "day", 600),
    Limit("concurrent", "ever", 3),
    Limit("money", "month", 9_000),
)
PAID = (Limit("money", "ever", 30_000), Limit("concurrent", "ever", 5), Limit("output_tokens", "minute", 99))
STEPS = (Step(0, 3, 7), Step(500, 5, 11), Step(2000, 2, 4))


def used_up(standing):
    return {what: amount for what, amount in standing.items() if amount}


def test_it_decides_as_the_algorithm(redis, monkeypatch):
    """On the same random requests, with a time that the test sets: days, ends of months, clocks set back."""
    real, test_time = redis_module._script(), "cjson.decode(redis.call('GET', '{stillhouse}:test'))"
    assert real.count("redis.call('TIME')") == 1
    monkeypatch.setattr(redis_module, "_script", lambda: real.replace("redis.call('TIME')", test_time))

    async def run():
        choose, book, open_, seen = random.Random(11), counting.Book(), [], set()
        counts = await opened(redis)
        raw, ahead = begin_of_month(2026 * 12 + 1) - 3 * DAY, 0
        redis.ask("HSET", "{stillhouse}:clock", "raw", str(raw))
        for number in range(1500):
            await counts._wire.ask("SET", "{stillhouse}:test", f"[{raw // SECOND},{raw % SECOND}]")
            now, what = raw + ahead, choose.random()
            name = choose.choice(["account:a", "account:b", "organisation:o"])
            assert used_up(await counts.standing(name)) == used_up(counting.standing(book, name, now))
            if what < 0.5:
                subjects = (
                    Subject(f"account:{choose.choice('ab')}", LIMITS),
                    Subject("organisation:o", PAID),
                )
                request = Wanted(
                    str(number), subjects, choose.randrange(40), choose.randrange(60), 100.0,
                    subjects[0].name, "my s", STEPS if choose.random() < 0.8 else (),
                )  # fmt: skip
                full = counting.full(book, request, now)
                assert await counts.full(request) == full
                expected = counting.reserve(book, request, now)
                assert await counts.reserve(request) == expected
                assert isinstance(expected, Refused) or full is None
                seen.add(expected.limit if isinstance(expected, Refused) else None)
                if isinstance(expected, Granted):
                    open_.append(request.id)
            elif what < 0.75 and open_:
                id = choose.choice(open_)
                used = Used(choose.randrange(50), choose.randrange(70), choose.random() < 0.8)
                expected = counting.settle(book, id, used, now)
                if expected is None:
                    with pytest.raises(StoreDown, match="not known"):
                        await counts.settle(id, used)
                    open_.remove(id)
                else:
                    assert await counts.settle(id, used) == expected
            elif what < 0.98:
                raw += choose.choice([1, SECOND, 7 * SECOND, 15 * SECOND, 50 * SECOND, 2 * 3600 * SECOND])
            else:
                back = choose.choice([5, 3600]) * SECOND
                raw, ahead = raw - back, ahead + back
        assert len(seen) >= 8
        await counts.close()

    asyncio.run(run())


def test_a_new_or_emptied_redis_is_closed_until_it_was_told_the_past(redis):
    async def run():
        counts = RedisCounts(redis.url)
        with pytest.raises(CountsLost, match="lost its counts"):
            await counts.reserve(wanted(1))
        assert await counts.rebuild([])
        assert isinstance(await counts.reserve(wanted(1)), Granted)
        assert not await counts.rebuild([Spent("account:a", time.time(), {("requests", "minute"): 5})])
        assert isinstance(await counts.reserve(wanted(2)), Granted)
        redis.ask("FLUSHALL")
        for call in (counts.reserve(wanted(3)), counts.settle("2", Used(0, 0)), counts.standing("account:a")):
            with pytest.raises(CountsLost):
                await call
        rows = [
            Spent(
                "account:a", time.time() - 20, {("requests", "minute"): 4, ("money", "month"): 7}, {"s": 9}
            ),
            Spent("account:a", time.time() - 3 * 86_400, {("requests", "minute"): 9, ("money", "ever"): 99}),
            *[Spent(f"account:{i}", time.time(), {("requests", "minute"): i}) for i in range(1200)],
        ]
        done = await asyncio.gather(*[RedisCounts(redis.url).rebuild(rows) for _ in range(4)])
        assert sorted(done) == [False, False, False, True]
        assert await counts.standing("account:a") == {
            ("requests", "minute"): 4, ("money", "month"): 7, ("money", "ever"): 99,
        }  # fmt: skip
        assert (await counts.standing("account:1199"))["requests", "minute"] == 1199
        assert isinstance(await counts.reserve(wanted(4)), Granted)
        assert isinstance(await counts.reserve(wanted(5)), Refused)
        with pytest.raises(StoreDown, match="not known"):
            await counts.settle("2", Used(0, 0))
        await counts.close()

    asyncio.run(run())


def test_giving_back_what_a_rebuilt_redis_does_not_know_grants_nothing_more(redis):
    async def run():
        counts = await opened(redis)
        assert isinstance(await counts.reserve(wanted(1)), Granted)
        redis.ask("DEL", "{stillhouse}:clock")
        with pytest.raises(CountsLost):
            await counts.reserve(wanted(2))
        assert await counts.rebuild([Spent("account:a", time.time(), {("requests", "minute"): 0})])
        await counts.settle("1", Used(0, 0, sent=False))
        answers = [await counts.reserve(wanted(f"after {i}")) for i in range(7)]
        assert sum(isinstance(answer, Granted) for answer in answers) == 5
        await counts.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("appendfsync", "everysec", "appendfsync"),
        ("appendonly", "no", "appendonly"),
        ("maxmemory", "1gb", "noeviction"),
    ],
)
def test_a_redis_that_may_forget_is_refused(server, setting, value, word):
    server.ask("FLUSHALL")
    server.stop()
    policy = {"maxmemory_policy": "allkeys-lru"} if setting == "maxmemory" else {}
    server.start(**{setting: value}, **policy)

    async def run():
        counts = RedisCounts(server.url, durable=True)
        for call in (counts.reserve(wanted(1)), counts.rebuild([]), counts.standing("account:a")):
            with pytest.raises(StoreDown, match="not fit") as caught:
                await call
            assert word in caught.value.mend
        await counts.close()

    try:
        asyncio.run(run())
    finally:
        server.stop()
        server.start()


def test_where_settings_cannot_be_read_the_operator_vouches(server):
    server.ask("FLUSHALL")
    server.ask("ACL", "SETUSER", "guard", "on", ">secret/1", "~*", "+@all", "-config")
    url = server.url.replace("unix://", "unix://guard:secret%2F1@")

    async def run():
        with pytest.raises(StoreDown) as caught:
            await RedisCounts(url).rebuild([])
        assert "redis_durable = true" in caught.value.mend
        counts = RedisCounts(url, durable=True)
        assert await counts.rebuild([])
        assert isinstance(await counts.reserve(wanted(1)), Granted)
        await counts.close()
        wrong = RedisCounts(url.replace("secret", "hunter2"))
        with pytest.raises(StoreDown) as caught:
            await wrong.reserve(wanted(1))
        assert "hunter2" not in f"{caught.value.what}{caught.value.why}{caught.value.mend}"

    asyncio.run(run())


def test_a_redis_that_is_away_or_hangs_closes_and_comes_back_by_itself(redis):
    async def run():
        counts = await opened(redis)
        many = (Limit("requests", "day", 100), Limit("concurrent", "ever", 50))
        assert isinstance(await counts.reserve(wanted(1, limits=many)), Granted)
        redis.signal(signal.SIGSTOP)
        begin = time.monotonic()
        calls = [counts.reserve(wanted(f"hung {i}", limits=many)) for i in range(20)]
        assert all(isinstance(a, StoreDown) for a in await asyncio.gather(*calls, return_exceptions=True))
        assert time.monotonic() - begin < 2
        settling = asyncio.create_task(counts.settle("1", Used(5, 5)))
        await asyncio.sleep(0.7)
        redis.signal(signal.SIGCONT)
        assert await settling == 0
        redis.stop(signal.SIGKILL)
        with pytest.raises(StoreDown, match="no counts from"):
            await counts.reserve(wanted(2, limits=many))
        redis.start()
        while True:
            try:
                granted = await counts.reserve(wanted(3, limits=many))
                break
            except StoreDown:
                await asyncio.sleep(0.05)
        assert isinstance(granted, Granted)
        redis.ask("SCRIPT", "FLUSH")
        assert isinstance(await counts.reserve(wanted(4, limits=many)), Granted)
        await counts.close()

    asyncio.run(run())


def test_a_caller_that_goes_away_leaves_nothing_charged(redis):
    async def run():
        counts = await opened(redis)
        task = asyncio.create_task(counts.reserve(wanted(1)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await counts.close()
        counts = RedisCounts(redis.url)
        assert not any((await counts.standing("account:a")).values())
        await counts.close()

    asyncio.run(run())


def test_keys_expire_but_for_money_that_was_ever_spent(redis):
    def lasts(subject):
        seconds = int(redis.ask("TTL", f"{{stillhouse}}:s:account:{subject}")[1:])
        assert seconds == -1 or 60 * 86_400 < seconds <= 63 * 86_400
        return seconds == -1

    async def run():
        counts = await opened(redis)
        ever = (Limit("money", "ever", 10**9), *MINUTE)
        await counts.reserve(wanted(1))
        await counts.reserve(wanted(2, "account:free", ever))
        await counts.reserve(wanted(3, "account:spent", ever, steps=STEPS))
        await counts.reserve(wanted(4, "account:back", ever, steps=STEPS))
        assert (lasts("a"), lasts("free"), lasts("spent"), lasts("back")) == (False, False, True, True)
        await counts.settle("3", Used(1, 1))
        await counts.settle("4", Used(0, 0, sent=False))
        await counts.reserve(wanted(5, "account:spent"))
        assert (lasts("spent"), lasts("back")) == (True, False)
        assert int(redis.ask("TTL", f"{{stillhouse}}:r:{counts._name}:1")[1:]) <= 3660
        redis.ask("FLUSHALL")
        rows = [
            Spent(f"account:{name}", time.time(), {("requests", "day"): 1, ("money", "ever"): cost})
            for name, cost in (("free", 0), ("spent", 1))
        ]
        assert await counts.rebuild(rows)
        assert (lasts("free"), lasts("spent")) == (False, True)
        await counts.close()

    asyncio.run(run())


HOLDER = """
import asyncio, sys
from stillhouse.gateway.store import redis
from stillhouse.guard.limits import *

redis.ALIVE, redis.BEAT = 1000, 0.1
limits = (Limit("concurrent", "ever", 3), Limit("output_tokens", "day", 1000))

async def main():
    counts = redis.RedisCounts(sys.argv[1])
    for n in range(3):
        wanted = Wanted(str(n), (Subject("account:a", limits),), 10, 30, 3600.0)
        assert isinstance(await counts.reserve(wanted), Granted)
    print("held", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_what_a_killed_replica_had_in_flight_is_free_soon_and_stays_charged(redis):
    limits = (Limit("concurrent", "ever", 3), Limit("output_tokens", "day", 1000))

    async def run(holder):
        counts = await opened(redis)
        holder.stdout.readline()
        begin, tries = time.monotonic(), 0
        while time.monotonic() - begin < 3:  # thrice as long as it would be waited for, were it dead
            refused = await counts.reserve(wanted(f"before {tries}", limits=limits))
            assert isinstance(refused, Refused), "whoever lives keeps what it has"
            assert refused.limit.measure == "concurrent"
            tries += 1
            await asyncio.sleep(0.05)
        holder.kill()
        begin = time.monotonic()
        while not isinstance(await counts.reserve(wanted(f"after {tries}", limits=limits)), Granted):
            assert time.monotonic() - begin < 10
            tries += 1
            await asyncio.sleep(0.05)
        standing = await counts.standing("account:a")
        assert standing["concurrent", "ever"] == 1
        assert standing["output_tokens", "day"] == 3 * 30 + 20
        await counts.close()

    asyncio.run(opened(redis))
    command = [sys.executable, "-c", HOLDER, redis.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            asyncio.run(run(holder))
        finally:
            holder.kill()


REPLICA = """
import asyncio, sys
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.redis import RedisCounts
from stillhouse.guard.limits import *

url, replica, clients, each, limit = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
limits = (Limit("output_tokens", "day", limit), Limit("concurrent", "ever", 10**6))
subjects = (Subject("account:a", limits), Subject("model:m", (Limit("requests", "day", 10**9),)))

async def client(counts, number):
    for turn in range(each):
        wanted = Wanted(f"{replica}-{number}-{turn}", subjects, 10, 30, 300.0)
        try:
            answer = await counts.reserve(wanted)
        except StoreDown:
            await asyncio.sleep(0.05)
            continue
        if isinstance(answer, Granted):
            print("granted", answer.id, flush=True)
            await asyncio.sleep(0.001 * (number % 7))
            used = number % 3 * 10
            try:
                await counts.settle(answer.id, Used(10, used))
            except StoreDown:
                continue
            print("settled", answer.id, used, flush=True)

async def main():
    counts = RedisCounts(url)
    await asyncio.gather(*[client(counts, number) for number in range(clients)])
    await counts.close()

asyncio.run(main())
"""


def replicas(redis, clients, each, limit, disturb=lambda processes: None):
    """Four processes on one account: the tokens that it used, and how many more may still be reserved by
    those that were killed before they could settle, or before they could say so."""
    asyncio.run(asyncio.wait_for(opened(redis), 10))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REPLICA, redis.url, str(n), str(clients), str(each), str(limit)],
            stdout=subprocess.PIPE, text=True,
        )
        for n in range(4)
    ]  # fmt: skip
    disturb(processes)
    told = [process.communicate()[0] for process in processes]  # the last line of one killed may be torn
    lines = [line.split() for text in told for line in text.split("\n")[:-1] if line]
    settled = {line[1] for line in lines if line[0] == "settled"}
    granted = {line[1] for line in lines}
    used = {id: int(id.split("-")[1]) % 3 * 10 for id in granted}
    return sum(used.values()), sum(30 - used[id] for id in granted - settled)


def counted(redis):
    async def run():
        counts = RedisCounts(redis.url)
        standing = await counts.standing("account:a")
        await counts.close()
        return standing["output_tokens", "day"]

    return asyncio.run(run())


def test_four_replicas_grant_one_limit(redis):
    used, unsure = replicas(redis, 25, 12, 3000)
    assert 1500 < used <= 3000
    assert used <= counted(redis) <= used + unsure


@pytest.mark.parametrize("what", ["replica", "redis"])
def test_four_replicas_grant_one_limit_though_one_is_killed(redis, what):
    def kill(processes):
        for process in processes:
            process.stdout.readline()  # it is at work
        if what == "redis":
            redis.stop(signal.SIGKILL)
            redis.start()
        else:
            processes[1].kill()

    used, unsure = replicas(redis, 25, 12, 6000, kill)
    assert used <= counted(redis) <= (6000 if what == "replica" else min(6000, used + unsure))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["nothing", "replicas", "redis"])
def test_four_replicas_of_a_hundred_clients_grant_one_limit(redis, what):
    def disturb(processes):
        for _ in range(0 if what == "nothing" else 3):
            time.sleep(2)
            if what == "redis":
                redis.stop(signal.SIGKILL)
                redis.start()
            else:
                processes.append(processes[0])
                processes.pop(0).kill()

    used, unsure = replicas(redis, 100, 250, 200_000, disturb)
    assert 100_000 < used <= counted(redis) <= (200_000 if what == "replicas" else used + unsure)


@pytest.mark.parametrize(
    "url", ["http://host", "redis://", "redis://host:port", "redis://h/x", "redis://:hunter2@host?ssl=no", "unix://"]
)  # fmt: skip
def test_what_is_no_url_of_redis_is_told_without_its_password(url):
    with pytest.raises(UsageError) as caught:
        RedisCounts(url)
    assert "hunter2" not in f"{caught.value.what}{caught.value.why}{caught.value.mend}"


def test_urls_say_where_and_who():
    one = address_of("rediss://guard:p%40ss@counts.example:7000/3")
    assert (one.name, one.tls, one.user, one.password, one.database) == (
        "counts.example:7000", True, "guard", "p@ss", 3,
    )  # fmt: skip
    assert address_of("redis://[::1]").host == "::1"
    assert address_of("unix:///run/redis.sock?db=2").database == 2
