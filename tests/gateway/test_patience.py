"""Deadlines that are moved more often than they are reached."""

import asyncio

import pytest

from stillhouse.gateway.patience import Patience

SOON, LATER = 0.02, 30.0


def run(work):
    async def whole():
        patience = Patience()
        try:
            return await work(patience)
        finally:
            patience.close()

    return asyncio.run(whole())


def test_what_takes_too_long_ends_and_the_task_goes_on():
    async def work(patience):
        for _ in range(2):
            with pytest.raises(TimeoutError), patience.within(SOON):
                await asyncio.Event().wait()
        await asyncio.sleep(0)
        return asyncio.current_task().cancelling()

    assert run(work) == 0


def test_a_deadline_that_is_moved_counts_as_it_was_set_last():
    async def work(patience):
        with patience.within(SOON):
            patience.within(LATER)
            await asyncio.sleep(3 * SOON)
        with pytest.raises(TimeoutError), patience.within(LATER).within(SOON):
            await asyncio.Event().wait()

    run(work)


def test_between_two_waits_nothing_is_ended():
    async def work(patience):
        with patience.within(SOON):
            pass
        await asyncio.sleep(3 * SOON)
        with patience:
            await asyncio.sleep(SOON)

    run(work)


def test_one_who_cancels_the_task_as_well_goes_before():
    async def work(patience):
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        loop.call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError), patience.until(loop.time()):
            await asyncio.Event().wait()
        return task.uncancel()

    assert run(work) == 0


def test_other_errors_stay_what_they_are():
    async def work(patience):
        with pytest.raises(KeyError), patience.within(LATER):
            raise KeyError

    run(work)


def test_a_stream_of_deadlines_takes_one_timer(monkeypatch):
    async def work(patience):
        loop = asyncio.get_running_loop()
        timers, call_at = [], loop.call_at
        monkeypatch.setattr(loop, "call_at", lambda *given: timers.append(given) or call_at(*given))
        with patience:
            for piece in range(1000):
                patience.within(LATER + piece)
        with patience.within(2 * LATER):
            pass
        return len(timers)

    assert run(work) == 1
