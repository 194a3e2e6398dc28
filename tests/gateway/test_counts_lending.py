"""What runs ahead on disk: grants that need not wait for it, and no window overdrawn by a crash."""

import asyncio
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.gateway.store import lending, local
from stillhouse.gateway.store.local import LocalCounts
from stillhouse.guard.limits import Granted, Limit, Step, Subject, Used, Wanted
from stillhouse.guard.windows import DAY, SECOND

LENGTH = {"minute": 60 * SECOND, "day": DAY, "month": 400 * DAY, "ever": 400 * DAY}
LIMITS = st.tuples(
    st.integers(1, 60), st.integers(1, 3000), st.integers(1, 6000), st.integers(1, 30_000)
).map(
    lambda most: (
        Limit("requests", "minute", most[0]),
        Limit("input_tokens", "day", most[1]),
        Limit("output_tokens", "month", most[2]),
        Limit("money", "ever", most[3]),
    )
)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 30), st.integers(0, 30), st.integers(1, 20)),
        st.tuples(st.just("settle"), st.integers(0, 60), st.integers(0, 60), st.integers(0, 20)),
        st.tuples(st.just("wait"), st.sampled_from([1, SECOND, 5 * SECOND, 31 * SECOND, 10_000 * SECOND])),
        st.tuples(st.just("write")),
        st.tuples(st.just("crash")),
    ),
    min_size=8,
    max_size=30,
)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a commit takes no time
STEPS = (Step(0, 3, 7),)


def wanted(id, limits, tokens=(10, 20)):
    subjects = (Subject("account:a", limits), Subject("model:m", limits[:1]))
    return Wanted(id, subjects, *tokens, 60.0, "account:a", "s", STEPS)


def used(input_tokens, output_tokens, money):
    return {"requests": 1, "input_tokens": input_tokens, "output_tokens": output_tokens, "money": money}


async def crash(counts, folder, into):
    """What lies in the folder now, whatever is being written. The thread ends; nothing more is written."""
    into.mkdir()
    for name in ("counts.sqlite", "counts.sqlite-wal"):
        (into / name).write_bytes((folder / name).read_bytes())
    await counts.close()
    return LocalCounts.open(into)


@settings(max_examples=60, deadline=None)
@given(LIMITS, MOVES)
def test_no_window_is_overdrawn_by_crashes_at_any_moment(limits, moves):
    now = [1_790_000_000 * SECOND]
    granted = {}  # by id: when, and what it takes of each measure
    open_ = []

    def most_in_any_stretch(limit):
        events = [(at, amounts[limit.measure]) for at, amounts in granted.values()]
        length = LENGTH[limit.window]
        return max((sum(n for at, n in events if end - length <= at <= end) for end, _ in events), default=0)

    async def run(base):
        folder, crashes, number = base / "0", 0, 0
        counts = LocalCounts.open(folder)
        for what, *how in moves:
            if what == "reserve":
                ids = [str(number + i) for i in range(how[2])]
                number += how[2]
                answers = await asyncio.gather(*[counts.reserve(wanted(id, limits, how[:2])) for id in ids])
                for id, answer in zip(ids, answers, strict=True):
                    if isinstance(answer, Granted):
                        money = how[0] * 3 + how[1] * 7
                        amounts = used(*how[:2], money)
                        granted[id] = now[0], amounts
                        open_.append(id)
            elif what == "settle":
                for id in open_[: how[2]]:
                    at, amounts = granted[id]
                    tokens = min(how[0], amounts["input_tokens"]), min(how[1], amounts["output_tokens"])
                    cost = await counts.settle(id, Used(*tokens))
                    amounts = used(*tokens, cost)
                    granted[id] = at, amounts
                del open_[: how[2]]
            elif what == "wait":
                now[0] += how[0]
                if how[0] > 60 * SECOND:
                    open_.clear()
            elif what == "write":
                counts._lingered()
                await asyncio.sleep(0)
            else:
                crashes += 1
                counts = await crash(counts, folder, base / str(crashes))
                folder = base / str(crashes)
                open_.clear()
                standing = await counts.standing("account:a")
                assert all(standing.get((x.measure, x.window), 0) <= x.amount for x in limits)
            for limit in limits:
                assert most_in_any_stretch(limit) <= limit.amount
        await counts.close()

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=MEMORY) as base:
        patch.setattr(local, "_steady", lambda: now[0])
        patch.setattr(local, "_wall", lambda: now[0])
        asyncio.run(run(Path(base)))


def test_what_was_granted_a_moment_ago_counts_after_a_crash(tmp_path):
    async def run():
        one = (Limit("requests", "day", 40),)
        counts, folder, granted = LocalCounts.open(tmp_path / "0"), tmp_path / "0", 0
        for turn in range(1, 6):
            for number in range(9):
                granted += isinstance(await counts.reserve(wanted(f"{turn}-{number}", one)), Granted)
            counts = await crash(counts, folder, tmp_path / str(turn))
            folder = tmp_path / str(turn)
        await counts.close()
        assert 18 <= granted <= 40

    asyncio.run(run())


WIDE = (
    Limit("requests", "minute", 10**6),
    Limit("output_tokens", "day", 10**9),
    Limit("money", "month", 10**12),
)


def test_steady_traffic_hardly_ever_waits_and_a_crash_costs_a_block_at_most():
    async def run(base):
        counts, waited = LocalCounts.open(base / "a"), 0
        for number in range(300):
            granting = asyncio.create_task(counts.reserve(wanted(str(number), WIDE)))
            await asyncio.sleep(0)  # one turn of the loop, enough for what need not wait
            waited += not granting.done()
            assert isinstance(await granting, Granted)
            await counts.settle(str(number), Used(10, 10))
            await asyncio.sleep(0.002)
        before = await counts.standing("account:a")
        counts = await crash(counts, base / "a", base / "b")
        found = await counts.standing("account:a")
        await counts.close()
        return waited, before, found

    with tempfile.TemporaryDirectory(dir=MEMORY) as base:
        waited, before, found = asyncio.run(run(Path(base)))
    assert waited <= 15
    for limit in WIDE:
        code = limit.measure, limit.window
        charge = {"requests": 1, "output_tokens": 20, "money": 170}[limit.measure]
        ahead = 3 * lending.block(charge, limit.amount, limit.window)
        assert before[code] <= found[code] <= before[code] + ahead


def test_what_was_lent_is_given_back_at_an_orderly_close(tmp_path):
    async def run():
        counts = LocalCounts.open(tmp_path)
        for number in range(20):
            await counts.reserve(wanted(str(number), WIDE))
            await counts.settle(str(number), Used(3, 4))
        before = await counts.standing("account:a")
        await counts.close()
        counts = LocalCounts.open(tmp_path)
        assert await counts.standing("account:a") == before
        assert before["output_tokens", "day"] == 80
        await counts.close()

    asyncio.run(run())


def test_after_a_burst_the_bound_comes_down_to_a_block(tmp_path):
    async def run():
        counts = LocalCounts.open(tmp_path)
        await asyncio.gather(*[counts.reserve(wanted(str(n), WIDE)) for n in range(2000)])
        for number in range(2000):
            await counts.settle(str(number), Used(0, 0))
        end = time.monotonic() + 10
        while (ahead := money_ahead(counts)) >= 2 * 16 * 170 and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert 0 < ahead < 2 * 16 * 170
        await counts.close()

    def money_ahead(counts):
        lent = counts._warm["account:a"]
        begin = lent.layout["money", "month"]
        slot, bound, _ = lent.edges[3 * lent.layout.nth[begin] :][:3]
        return bound - lent.numbers[begin + 1 + slot % 2]

    asyncio.run(run())
