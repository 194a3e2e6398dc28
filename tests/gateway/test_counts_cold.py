"""Subjects that left memory are on disk as they were used: whoever comes back finds what counts of it."""

import asyncio
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.gateway.store import local
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.local import IDLE, LocalCounts
from stillhouse.guard import counting
from stillhouse.guard.limits import Granted, Limit, Step, Subject, Used, Wanted
from stillhouse.guard.windows import DAY, MOST, SECOND, Counters

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a commit takes no time
BEGIN = 1_790_000_000 * SECOND
LARGE = 2**32  # more than 4 bytes hold
LIMITS = {
    "a": (
        Limit("requests", "minute", 4),
        Limit("money", "month", 90 * LARGE),
        Limit("concurrent", "ever", 3),
    ),
    "b": (Limit("output_tokens", "day", 5 * LARGE), Limit("money", "ever", 60 * LARGE)),
    "c": (Limit("requests", "day", 6), Limit("input_tokens", "minute", 120)),
    "d": (),
}
STEPS = (Step(0, 3, 7), Step(LARGE, 5, 11))
tokens = st.sampled_from([0, 1, 20, LARGE - 1, LARGE, LARGE + 7])
moves = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.sampled_from("abcd"), st.integers(0, 50), tokens),
        st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 60), tokens, st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([1, SECOND, 6 * SECOND, 61 * SECOND, 2 * IDLE, DAY])),
        st.tuples(st.just("write")),
        st.tuples(st.just("restart")),
    ),
    min_size=5,
    max_size=40,
)


def wanted(id, account, inputs, outputs):
    subjects = (
        Subject(f"account:{account}", LIMITS[account]),
        Subject(f"key:{account}", LIMITS[account][:1]),
        Subject("model:m", (Limit("requests", "day", 10**6),)),
    )
    return Wanted(id, subjects, inputs, outputs, 60.0, f"account:{account}", "s", STEPS)


async def written(counts):
    """All that changed is on disk."""
    while counts._changed or counts._writing is not None:
        counts._lingered()
        await asyncio.sleep(0.001)


@settings(max_examples=80, deadline=None)
@given(moves)
def test_with_one_subject_in_memory_it_decides_as_if_all_stayed(moves):
    now, book, open_, evicted = [BEGIN], counting.Book(), [], set()

    async def settled_alike(counts, id, used):
        expected = counting.settle(book, id, used, now[0])
        if expected is None:
            with pytest.raises(StoreDown, match="not known"):
                await counts.settle(id, used)
        else:
            assert await counts.settle(id, used) == expected

    async def run(folder):
        counts = LocalCounts.open(folder, warm=1)
        for number, (what, *how) in enumerate(moves):
            if what == "reserve":
                request = wanted(str(number), *how)
                expected = counting.reserve(book, request, now[0])
                assert await counts.reserve(request) == expected
                if isinstance(expected, Granted):
                    open_.append(request.id)
            elif what == "settle" and open_:
                await settled_alike(counts, open_.pop(how[0] % len(open_)), Used(*how[1:]))
            elif what == "wait":
                now[0] += how[0]
            elif what == "write":
                await written(counts)
            elif what == "restart":
                while open_:
                    await settled_alike(counts, open_.pop(), Used(1, 2))
                await counts.close()
                counts = LocalCounts.open(folder, warm=1)
            for name in ("account:a", "key:b", "account:b", "model:m"):
                assert await counts.standing(name) == counting.standing(book, name, now[0])
                evicted.update(book.states.keys() - counts._book.states.keys())
        await written(counts)
        for _ in range(4):
            await counts.standing("account:d")
            await written(counts)
        assert len(counts._warm) <= 2
        await counts.close()

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        patch.setattr(local, "_steady", lambda: now[0])
        patch.setattr(local, "_wall", lambda: now[0])
        asyncio.run(run(Path(folder)))
    if any(what == "reserve" for what, *_ in moves):
        assert evicted


def test_two_thousand_that_passed_by_leave_their_counts_on_disk_alone(tmp_path, monkeypatch):
    now = [BEGIN]
    monkeypatch.setattr(local, "_steady", lambda: now[0])
    monkeypatch.setattr(local, "_wall", lambda: now[0])
    many = [f"account:{number}" for number in range(2_000)]

    async def run():
        counts = LocalCounts.open(tmp_path)
        for name in many:
            request = Wanted(name, (Subject(name, LIMITS["c"]),), 5, 5, 60.0)
            await counts.reserve(request)
            await counts.settle(name, Used(3, 3))
        now[0] += IDLE + SECOND
        while len(counts._warm) > 1:
            await counts.standing("account:asks on")
            await asyncio.sleep(0)
        assert len(counts._book.states) == 1
        for name in many[::100]:
            assert (await counts.standing(name))["requests", "day"] == 1
        await counts.close()

    asyncio.run(run())


EVERY = tuple(
    Limit(measure, window, 10**9)
    for measure in ("requests", "input_tokens", "output_tokens")
    for window in ("minute", "day")
)


def test_an_account_in_memory_and_its_key_with_every_limit_take_two_kilobytes(tmp_path):
    async def run():
        counts = LocalCounts.open(tmp_path)

        async def ask(name):
            subjects = (Subject(f"account:{name}", EVERY), Subject(f"key:{name}", EVERY))
            await counts.reserve(Wanted(name, subjects, 5, 5, 60.0, f"account:{name}", "s", STEPS))
            await counts.settle(name, Used(3, 3))

        async def traced(begin, count):
            await asyncio.gather(*[ask(f"acct_{number:016x}") for number in range(begin, begin + count)])
            await written(counts)
            book = counts._book  # what is kept of requests for some seconds is no matter of how many ask
            book.settled.clear(), book.settled_at.clear(), book.ends.clear(), book.late.clear()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = await traced(0, 600)
            each = (await traced(600, 1000) - before) / 1000
        finally:
            tracemalloc.stop()
        await counts.close()
        assert each < 2_500

    asyncio.run(run())


def test_writes_of_any_size_need_few_statements_to_be_kept_prepared(tmp_path):
    db, statements = local._database(tmp_path), set()

    class Seen:
        def execute(self, sql, *given):
            statements.add(sql)
            return db.execute(sql, *given)

    for count in range(1, 600, 7):
        db.execute("DELETE FROM subject")
        rows = [(f"account:{number}", "", bytes([number % 256])) for number in range(count)]
        local._put(Seen(), rows)
        assert (
            db.execute("SELECT * FROM subject ORDER BY CAST(substr(name, 9) AS INTEGER)").fetchall() == rows
        )
    assert sum("INSERT" in sql for sql in statements) <= 10
    db.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, MOST)), max_size=12))
def test_numbers_count_exactly_however_large_they_grow(rows):
    counters, plain = Counters(), {}
    for what, amount in rows:
        counters.enter((what, "minute"), 7, 7, amount)
        plain[what] = min(plain.get(what, 0) + amount, MOST)
    assert {what: counters.look((what, "minute"), 7)[0] for what in plain} == plain
    again = Counters(tuple(counters.layout), b"".join(n.to_bytes(8, "little") for n in counters.numbers))
    assert again.numbers == counters.numbers
